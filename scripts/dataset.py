"""Convert the indexed MIDI files to text: one document per song, data/NAME.txt, or per track, data/NAME_N.txt.

Only what is not converted yet is; Ctrl-C is harmless, the same command goes on. Another language or other filters
than the last time's convert the files anew.

Example: python scripts/dataset.py --no-drums --min-notes 20
"""

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from midigpt.dataset import DEFAULT, Options, Summary, make_dataset
from midigpt.executors import Executor
from midigpt.files import UserError, locked, parse_arguments
from midigpt.filters import Filters
from midigpt.normal import Layout
from midigpt.originals import Dedupe

SHOWN = 3  # refused files by name, of each kind


@dataclass(frozen=True)
class Args:
    root: Path = Path()
    """The working folder."""
    limit: int | None = None
    """Convert at most this many more files."""
    dedupe: Dedupe = "music"
    """Train on one file of those with the same notes (exact), or with the same music in whatever key and tempo,
    also shortened or changed a little (music); off: on all."""
    instruments: str = ""
    """Only these General MIDI families or programs (0..127), with commas between: guitar,bass,drums,0."""
    drums: bool = True
    """Keep the drums."""
    min_notes: int = 1
    """Leave out tracks with fewer notes."""
    max_seconds: float = 0
    """Leave out files that last longer; 0 is any length."""
    merge: bool = False
    """Make one track of all pitched tracks of a file."""
    layout: Layout | None = None
    """A document for the whole song (usual), or one for each track; from now on."""
    encoding: str | None = None
    """How documents' lines are written: a module of midigpt/encodings, such as anchored (usual); from now on."""
    data: str = ""
    """Another place for data/, a path or URL (s3://bucket/folder), remembered from now on."""
    shards: tyro.conf.FlagCreatePairsOff[bool] = False
    """Put the documents of many files into one; from now on. In a store it is always so."""
    shard_files: int = DEFAULT.shard_files
    """Files to a shard, of those that are not in one yet."""
    executor: Literal["serial", "process", "dask"] = "process"
    """Work in this process, in worker processes, or on a Dask cluster."""
    workers: int = os.cpu_count() or 1
    """Worker processes."""
    scheduler: str = ""
    """The Dask scheduler's address: tcp://HOST:8786."""
    time_limit: float = 60
    """Seconds that a file may take before it is given up; 0 is no limit."""
    memory_limit: float = 2
    """Gigabytes that a worker process may take; 0 is no limit."""


def main(args: Args) -> None:
    for name in ("min_notes", "max_seconds", "time_limit", "memory_limit"):
        if not 0 <= getattr(args, name) < 1e6:
            raise UserError(f"--{name.replace('_', '-')} must be a number from 0 to a million")
    if min(args.workers, args.shard_files, 1 if args.limit is None else args.limit) < 1:
        raise UserError("--workers, --shard-files and --limit must be at least 1")
    options = Options(
        limit=args.limit,
        data=args.data,
        layout=args.layout,
        encoding=args.encoding,
        shards=args.shards,
        shard_files=args.shard_files,
        dedupe=args.dedupe,
        filters=Filters(
            instruments=args.instruments.lower().replace(", ", ",").replace(" ", "-"),
            drums=args.drums,
            min_notes=args.min_notes,
            max_seconds=args.max_seconds,
            merge=args.merge,
        ),
        executor=Executor(args.executor, args.workers, args.memory_limit, args.scheduler),
        time_limit=args.time_limit,
    )
    start = time.perf_counter()
    with locked(args.root):
        summary = make_dataset(args.root, options)
    report(summary, args.dedupe, time.perf_counter() - start)


def report(summary: Summary, dedupe: Dedupe, seconds: float) -> None:
    if summary.before:
        last = ", ".join(f"{key} {value or 'none'}" for key, value in summary.before.items())
        print(f"  all files are converted anew: the last time it was {last}")
    by_kind: dict[str, list[str]] = {}
    for path, reason in summary.refused.items():
        by_kind.setdefault(reason.partition(" (")[0], []).append(path)
    for kind, files in sorted(by_kind.items(), key=lambda item: -len(item[1])):
        more = f" and {len(files) - SHOWN} more" if len(files) > SHOWN else ""
        print(f"  refused {len(files)}: {kind}: {', '.join(files[:SHOWN])}{more}")
    if summary.rescued:
        print(f"  damaged, read as far as whole: {summary.rescued}; make doctor names them")
    if summary.filtered:
        print(f"  left out by the filters: {summary.filtered}")
    if summary.songs < summary.files:
        print(f"  {summary.files} files hold {summary.songs} different songs;", end=" ")
        print(f"left out as duplicates: {summary.duplicates} (--dedupe {dedupe})")
    if summary.filtered and not summary.files and not summary.left:
        raise UserError("no file is left by these filters; with others, or none, the same files are converted again")
    if summary.refused and not summary.files and not summary.left:
        raise UserError(f"no file could be converted: all {len(summary.refused)} are refused")
    print(
        f"dataset: {summary.converted} files converted, {summary.removed} removed, {summary.left} left; in all"
        f" {summary.files} files in {summary.documents} documents with {summary.notes} notes,"
        f" {len(summary.refused)} refused; {seconds:.1f} s"
    )


if __name__ == "__main__":
    main(parse_arguments(Args, __doc__))
