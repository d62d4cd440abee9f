"""Convert the indexed MIDI files to text: one document per track, data/NAME_N.txt.

Only what is not converted yet is; Ctrl-C is harmless, the same command goes on.

Example: python scripts/dataset.py --limit 100 --workers 4
"""

import os
import time
from dataclasses import dataclass
from pathlib import Path

from midigpt.dataset import make_dataset
from midigpt.files import UserError, parse_arguments

SHOWN = 3  # refused files by name, of each kind


@dataclass(frozen=True)
class Args:
    root: Path = Path()
    """The working folder."""
    limit: int | None = None
    """Convert at most this many more files."""
    workers: int = os.cpu_count() or 1
    """Worker processes."""


def main(args: Args) -> None:
    if args.workers < 1 or (args.limit is not None and args.limit < 1):
        raise UserError("--workers and --limit must be at least 1")
    start = time.perf_counter()
    summary = make_dataset(args.root, args.limit, args.workers)
    seconds = time.perf_counter() - start
    by_kind: dict[str, list[str]] = {}
    for path, reason in summary.refused.items():
        by_kind.setdefault(reason.partition(" (")[0], []).append(path)
    for kind, files in sorted(by_kind.items(), key=lambda item: -len(item[1])):
        more = f" and {len(files) - SHOWN} more" if len(files) > SHOWN else ""
        print(f"  refused {len(files)}: {kind}: {', '.join(files[:SHOWN])}{more}")
    if summary.refused and not summary.files and not summary.left:
        raise UserError(f"no file could be converted: all {len(summary.refused)} are refused")
    print(
        f"dataset: {summary.converted} files converted, {summary.removed} removed, {summary.left} left; in all"
        f" {summary.files} files in {summary.documents} documents with {summary.notes} notes,"
        f" {len(summary.refused)} refused; {seconds:.1f} s"
    )


if __name__ == "__main__":
    main(parse_arguments(Args, __doc__))
