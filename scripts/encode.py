"""Print a MIDI file as text: one document for the whole song, or one per track, an empty line between documents.

Example: python scripts/encode.py song.mid --layout track > song.txt
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from midigpt.files import parse_arguments
from midigpt.language import Language, encode
from midigpt.midi import load_midi
from midigpt.normal import Layout


@dataclass(frozen=True)
class Args:
    file: tyro.conf.Positional[Path]
    """The MIDI file."""
    layout: Layout = Language().layout
    """A document for the whole song, or one for each track."""
    encoding: str = Language().encoding
    """How documents' lines are written: a module of midigpt/encodings."""


def main(args: Args) -> None:
    language = Language(args.encoding, args.layout)
    documents = encode(load_midi(args.file), language=language)
    sys.stdout.buffer.write("\n".join(document.text for document in documents).encode("utf-8"))


if __name__ == "__main__":
    main(parse_arguments(Args, __doc__))
