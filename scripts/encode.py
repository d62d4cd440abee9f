"""Print a MIDI file in the interval language: one document per track, an empty line between documents.

Example: python scripts/encode.py song.mid > song.txt
"""

from dataclasses import dataclass
from pathlib import Path

import tyro

from midigpt.files import parse_arguments
from midigpt.language import encode
from midigpt.midi import load_midi


@dataclass(frozen=True)
class Args:
    file: tyro.conf.Positional[Path]
    """The MIDI file."""


def main(args: Args) -> None:
    score = load_midi(args.file)
    print("\n".join(document.text for document in encode(score)), end="")


if __name__ == "__main__":
    main(parse_arguments(Args, __doc__))
