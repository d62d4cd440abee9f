"""How well midigpt.duplicates finds the same music, on real files; and how fast, on made-up prints.

Example: python bench/dedupe.py rockpop pop909 nottingham chorales asap
         python bench/dedupe.py --synthetic 1000000

Each folder is a corpus. Of some of its files variants are made that are the same music, and it is counted how many
are joined with their original. Of the files themselves each one joined is held against its nearest: the same song
by its path (POP909's versions, ASAP's performances and scores of a piece), or confirmed by runs of sixteen
intervals that both have note for note, a test that knows nothing of prints. The rest is listed, to be looked at.
"""

import re
import resource
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from variants import VARIANTS

from midigpt.duplicates import PRINT_GRAMS, Clusters, Print, clusters, score_print
from midigpt.files import UserError, parse_arguments, printable
from midigpt.midi import read_midi
from midigpt.midi_bytes import MidiError
from midigpt.normal import normalise
from midigpt.score import Score

RUN = 16  # intervals
CONFIRMED = 0.04  # of the runs of the file that has fewer


@dataclass(frozen=True)
class Args:
    corpora: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Folders of MIDI files."""
    sample: int = 200
    """Files of each corpus of which variants are made."""
    seed: int = 0
    """Of all chance."""
    synthetic: int = 0
    """Instead of files, cluster so many made-up prints."""


@dataclass
class Corpus:
    """The files of all folders, and variants of some of them."""

    paths: list[Path]
    corpus: list[str]
    prints: list[Print]
    variants: dict[str, list[tuple[int, Print]]]  # of each kind: the original's number, and the variant


def read(folders: tuple[Path, ...], sample: int, rng: np.random.Generator) -> Corpus:
    found = Corpus([], [], [], {kind: [] for kind in VARIANTS})
    seconds, notes = 0.0, 0
    for folder in folders:
        paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".mid", ".midi"))
        chosen = set(rng.permutation(len(paths))[:sample].tolist())
        for number, path in enumerate(paths):
            try:
                score = read_midi(path)
            except MidiError:
                continue
            normal = normalise(score)
            start = time.process_time()
            found.prints.append(score_print(normal))
            seconds, notes = seconds + time.process_time() - start, notes + score.notes
            found.paths.append(path)
            found.corpus.append(folder.name)
            if number in chosen:
                _add_variants(found, score, rng)
    if not found.paths:
        raise UserError("no MIDI files there; name folders that have some")
    files = len(found.paths)
    print(f"{files} files, {notes} notes")
    print(f"prints: {seconds / files * 1e6:.0f} us a file, {seconds / notes * 1e9:.0f} ns a note")
    return found


def _add_variants(found: Corpus, score: Score, rng: np.random.Generator) -> None:
    for kind, variant in VARIANTS.items():
        other = normalise(variant(score, rng))
        if any(not track.is_drum for track in other.tracks):
            found.variants[kind].append((len(found.paths) - 1, score_print(other)))


def report_recall(found: Corpus) -> None:
    names = list(dict.fromkeys(found.corpus))
    print("\nvariants joined with their original")
    print("| variant | all |", " | ".join(names), "|\n|---|" + "---:|" * (1 + len(names)))
    for kind, made in found.variants.items():
        label = clusters(found.prints + [variant for _, variant in made]).label
        joined = np.array([label[number] == label[len(found.prints) + i] for i, (number, _) in enumerate(made)])
        corpus = np.array([found.corpus[number] for number, _ in made])
        shares = [joined, *(joined[corpus == name] for name in names)]
        print(f"| {kind} |", " | ".join(f"{s.mean():.3f}" if len(s) else "" for s in shares), "|", flush=True)


def song_by_path(path: Path) -> str:
    """What is known of a file to be a song's name; its own path where nothing is."""
    if match := re.search(r"pop909/(\d+)/", path.as_posix()):
        return match[1]
    if "asap/" in path.as_posix():
        return re.sub(r"(_no)?(_\w+)?_repeat$", "", path.parent.as_posix())
    return path.as_posix()


def runs(score: Score) -> set[bytes]:
    """All runs of RUN successive intervals in the upper line of a part that have at least four different ones."""
    found = set()
    for track in score.tracks:
        if not track.is_drum and len(track):
            last = np.flatnonzero(np.diff(track.onset, append=-1))
            line = np.diff(track.pitch[last]).astype(np.int8).tobytes()
            found |= {line[i : i + RUN] for i in range(len(line) - RUN + 1) if len(set(line[i : i + RUN])) > 3}
    return found


def is_confirmed(a: Path, b: Path) -> bool:
    first, second = (runs(normalise(read_midi(path))) for path in (a, b))
    return len(first & second) >= CONFIRMED * max(1, min(len(first), len(second)))


