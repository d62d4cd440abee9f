"""Turn documents, as scripts/encode.py prints them, into one MIDI file with a track for each of their parts.

Example: python scripts/decode.py song.txt -o song.mid
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from midigpt.files import UserError, parse_arguments
from midigpt.header import LanguageError, split_documents
from midigpt.language import Language, decode
from midigpt.midi import write_midi
from midigpt.midi_bytes import MidiError
from midigpt.normal import Layout


@dataclass(frozen=True)
class Args:
    file: tyro.conf.Positional[Path]
    """The text: documents with an empty line between them."""
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """The MIDI file to write; one that is there is replaced."""
    layout: Layout = Language().layout
    """What encode.py was told: a document is a track, or a whole song."""
    encoding: str = Language().encoding
    """What encode.py was told: a module of midigpt/encodings."""


def main(args: Args) -> None:
    language = Language(args.encoding, args.layout)
    try:
        documents = split_documents(args.file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{args.file} can't be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise UserError(f"{args.file} is not text; this command reads what encode.py prints") from None
    try:
        score = decode(documents, language)
        if not score.notes:
            raise UserError(f"{args.file} has no notes; nothing was written")
        write_midi(score, args.out)
    except (LanguageError, MidiError) as error:
        raise UserError(f"{args.file}: {error}") from None
    print(f"decode: {len(score.tracks)} tracks, {score.notes} notes in {args.out}")


if __name__ == "__main__":
    main(parse_arguments(Args, __doc__))
