"""What the copy meter costs: making its index, asking it; and a plain way to the same answers, in the same run.

Example: python bench/copies.py --root FOLDER --growth 2

FOLDER is a working folder with data/ and train/; nothing is written there. Every row is a process of its own, so
that its peak memory is its own too. Asked are held-out documents, whole and cut to the length of a take, and
training documents moved by five keys, which must be found whole. The plain way reads documents by `decode` and
compares each instant of a take with each of the training songs, in all keys, one diagonal of runs after another; it
gets fewer songs, for it takes as many times longer as there are instants.
"""

import hashlib
import multiprocessing
import re
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from midigpt import copies
from midigpt.copies import map_index, open_copies, read_passages
from midigpt.documents import Split, read_songs
from midigpt.files import UserError, parse_arguments, read_json
from midigpt.index import language, songs
from midigpt.judge import first_notes
from midigpt.language import TRACKS, decode
from midigpt.train_data import SONGS_AT_ONCE

MIB_OF_RSS = 2**20 if sys.platform == "darwin" else 2**10  # in units of ru_maxrss


@dataclass(frozen=True)
class Args:
    root: Path = Path()
    """The working folder."""
    takes: int = 100
    """How many documents to ask about, of each sort."""
    notes: int = 1000
    """Notes of a take."""
    growth: int = 1
    """Also make an index of all songs this many times over: the hardest to sort, and to see whether memory grows."""
    plain_songs: int = 40
    """Songs that the plain way compares takes with."""
    plain_takes: int = 5
    """Takes, of a fifth of the notes, that it is asked about."""


def training_songs(root: Path) -> Iterator[tuple[str, list[str]]]:
    meta = read_json(root / "train" / "meta.json")
    split = Split.of(meta)
    for song, texts in read_songs(root, (song for song in songs(root) if not split.is_val(song))):
        yield song.name, texts


def read(root: Path) -> dict[str, float]:
    return {"notes": sum(text.count("|") for _, texts in training_songs(root) for text in texts)}


