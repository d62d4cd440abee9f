"""List the MIDI files below raw_data/ in cache/index.sqlite.

Example: python scripts/index.py --root my_music
"""

from dataclasses import dataclass
from pathlib import Path

from midigpt.files import locked, parse_arguments
from midigpt.index import index_files


@dataclass(frozen=True)
class Args:
    root: Path = Path()
    """The working folder; MIDI files lie in its raw_data/."""
    raw_data: str = ""
    """Another place for raw_data/, a path or URL (s3://bucket/folder), remembered from now on."""


def main(args: Args) -> None:
    with locked(args.root):
        count = index_files(args.root, args.raw_data)
    total = count["new"] + count["changed"] + count["same"]
    print(
        f"index: {total} MIDI files ({count['new']} new, {count['changed']} changed, {count['removed']} removed)"
        f" in {args.root / 'cache' / 'index.sqlite'}"
    )


if __name__ == "__main__":
    main(parse_arguments(Args, __doc__))
