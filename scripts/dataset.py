"""Convert the indexed MIDI files to text: one document per track, data/NAME_N.txt.

Only what is not converted yet is; Ctrl-C is harmless, the same command goes on.

Example: python scripts/dataset.py --limit 100 --workers 4
"""

import os
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from midigpt.dataset import make_dataset
from midigpt.files import UserError, parse_arguments


@dataclass(frozen=True)
class Args:
    root: Path = Path()
    """The working folder."""
    limit: int | None = None
    """Convert at most this many more files."""
    workers: int = os.cpu_count() or 1
    """Worker processes."""


def main(args: Args) -> None:
    start = time.perf_counter()
    summary = make_dataset(args.root, args.limit, args.workers)
    seconds = time.perf_counter() - start
    refused = sum(summary.refused.values())
    for reason, files in _grouped(summary.refused).most_common(10):
        print(f"  refused {files}: {reason}")
    if refused and not summary.converted and not any((args.root / "data").glob("*.txt")):
        raise UserError(f"none of the {refused} files could be converted; nothing is in {args.root / 'data'}")
    print(
        f"dataset: {summary.converted} files to {summary.documents} documents with {summary.notes} notes,"
        f" {refused} refused, {summary.removed} removed, {summary.left} left; {seconds:.1f} s"
    )


def _grouped(reasons: Counter[str]) -> Counter[str]:
    """Reasons without what differs from file to file, which stands in brackets."""
    grouped = Counter[str]()
    for reason, files in reasons.items():
        grouped[reason.partition(" (")[0]] += files
    return grouped


if __name__ == "__main__":
    main(parse_arguments(Args, __doc__))