def report_joined(found: Corpus) -> None:
    start = time.process_time()
    joined = clusters(found.prints)
    seconds = time.process_time() - start
    _, size = np.unique(joined.label, return_counts=True)
    size = size[size > 1]
    print(f"\n{size.sum()} files in {len(size)} clusters, the largest of {size.max(initial=1)}; {seconds:.2f} s")
    songs = np.array([song_by_path(path) for path in found.paths])
    _report_known(joined, songs, np.array(found.corpus))

    pairs = {(min(a, b), max(a, b)) for a, b in enumerate(joined.nearest.tolist()) if b >= 0}
    unknown = [(a, b) for a, b in sorted(pairs) if songs[a] != songs[b]]
    doubtful = [(a, b) for a, b in unknown if not is_confirmed(found.paths[a], found.paths[b])]
    print(f"\n{len(pairs)} files with their nearest: {len(pairs) - len(unknown)} one song by their paths,")
    confirmed = len(unknown) - len(doubtful)
    print(f"{confirmed} confirmed by runs of {RUN} intervals, {len(doubtful)} neither (look at these):")
    for a, b in doubtful:
        share = max(joined.share[i] for i, j in ((a, b), (b, a)) if joined.nearest[i] == j)
        print(f"  {share:.2f}  {_shown(found.paths[a])} | {_shown(found.paths[b])}")
    across = [(a, b) for a, b in unknown if found.corpus[a] != found.corpus[b]]
    print(f"\nacross corpora: {len(across)}")
    for a, b in across:
        print(f"  {_shown(found.paths[a])} | {_shown(found.paths[b])}")


def _shown(path: Path) -> str:
    return printable("/".join(path.parts[-4:]))


def _report_known(joined: Clusters, songs: np.ndarray, corpus: np.ndarray) -> None:
    """Of the pairs of files that are one song by their paths, how many are in one cluster."""
    for name in dict.fromkeys(corpus.tolist()):
        label = joined.label[corpus == name]
        same = songs[corpus == name][:, None] == songs[corpus == name]
        same[np.tril_indices(len(same))] = False
        if same.any():
            joined_pairs = ((label[:, None] == label) & same).sum()
            print(f"{name}: {same.sum()} pairs are one song by their paths, {joined_pairs} joined")


def made_up(count: int, rng: np.random.Generator) -> tuple[list[Print], np.ndarray]:
    """Prints of songs of which 60 % are there once, others in up to 2000 versions; and the song of each.

    A song's grams are to 30 % from a common stock, some in one song of five, some in hardly any. A third of the
    versions are exact, in others up to half of the grams differ.
    """
    versions = np.ones(count, np.int64)
    versions[::3] = np.minimum(1 + rng.zipf(2.2, len(versions[::3])), 2000)
    song = np.repeat(np.arange(count), versions)[:count]
    stock = rng.integers(0, 2**30, 1 << 20, dtype=np.uint32)
    prints: list[Print] = []
    for start in range(0, song[-1] + 1, 10000):  # songs
        base = rng.integers(0, 2**30, (10000, PRINT_GRAMS), dtype=np.uint32)
        is_common = rng.random(base.shape) < 0.3
        base[is_common] = stock[(len(stock) ** rng.random(is_common.sum())).astype(np.int64)]
        files = song[(song >= start) & (song < start + 10000)] - start
        changes = np.where(rng.random(len(files)) < 1 / 3, 0, 0.5 * rng.random(len(files)))
        fresh = rng.integers(0, 2**30, (len(files), PRINT_GRAMS), dtype=np.uint32)
        table = np.where(rng.random(fresh.shape) < changes[:, None], fresh, base[files])
        prints += [np.unique(row) for row in table]
    return prints, song


def report_synthetic(count: int, rng: np.random.Generator) -> None:
    prints, song = made_up(count, rng)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    start = time.process_time()
    label = clusters(prints).label
    seconds = time.process_time() - start
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    first = np.full(count, count)
    np.minimum.at(first, song, np.arange(count))
    has_others = np.bincount(song, minlength=count)[song] > 1
    print(f"{count} prints: {seconds:.1f} s, {after:.1f} GiB at most ({before:.1f} GiB before)")
    found = (label == first[song])[has_others].mean()
    print(f"in the cluster of the song's first version: {found:.4f} of those that have others")
    print(f"in another song's cluster: {(song[label] != song).mean():.6f}")


def main(args: Args) -> None:
    rng = np.random.default_rng(args.seed)
    if args.synthetic:
        report_synthetic(args.synthetic, rng)
        return
    found = read(args.corpora, args.sample, rng)
    report_recall(found)
    report_joined(found)


if __name__ == "__main__":
    main(parse_arguments(Args, __doc__))
