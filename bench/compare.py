"""Which language is best? Bits per note of held-out pieces in every way of writing, at equal compute.

    make compare                                          the encodings, on your raw_data/, in minutes to hours
    python bench/compare.py --corpora FOLDER FOLDER --study encodings curves --work compare --seeds 2
    python bench/compare.py --corpora FOLDER --device cuda --workers 1 --pflop 200 --n-layer 6 --n-head 6 --n-embd 384

Each corpus is a folder of MIDI files. Its duplicates are left out and a tenth of its songs is held out, the same ones
for every way; MidiTok is among the ways where it is installed. Each run trains the same model from random weights on
what a way makes of the training pieces: for the same number of arithmetic operations (--pflop; a run with another
vocabulary makes other numbers of steps), or, in the study "notes", for the same number of notes. The last weights,
averaged as a run's always are, are evaluated; nothing is stopped early. What is finished is kept in --work and not made
again, so the same command goes on after an interruption.
"""

import hashlib
import json
import os
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import mean, stdev
from typing import Any, Literal

import numpy as np
from compare_data import (
    PEERS,
    SWITCHES,
    Piece,
    Way,
    copies,
    drawn,
    index_corpus,
    load_pieces,
    pack_peer,
    pack_text,
)
from compare_text import SWITCHES as TEXT_SWITCHES

from midigpt import workers
from midigpt.files import UserError, parse_arguments, read_json, replacing, write_json, write_text
from midigpt.normal import normalise
from midigpt.score import Score, moved
from midigpt.train_data import MOVES

Study = Literal["encodings", "switches", "vocabulary", "positions", "notes", "curves", "blocks", "header"]
CURVE = (10, 30, 100, 300)  # training pieces
SETTINGS = ("pflop", "notes", "val_pieces", "n_layer", "n_head", "n_embd")  # that a result depends on


@dataclass(frozen=True)
class Args:
    root: Path = Path()
    """The working folder."""
    corpora: tuple[Path, ...] = ()
    """Folders of MIDI files (default: raw_data/ of the working folder)."""
    study: tuple[Study, ...] = ("encodings",)
    """What to compare."""
    work: Path | None = None
    """Where runs and tables are kept (default: cache/compare/ of the working folder)."""
    pflop: float = 0.01
    """Training compute of a run, in 10^15 operations."""
    notes: int = 500_000
    """Notes that a run of the study "notes" sees."""
    seeds: int = 1
    pieces: int = 300
    """Training pieces of a corpus at most."""
    val_pieces: int = 20
    """Held-out pieces at most."""
    n_layer: int = 3
    n_head: int = 4
    n_embd: int = 128
    takes: int = 20
    """Takes that each model draws without a grammar, to see how many can be read."""
    workers: int = os.cpu_count() or 1
    """Runs at the same time; on a GPU 1."""
    device: str = "cpu"
    only: tuple[str, ...] = ()
    """Only the ways of these names."""


@dataclass(frozen=True)
class Run:
    """A model to be trained."""

    study: str
    corpus: Path
    way: Way
    pieces: int
    seed: int
    equal: str = "compute"  # or "notes"

    def key(self, args: Args) -> str:
        same = {name: str(getattr(args, name)) for name in SETTINGS}
        what = [self.corpus.name, asdict(self.way) | self.way.data, self.pieces, self.seed, self.equal, same]
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]


# --- what is compared ------------------------------------------------------------------------------------

