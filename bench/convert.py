"""MIDI file -> text: ours beside MidiTok's REMI and mido's bare parsing, reading and writing files included.

Each does the same files in one process of its own; the figure is notes per CPU second (user and system), the
best of `--rounds`. Ours is what `make dataset` does with a file: read, encode, fingerprint, write the documents.
MidiTok tokenises each track with REMI in its default configuration and writes the ids as JSON, as its own
dataset tools do. mido only parses: it writes nothing, which favours it.

Example: python bench/convert.py rockpop:300 pop909
"""

import multiprocessing
import random
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro


@dataclass(frozen=True)
class Args:
    corpora: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Folders of MIDI files, each FOLDER or FOLDER:N for N files drawn from it."""
    rounds: int = 3
    """How often each is measured; the best counts."""


def ours(paths: list[Path], out: Path) -> Callable[[], None]:
    from midigpt.convert import Chunk, Job, convert_chunk
    from midigpt.dataset import CHUNK_FILES
    from midigpt.filters import Filters
    from midigpt.storage import Folder

    raw_data, data = Folder("/"), Folder(str(out))
    jobs = [Job(str(path)[1:], str(number)) for number, path in enumerate(paths)]
    chunks = [Chunk(tuple(jobs[at : at + CHUNK_FILES])) for at in range(0, len(jobs), CHUNK_FILES)]

    def convert() -> None:
        with data.being_written():
            for chunk in chunks:
                convert_chunk(chunk, raw_data, data, Filters())

    return convert


def miditok(paths: list[Path], out: Path) -> Callable[[], None]:
    from miditok import REMI

    tokenizer = REMI()

    def convert() -> None:
        for number, path in enumerate(paths):
            tokenizer.save_tokens(tokenizer(path), out / f"{number}.json")

    return convert


def mido(paths: list[Path], out: Path) -> Callable[[], None]:
    import mido

    def parse() -> None:
        for path in paths:
            mido.MidiFile(path, clip=True)

    return parse


SCRATCH = next((folder for folder in ("/dev/shm",) if Path(folder).is_dir()), None)
WAYS = {"midigpt": ours, "MidiTok REMI": miditok, "mido, parsing only": mido}


def measure(way: str, paths: list[Path], out: Path) -> float:
    """CPU seconds."""
    out.mkdir()
    work = WAYS[way](paths, out)
    before = time.process_time()
    work()
    return time.process_time() - before


def main(args: Args) -> None:
    print(f"{'corpus':10} {'files':>6} {'notes':>10}  {'way':20} {'CPU s':>7} {'notes/CPU s':>12} {'ours is':>8}")
    # In memory, if the system has that: a disk's file system may charge a process for what others have deleted.
    with tempfile.TemporaryDirectory(dir=SCRATCH) as scratch:
        for corpus in args.corpora:
            folder, _, number = corpus.partition(":")
            paths = sorted(path.resolve() for path in Path(folder).rglob("*.mid"))
            random.Random(0).shuffle(paths)
            compare(Path(folder).name, paths[: int(number)] if number else paths, Path(scratch), args.rounds)


def compare(corpus: str, paths: list[Path], scratch: Path, rounds: int) -> None:
    notes = count_notes(paths)
    best: dict[str, float] = {}
    for number in range(rounds):
        for way in WAYS:
            with multiprocessing.get_context("spawn").Pool(1) as process:
                seconds = process.apply(measure, (way, paths, scratch / f"{corpus} {way} {number}"))
            best[way] = min(seconds, best.get(way, seconds))
    for way, seconds in best.items():
        print(
            f"{corpus:10} {len(paths):6} {notes:10}  {way:20} {seconds:7.2f} {notes / seconds:12,.0f}"
            f" {seconds / best['midigpt']:7.1f}x"
        )


def count_notes(paths: list[Path]) -> int:
    import symusic

    return sum(symusic.Score(path).note_num() for path in paths)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
