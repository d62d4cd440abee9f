"""The header of a document: the line in front that names program, tempo, meter and key.

All languages share it. docs/language.md is the specification.
"""

import math
import re
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

DEFAULT_KEY = 60  # the anchor where the header names none
ALPHABET = "# program=d0123456789tempo meter/key\n"

# The tempos a header can name, in beats per minute; none is further than 5 % from the next.
TEMPOS = (*range(20, 40), *range(40, 120, 2), *range(120, 240, 5), *range(240, 321, 10))

# The meters that a sampler asks for, or lets the model choose from; a file may have any.
METERS = tuple(f"{numerator}/{denominator}" for denominator in (2, 4, 8, 16) for numerator in range(1, 17))

_TEMPO_BORDERS = [math.sqrt(a * b) for a, b in pairwise(TEMPOS)]  # the middle by ratio

TEMPO_RANGE = range(4, 1000)  # of the reader; slower than 3.6 no MIDI file can be
_FIELD = re.compile(r"([a-z]+)=(\S+)")
_NUMBER = re.compile(r"0|[1-9]\d{0,2}")


class LanguageError(ValueError):
    """Text that is not in the language; the message names the line."""


def nearest_tempo(bpm: float) -> int:
    """The tempo of the fixed list that is nearest by ratio, as tempo is heard."""
    return TEMPOS[bisect_right(_TEMPO_BORDERS, bpm)]


@dataclass(frozen=True)
class Header:
    """The fields of a document's first line; None where it is silent."""

    program: int | None = None
    is_drum: bool = False
    tempo_bpm: int | None = None
    meter: tuple[int, int] | None = None
    key: int | None = None


def program_text(program: int | None, is_drum: bool) -> str:
    """A program as headers and part marks have it: its number, or "d" for drums; one that is not named is piano, 0."""
    return "d" if is_drum else str(program or 0)


def split_documents(text: str) -> list[str]:
    """Documents that an empty line separates."""
    return [part.strip("\n") + "\n" for part in re.split(r"\n\s*\n", text) if part.strip()]


def split_header(text: str) -> tuple[str, str]:
    """A document's header line, "#" where it has none, with its newline; and its lines."""
    if not text.startswith("#"):
        return "#\n", text
    header, _, body = text.partition("\n")
    return header + "\n", body


def keep_fields(header: str, is_kept: Callable[[str], bool]) -> str:
    """A header line with those of its fields whose name is to be kept."""
    mark, *fields = header.removesuffix("\n").split(" ")
    return " ".join([mark, *(field for field in fields if is_kept(field.partition("=")[0]))]) + "\n"


def read_header(text: str) -> Header:
    """The header of a document; an empty one where it has none."""
    if not text.startswith("#"):
        return Header()
    header = Header()
    seen = set()
    for word in text.partition("\n")[0][1:].split():
        match = _FIELD.fullmatch(word)
        name, value = match.groups() if match else (word, "")
        if name in seen:
            raise LanguageError(f"line 1: the header names {name} twice")
        seen.add(name)
        header = replace(header, **_read_field(word, name, value))
    return header


def _read_field(word: str, name: str, value: str) -> dict[str, Any]:
    number = int(value) if _NUMBER.fullmatch(value) else -1
    if name == "program" and value == "d":
        return {"is_drum": True}
    if name == "program" and 0 <= number < 128:
        return {"program": number}
    if name == "tempo" and number in TEMPO_RANGE:
        return {"tempo_bpm": number}
    if name == "key" and 0 <= number < 128:
        return {"key": number}
    if name == "meter" and (match := re.fullmatch(r"([1-9]\d{0,2})/(1|2|4|8|16|32|64|128)", value)):
        numerator, denominator = map(int, match.groups())
        if numerator < 256:
            return {"meter": (numerator, denominator)}
    raise LanguageError(
        f"line 1: the header field {word!r} is none of program=0..127 or d, tempo=4..999, meter=4/4, key=0..127"
    )


def shown(text: str) -> str:
    """A text as messages show it."""
    return repr(text if len(text) <= 40 else text[:40] + "...")