ANCHORED = Way("anchored intervals, 12 keys", keys=12)
ONE_KEY = replace(ANCHORED, name="anchored intervals", keys=1)
ABSOLUTE = Way("absolute", "absolute")
PEER_VOCABULARY = 2048  # MidiTok has 1,086 tokens before it merges any
REMI = Way("MidiTok REMI without merges", "remi", vocab_size=0, positions="index")
ENCODINGS = [
    ANCHORED,
    replace(ANCHORED, name="anchored intervals, 12 keys, tracks", layout="track"),
    ONE_KEY,
    Way("intervals", "interval"),
    Way("intervals, tracks", "interval", "track"),
    ABSOLUTE,
    replace(ABSOLUTE, name="absolute, tracks", layout="track"),
    replace(ABSOLUTE, name="absolute, 12 keys", keys=12),
    Way("index score (B)", "indexscore"),
    Way("characters (D)", "characters"),
    Way("messages (E)", "messages"),
    Way("events (C)", "events"),
    *(Way(f"MidiTok {peer.upper()}", peer, vocab_size=PEER_VOCABULARY, positions="index") for peer in PEERS),
    REMI,
    replace(REMI, name="MidiTok REMI without merges, 12 keys", keys=12),
]
POSITIONS = [
    replace(way, name=f"{way.name}, by {kind}", positions=kind)
    for way in (ONE_KEY, ABSOLUTE)
    for kind in ("time", "index")
]
POSITIONS += [replace(ONE_KEY, name=f"anchored intervals, by time, {n} a step", a_step=n) for n in (1, 16)]
SIZES = [
    replace(ANCHORED, name=f"vocabulary {size or 'without merges'}", vocab_size=size)
    for size in (0, 512, 1024, 2048, 4096, 16384)
]
MAIN = ("anchored intervals, 12 keys", "anchored intervals", "absolute", "absolute, 12 keys", REMI.name)
WAYS: dict[str, list[Way]] = {
    "encodings": ENCODINGS,
    "switches": [ONE_KEY, *(replace(ONE_KEY, name=name, switch=name) for name in (*TEXT_SWITCHES, *SWITCHES))],
    "vocabulary": SIZES,
    "positions": POSITIONS,
    "notes": [way for way in ENCODINGS if way.name in MAIN],
    "curves": [way for way in ENCODINGS if way.name in (*MAIN, f"{REMI.name}, 12 keys")],
    "header": [replace(ANCHORED, name=f"fields dropped: {share:.0%}", drop=share) for share in (0.0, 0.25, 0.5, 1.0)],
    "blocks": [replace(ANCHORED, name=f"blocks of {size}", block_size=size) for size in (128, 256, 512, 1024)],
}


def planned(args: Args) -> Iterator[Run]:
    """All runs, in an order in which the tables fill up evenly."""
    for seed in range(args.seeds):
        for study in args.study:
            for corpus in args.corpora:
                for way in WAYS[study]:
                    sizes = [size for size in CURVE if size < args.pieces] if study == "curves" else []
                    for pieces in [*sizes, args.pieces]:
                        is_there = not way.is_peer or find_spec("miditok") is not None
                        if is_there and (not args.only or way.name in args.only):
                            yield Run(study, corpus, way, pieces, seed, "notes" if study == "notes" else "compute")


# --- data ------------------------------------------------------------------------------------------------


def normal_pieces(way: Way, pieces: list[Piece]) -> list[tuple[Piece, Score]]:
    """Pieces and their normal form, after what the way's switch does to the notes."""
    change = SWITCHES.get(way.switch, lambda score: score)
    return [(piece, normalise(change(piece.score), way.layout)) for piece in pieces]


def prepare(args: Args, run: Run) -> Path:
    """The packed data of a run, made unless it is there: an .npz file, and beside it the tokenizer."""
    what = [run.corpus.name, run.way.data, run.pieces, args.val_pieces]
    path = args.work / "data" / f"{hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]}.npz"
    if path.exists():
        return path
    train, val = load_pieces(args.work / "corpora" / run.corpus.name, run.pieces, args.val_pieces)
    if not train or not val:
        raise UserError(f"{run.corpus} has too few songs to hold some out")
    held_out = normal_pieces(run.way, val)
    named = [(piece.name, score) for piece, score in held_out]
    sides = {
        "train": [
            (piece.name, score)
            for piece in train
            for copy in (copies(piece, run.way.keys) if run.way.is_peer else [piece.score])  # ours are made of the text
            for _, score in normal_pieces(run.way, [replace(piece, score=copy)])
        ],
        "val": named,
        "moved": [(name, moved(score, drawn([by for by in MOVES if by], "moved", name))) for name, score in named],
    }
    arrays, tokenizer = (pack_peer if run.way.is_peer else pack_text)(run.way, sides)
    notes = {f"{side}_notes": np.array(sum(score.notes for _, score in pieces)) for side, pieces in sides.items()}
    notes["train_notes"] //= run.way.keys if run.way.is_peer else 1  # those of one key
    seconds = np.array(sum(score.end / score.ticks_per_beat * 60 / score.tempo_bpm for _, score in named))
    path.parent.mkdir(parents=True, exist_ok=True)
    size = tokenizer.vocab_size if run.way.is_peer else tokenizer.get_vocab_size()
    if not run.way.is_peer:
        write_text(path.with_suffix(".tokenizer.json"), tokenizer.to_str())
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays, **notes, seconds=seconds, vocab_size=np.array(size))
    return path


