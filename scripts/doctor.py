"""Say what is in a folder of MIDI files and what to do about it: here in short, in cache/doctor.html with pictures.

It reads the index and the files, and changes neither.

Example: python scripts/doctor.py --root my_music --sample 500
"""

import os
import time
from dataclasses import dataclass
from pathlib import Path

from midigpt.files import UserError, parse_arguments

SHOWN = 5  # strange files by name; the page has more


@dataclass(frozen=True)
class Args:
    root: Path = Path()
    """The working folder."""
    sample: int = 2000
    """Measure the music of at most this many files, drawn by chance."""
    workers: int = os.cpu_count() or 1
    """Worker processes."""


def main(args: Args) -> None:
    if args.workers < 1 or args.sample < 1:
        raise UserError("--workers and --sample must be at least 1")
    from midigpt.doctor import examine, examples
    from midigpt.doctor_advice import advise, strangest
    from midigpt.doctor_page import basis, headline, render, verdicts
    from midigpt.files import printable, write_text

    start = time.perf_counter()
    examination = examine(args.root, args.sample, args.workers)
    advice, strange = advise(examination, args.root), strangest(examination.music)
    shown = {file.path: file.shown for file in examination.files}
    page = args.root / "cache" / "doctor.html"
    write_text(page, render(examination, advice, strange, printable(str(args.root.resolve()))))

    for verdict in verdicts(examination):
        named = examples(verdict.files) if verdict.is_named else ""
        print(f"  {'  ' * verdict.is_detail + verdict.name:<44} {len(verdict.files):>8,}  {named}".rstrip())
    print("  " + "; ".join(f"{figure} {what}" for figure, what in headline(examination)[2:]))
    print(f"  {basis(examination)}")
    for title, lines in {
        "What to do:": [a.text for a in advice],
        "The strangest files:": [f"{shown[s.path]}: {'; '.join(s.why)}" for s in strange[:SHOWN]],
    }.items():
        if lines:
            print("\n".join([title, *(f"  - {line}" for line in lines)]))
    print(f"doctor: {page}; {time.perf_counter() - start:.1f} s")


if __name__ == "__main__":
    main(parse_arguments(Args, __doc__))
