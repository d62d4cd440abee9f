"""Notes with their lengths, and a separator in time after each instant: a score as a list of numbers.

    n67d24v10|n64d24v10|n60d24v10|s24   G4, E4 and C4 together, for one beat (24 grid steps)
    n62d12v10|s12                       D4, half a beat
    n60d6v10|s24                        C4, a quarter of a beat, and a rest

Each note has its key, its duration in grid steps and its velocity bin; `s` leads to the next instant. This is how
transformers were first given notes and lengths as plain symbols. Models of that kind also had one symbol for each
frequent instant with all its notes: byte-pair encoding makes those here, as no token crosses a line.

Normal form: notes of a line, of each part, from high to low; lines without notes only for silence at the beginning;
the last line's time is its longest note's. Nothing is lost beyond what normalising rounds.
"""

import re
from functools import partial

import numpy as np

from midigpt.encodings import Row, Sheet, first_pitches
from midigpt.encodings._lines import Taken, check_first, document_ends, document_of, join_lines, read_notes
from midigpt.header import LanguageError, shown
from midigpt.normal import MAX_TICKS, velocity_of

VERSION = 1
ALPHABET = "0123456789ndvs|\n"

_STEPS = "[1-9][0-9]{0,9}"
_NOTE = re.compile(rf"n(0|[1-9][0-9]?|1[01][0-9]|12[0-7])d({_STEPS})v([1-9]|1[0-6])")
_LINE_TIME = re.compile(rf"s({_STEPS})")

find_keys = first_pitches


def count_notes(text: str) -> int:
    """How many notes end in a text."""
    return text.count("|")


def line_steps(line: str) -> int:
    """The time until the next line, in grid steps."""
    return int(line[line.rfind("s") + 1 :])


def write(sheet: Sheet) -> list[str]:
    """The lines of each document."""
    notes = sheet.notes
    order = np.lexsort((-notes.pitch, notes.part, notes.onset, document_of(sheet)))
    columns = notes.pitch, notes.end - notes.onset, notes.bins
    rows = zip(*(column[order].tolist() for column in columns), strict=True)
    texts = [f"n{pitch}d{length}v{b}|" for pitch, length, b in rows]
    ends = document_ends(sheet)
    return join_lines(texts, notes.onset[order], notes.part[order], sheet.starts, ends, sheet.marks, _time_text)


def _time_text(steps: int) -> str:
    return f"s{steps}"


def _take_line(taken: Taken, line: str, now: int) -> int:
    """Takes down the notes of a line that begins `now`; returns the time until the next, both in steps."""
    *notes, time = line.split("|")
    steps = _LINE_TIME.fullmatch(time)
    if not steps:
        raise LanguageError(f"{shown(line)} does not end in a time such as s12")
    for note in notes:
        text = taken.without_mark(note)
        match = _NOTE.fullmatch(text)
        if not match:
            raise LanguageError(f"{shown(note)} is not a note such as n60d24v10")
        pitch, length, velocity = map(int, match.groups())
        if now + length > MAX_TICKS:
            raise LanguageError(f"{note!r} is longer than a MIDI file can be")
        taken.rows.append(Row(taken.part, now, length, pitch, velocity_of(velocity)))
    return int(steps[1])


read = partial(read_notes, _take_line)
check_line = partial(check_first, _take_line)
