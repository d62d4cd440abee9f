"""One Unicode character for each note, which says pitch, loudness and length, and one for the time until the next line.

    U+89217 U+91217 U+97217 U+E018      C4, E4 and G4 for one beat, 24 grid steps (here as code points, in text as such)
    U+8D20B U+E00C                      D4 for half a beat
    U+89205 U+E018                      C4 for a quarter of a beat, and a rest

A note is one of the 2 ** 20 characters above the basic plane: 128 pitches, 16 velocity bins, 512 LENGTHS. Times are
private characters of the basic plane: up to 4,095 grid steps are U+E000 and the steps; a longer wait has others in
front, U+F000 for 4,096 steps, U+F001 for twice as many, and so on. Times add up. No vocabulary has all these
characters: byte-pair encoding begins with their UTF-8 bytes, and makes frequent characters of them first.

Normal form: notes of a line, of each part, from low to high; a wait's characters from large to small, each at most
once; lines without notes only for silence at the beginning; the last line's time is its longest note's.

Lost beyond what normalising rounds: notes of more than 16 beats are up to an eighth shorter.
"""

import re
from dataclasses import replace
from functools import partial

import numpy as np

from midigpt.encodings import Row, Sheet, first_pitches
from midigpt.encodings._lines import Taken, check_first, document_ends, join_lines, read_notes
from midigpt.header import LanguageError, shown
from midigpt.normal import GRID, MAX_TICKS, velocity_of

VERSION = 1
ALPHABET = None

FIRST_NOTE = 0x10000
FIRST_TIME = 0xE000
EXACT = 16 * GRID  # notes up to this length have it; from there to a MIDI file's longest the ratio is always the same
LENGTHS = np.array(  # (512,) grid steps
    [*range(1, EXACT + 1), *(int(EXACT * (MAX_TICKS / EXACT) ** (k / (512 - EXACT))) for k in range(1, 513 - EXACT))]
)

_NOTE = "[\U00010000-\U0010ffff]"
_TIME = "[\ue001-\uf012]"
_MARKED_NOTE = re.compile(rf"(?:[d0-9.]+@)?{_NOTE}")
_LINE = re.compile(rf"((?:{_MARKED_NOTE.pattern})*)({_TIME}+)")
_LINE_TIME = re.compile(rf"{_TIME}+")
_COUNTED = re.compile("[\U00010000-\U0010ffff\udcf0-\udcf4]")  # the latter as a first byte

find_keys = first_pitches


def count_notes(text: str) -> int:
    """How many notes begin in a text; a character cut into bytes with its first, as in token_texts()."""
    return len(_COUNTED.findall(text))


def line_steps(line: str) -> int:
    """The time until the next line, in grid steps."""
    times = _LINE_TIME.findall(line)
    if not times:
        raise ValueError(f"{shown(line)} has no time")
    return sum(map(_steps, times[-1]))


def write(sheet: Sheet) -> list[str]:
    """The lines of each document."""
    notes = sheet.notes
    length = np.searchsorted(LENGTHS, notes.end - notes.onset, side="right") - 1
    notes = replace(notes, end=notes.onset + LENGTHS[length])
    sheet = replace(sheet, notes=notes)
    texts = [chr(code) for code in (FIRST_NOTE + (notes.pitch << 13 | notes.bins - 1 << 9 | length)).tolist()]
    return join_lines(texts, notes.onset, notes.part, sheet.starts, document_ends(sheet), sheet.marks, _time_text)


def _time_text(steps: int) -> str:
    high, low = divmod(steps, 4096)
    places = [place for place in reversed(range(high.bit_length())) if high >> place & 1]
    return "".join(chr(FIRST_TIME + 4096 + place) for place in places) + (chr(FIRST_TIME + low) if low else "")


def _steps(character: str) -> int:
    code = ord(character) - FIRST_TIME
    return code if code < 4096 else 4096 << code - 4096


def _take_line(taken: Taken, line: str, now: int) -> int:
    """Takes down the notes of a line that begins `now`; returns the time until the next, both in steps."""
    match = _LINE.fullmatch(line)
    if not match:
        raise LanguageError(f"{shown(line)} is not notes, from U+10000 on, and a time, of U+E001 to U+F012")
    for note in _MARKED_NOTE.findall(match[1]):
        text = taken.without_mark(note)
        code = ord(text) - FIRST_NOTE
        pitch, velocity, length = code >> 13, code >> 9 & 15, int(LENGTHS[code & 511])
        taken.rows.append(Row(taken.part, now, length, pitch, velocity_of(velocity + 1)))
    return sum(map(_steps, match[2]))


read = partial(read_notes, _take_line)
check_line = partial(check_first, _take_line)