# --- runs ------------------------------------------------------------------------------------------------


def perform(run: Run, args: Args) -> dict[str, Any]:
    """Train and evaluate one model; the result is kept."""
    result = args.work / "runs" / f"{run.key(args)}.json"
    if result.exists():
        return read_json(result)
    from compare_train import train_and_measure

    found = train_and_measure(run.way, prepare(args, run), run.seed, run.equal, args)
    row = {"study": run.study, "corpus": run.corpus.name, "way": asdict(run.way), "pieces": run.pieces}
    row |= {"seed": run.seed, "equal": run.equal, **found}
    result.parent.mkdir(parents=True, exist_ok=True)
    write_json(result, row)
    return row


# --- tables ----------------------------------------------------------------------------------------------

COLUMNS = {
    "tokens_per_note": "tokens per note",
    "bits_per_note": "bits per note",
    "moved_bits_per_note": "moved",
    "bits_per_second": "bits per second",
    "valid": "valid takes",
    "notes_per_second": "notes/s",
    "steps": "steps",
}


def spread(values: list[float]) -> str:
    """The mean and, of several, the standard deviation."""
    if len(values) < 2:
        return f"{values[0]:.2f}"
    return f"{mean(values):.2f} ± {stdev(values):.2f}"


def tables(args: Args, rows: list[tuple[Run, dict[str, Any]]]) -> str:
    """Markdown: a table for each study and corpus, a line for each way and number of pieces."""
    grouped: dict[tuple[str, str], dict[tuple[str, int], list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for run, row in rows:
        grouped[run.study, run.corpus.name][run.way.name, run.pieces].append(row)
    out = []
    for (study, corpus), lines in grouped.items():
        first = next(iter(lines.values()))[0]
        out += [f"\n### {study}, {corpus}: {first['val_notes']:,} notes held out\n"]
        out += ["| | pieces | " + " | ".join(COLUMNS.values()) + " |", "|---|---:|" + "---:|" * len(COLUMNS)]
        for (name, pieces), some in lines.items():
            cells = []
            for column in COLUMNS:
                values = [row[column] for row in some if row.get(column) is not None]
                cells.append(spread(values) if "bits" in column and values else f"{mean(values):.4g}" if values else "")
            out.append(f"| {name} | {min(pieces, some[0]['train_pieces'])} | " + " | ".join(cells) + " |")
        parts = [row["parts"] for some in lines.values() for row in some if row.get("parts")]
        if parts:
            said = ", ".join(f"{part} {mean(row[part] for row in parts):.2f}" for part in parts[0])
            out.append(f"\nBits per note by what they tell, without merges: {said}.")
    return "\n".join(out) + "\n"


def main(args: Args) -> None:
    corpora = args.corpora or (args.root / "raw_data",)
    args = replace(args, corpora=corpora, work=args.work or args.root / "cache" / "compare")
    if find_spec("miditok") is None:
        print("compare: MidiTok is not installed, so it is left out; it comes with: pip install -e '.[compare]'")
    runs = list({run.key(args): run for run in planned(args)}.values())
    for corpus in args.corpora:
        index_corpus(corpus, args.work / "corpora" / corpus.name)
    rows: list[tuple[Run, dict[str, Any]]] = []
    begun = time.perf_counter()
    for run, row in workers.run(partial(perform, args=args), runs, args.workers):
        if isinstance(row, workers.Died):
            raise UserError(f"a worker died in {run} ({row}); run the same command again")
        rows.append((run, row))
        minutes = (time.perf_counter() - begun) / 60
        print(
            f"{len(rows)}/{len(runs)} {run.study} {run.corpus.name} {run.way.name} {run.pieces} seed {run.seed}:"
            f" {row['bits_per_note']:.3f} bits per note, moved {row['moved_bits_per_note']:.3f}; {minutes:.0f} min",
            flush=True,
        )
    rows = [(run, perform(run, args)) for run in planned(args)]
    table = tables(args, rows)
    write_text(args.work / "table.md", table)
    print(table)


if __name__ == "__main__":
    main(parse_arguments(Args, __doc__))