def build(root: Path, times: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        with copies.writer(Path(folder)) as writer:
            for _ in range(times):
                coming = training_songs(root)
                while some := list(islice(coming, SONGS_AT_ONCE)):
                    writer.add(read_passages(some))
        size = sum(path.stat().st_size for path in Path(folder).iterdir())
    return {"size": size, "moments": writer.blocks[-1], "blocks": len(writer.blocks)}


def ask(root: Path, sort: str, takes: int, notes: int) -> dict[str, float]:
    """Ask about so many documents of a sort; seconds of each as median and most."""
    index = open_copies(root)
    if sort == "copied":
        texts = [text for _, texts in islice(training_songs(root), 0, None, 7) for text in texts][:takes]
        texts = [re.sub(r" key=(\d+)", lambda key: f" key={(int(key[1]) + 5) % 128}", text) for text in texts]
    else:
        texts = list(held_out(root, takes, notes if sort == "cut" else 0))
    seconds, found, whole = [], [], 0
    for text in texts:
        start = time.perf_counter()
        copy = index.longest(text)
        seconds.append(time.perf_counter() - start)
        found.append(copy.notes if copy else 0)
        whole += found[-1] == text.count("|")
    median, most = np.median(seconds), max(seconds)
    return {"takes": len(texts), "median": median, "most": most, "notes": float(np.median(found)), "whole": whole}


def plainly_read(text: str) -> tuple[bool, list[tuple[frozenset[int], int, int]]]:
    """Whether a document is drums; of its instants what begins, the time until the next, how many notes."""
    (track,) = decode([text]).tracks or decode(["0+1|1/1"]).tracks
    begun: dict[int, list[int]] = {}
    for onset, pitch in zip(track.onset.tolist(), track.pitch.tolist(), strict=True):
        begun.setdefault(onset, []).append(pitch if track.is_drum else pitch % 12)
    ends = [*islice(begun, 1, None), int((track.onset + track.duration).max())]
    rows = zip(begun.items(), ends, strict=True)
    return track.is_drum, [(frozenset(some), end - onset, len(some)) for (onset, some), end in rows]


def plain(root: Path, number: int, takes: int, notes: int) -> dict[str, float]:
    """The plain way beside the meter, over the same few songs; both read them beforehand."""
    some = list(islice(training_songs(root), number))
    with tempfile.TemporaryDirectory() as folder:
        with copies.writer(Path(folder)) as writer:
            writer.add(read_passages(some))
        index = map_index(Path(folder), writer.blocks)
    numbers: dict[Any, int] = {}
    rows = [-1]
    for _, texts in some:
        for text in texts:
            is_drum, instants = plainly_read(text)
            rows += [numbers.setdefault((is_drum, begun, wait), len(numbers)) for begun, wait, _ in instants]
            rows.append(-1)
    theirs = np.array(rows)
    result = {"instants": len(theirs), "plain": 0.0, "meter": 0.0, "takes": 0, "same": 0}
    for text in held_out(root, takes, notes):
        start = time.perf_counter()
        copy = index.longest(text)
        middle = time.perf_counter()
        most = plainly_found(text, numbers, theirs)
        result["plain"] += time.perf_counter() - middle
        result["meter"] += middle - start
        result["takes"] += 1
        result["same"] += most == (copy.notes if copy else 0)
    return result


def plainly_found(text: str, numbers: dict[Any, int], theirs: np.ndarray) -> int:
    is_drum, instants = plainly_read(text)
    most = 0
    for key in range(1 if is_drum else 12):
        runs = np.zeros(len(theirs) + 1, np.int64)  # notes of the run that ends at each of their instants
        for begun, wait, notes in instants:
            moved = begun if is_drum else frozenset((pitch + key) % 12 for pitch in begun)
            is_same = theirs == numbers.get((is_drum, moved, wait), -2)
            runs[1:] = np.where(is_same, runs[:-1] + notes, 0)
            most = max(most, int(runs.max()))
    return most


def alone(function: Callable[..., dict[str, float]], *args: Any) -> dict[str, float]:
    """Call a function in a process of its own, and measure it."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_measured, function, *args).result()


def _measured(function: Callable[..., dict[str, float]], *args: Any) -> dict[str, float]:
    start, cpu = time.perf_counter(), time.process_time()
    result = function(*args)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MIB_OF_RSS
    return result | {"wall": seconds, "cpu": cpu, "peak": peak}


def main(args: Args) -> None:
    if language(args.root) != TRACKS:
        again = 'make dataset ARGS="--layout track --encoding interval"'
        raise UserError(f"this asks about documents of tracks; {args.root} has others; make them with: {again}")
    row = alone(read, args.root)
    print(f"{row['notes'] / 1e6:.2f} M training notes\n")
    print("| in one process | wall s | CPU s | peak MiB | M instants | blocks | index MB |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    print(f"| read documents | {row['wall']:.1f} | {row['cpu']:.1f} | {row['peak']:.0f} | | | |")
    for times in dict.fromkeys((1, args.growth)):
        row = alone(build, args.root, times)
        name = "and make the index" if times == 1 else f"the same {times} times over"
        size = f"{row['moments'] / 1e6:.2f} | {row['blocks']:.0f} | {row['size'] / 1e6:.1f}"
        print(f"| {name} | {row['wall']:.1f} | {row['cpu']:.1f} | {row['peak']:.0f} | {size} |", flush=True)

    print("\n| asked about | takes | median ms | most ms | peak MiB | median notes found | found whole |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    sorts = (("cut", f"held-out, {args.notes} notes"), ("held", "held-out, whole"), ("copied", "training songs, moved"))
    for sort, name in sorts:
        row = alone(ask, args.root, sort, args.takes, args.notes)
        times = f"{row['median'] * 1e3:.1f} | {row['most'] * 1e3:.1f} | {row['peak']:.0f}"
        print(f"| {name} | {row['takes']} | {times} | {row['notes']:.1f} | {row['whole']} |", flush=True)

    row = alone(plain, args.root, args.plain_songs, args.plain_takes, args.notes // 5)
    print(f"\nOver {row['instants'] / 1e6:.2f} M instants, {row['takes']} takes of {args.notes // 5} notes:")
    print(f"plain {row['plain']:.2f} s, meter {row['meter']:.3f} s, {row['plain'] / row['meter']:.0f} times;", end=" ")
    print(f"the same number of notes for {row['same']} of {row['takes']}")
    sys.exit(row["same"] != row["takes"])


def held_out(root: Path, documents: int, notes: int = 0) -> Iterator[str]:
    """So many held-out documents, or all if they are fewer, drawn by a hash of their names; cut behind the instant that
    has the note of this number, and shorter ones left out."""
    meta = read_json(root / "train" / "meta.json")
    split = Split.of(meta)
    chosen = [song for song in songs(root) if split.is_val(song)]
    drawn = sorted(
        (hashlib.sha256(f"{song.name}_{track}".encode()).digest(), number, track)
        for number, song in enumerate(chosen)
        for track in range(song.tracks)
    )
    for _, number, track in drawn:
        if not documents:
            return
        ((_, texts),) = read_songs(root, [chosen[number]])
        if text := first_notes(texts[track], notes):
            documents -= 1
            yield text


if __name__ == "__main__":
    main(parse_arguments(Args, __doc__))
