"""How fast documents become tokens: a plain `tokenizer.encode` of each, and midigpt's LineEncoder, in the same run.

Example: python bench/pack.py --root FOLDER --growth 4

FOLDER is a working folder with data/ and cache/tokenizer.json; nothing is written there. Every row is a process
of its own, so that its peak memory is its own too. Both ways read the same documents by the same function; the
row "read" is what that costs. Both give all tokens to SHA-256, and the sums are compared.
"""

import hashlib
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import chain, repeat
from pathlib import Path

import numpy as np

from midigpt.documents import Split, read_songs
from midigpt.files import parse_arguments
from midigpt.index import language, songs
from midigpt.tokenizer import DTYPE, LINES_AT_ONCE, LineEncoder, load_tokenizer
from midigpt.train_data import make_train_bin

MIB_OF_RSS = 2**20 if sys.platform == "darwin" else 2**10  # in units of ru_maxrss


@dataclass(frozen=True)
class Args:
    root: Path = Path()
    """The working folder."""
    growth: int = 1
    """Also pack all documents this many times over, to see whether memory grows."""


@dataclass(frozen=True)
class Row:
    """What a process measured."""

    wall: float  # seconds
    cpu: float  # seconds, of all threads
    peak: float  # MiB
    characters: int
    lines: int
    sha256: str  # of the tokens


def read(texts: Iterator[str], root: Path) -> Iterator[bytes]:
    for _ in texts:
        yield b""


def plain(texts: Iterator[str], root: Path) -> Iterator[bytes]:
    tokenizer, _ = load_tokenizer(root)
    for text in texts:
        yield np.array(tokenizer.encode(text).ids, DTYPE).tobytes()


def by_lines(texts: Iterator[str], root: Path) -> Iterator[bytes]:
    tokenizer, _ = load_tokenizer(root)
    encoder = LineEncoder(tokenizer, language(root))
    lines: list[str] = []
    for text in texts:
        lines += text.splitlines(keepends=True)
        if len(lines) >= LINES_AT_ONCE:
            yield encoder(lines)[0].tobytes()
            lines = []
    yield encoder(lines)[0].tobytes()


def in_workers(root: Path, workers: int) -> Row:
    """The whole of train-bin, with the start of its workers; into a folder that goes again."""
    with tempfile.TemporaryDirectory() as scratch:
        for name in ("data", "cache"):
            Path(scratch, name).symlink_to((root / name).resolve())
        _, meta = load_tokenizer(root)
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        wall, cpu = time.perf_counter(), time.process_time()
        make_train_bin(Path(scratch), Split.of(meta), workers, keys=1)
        wall = time.perf_counter() - wall
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = time.process_time() - cpu + used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime
    return Row(wall, cpu, 0, 0, 0, "")


def measure(way: Callable[[Iterator[str], Path], Iterator[bytes]], root: Path, times: int, threads: int) -> Row:
    """Run one way over all documents, `times` times over."""
    os.environ["RAYON_NUM_THREADS"] = str(threads)  # read when the tokenizer first works
    characters = lines = 0

    def texts() -> Iterator[str]:
        nonlocal characters, lines
        everything = chain.from_iterable(songs(root) for _ in repeat(None, times))
        for _, documents in read_songs(root, everything):
            for text in documents:
                characters += len(text)
                lines += text.count("\n")
                yield text

    wall, cpu, sha256 = time.perf_counter(), time.process_time(), hashlib.sha256()
    for tokens in way(texts(), root):
        sha256.update(tokens)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MIB_OF_RSS
    return Row(wall, cpu, peak, characters, lines, sha256.hexdigest())


def main(args: Args) -> None:
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    runs = [("read", read, 1, 1), ("plain", plain, 1, 1), ("by lines, 1 thread", by_lines, 1, 1)]
    runs += [(f"by lines, {threads} threads", by_lines, 1, threads)] if threads > 1 else []
    runs += [(f"  the same {args.growth} times over", by_lines, args.growth, threads)] if args.growth > 1 else []
    rows = {}
    print("| | wall s | CPU s | MB/s | M lines/s | peak MiB | times plain |\n|---|---:|---:|---:|---:|---:|---:|")
    for name, way, times, number in runs:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            row = rows[name] = pool.submit(measure, way, args.root, times, number).result()
        ratio = f"{rows['plain'].wall * times / row.wall:.1f}" if "plain" in rows else ""
        speed = f"{row.characters / row.wall / 1e6:.1f} | {row.lines / row.wall / 1e6:.2f}"
        print(f"| {name} | {row.wall:.1f} | {row.cpu:.1f} | {speed} | {row.peak:.0f} | {ratio} |", flush=True)
    if threads > 1:
        row = in_workers(args.root, threads)
        ratio = f"{rows['plain'].wall / row.wall:.1f}"
        print(f"| train-bin, {threads} workers | {row.wall:.1f} | {row.cpu:.1f} | | | | {ratio} |")
    sums = {row.sha256 for name, row in rows.items() if "by lines" in name or name == "plain"}
    documents = f"{rows['plain'].lines} lines, {rows['plain'].characters} characters"
    print(f"\n{documents}; the tokens are {'identical' if len(sums) == 1 else 'DIFFERENT'}")
    sys.exit(len(sums) != 1)


if __name__ == "__main__":
    main(parse_arguments(Args, __doc__))
