"""Intervals from an anchor: a part's first note in a line is written as its distance from the piece's middle pitch.

    0+10|4+10|3+10|1/1            C4, E4 and G4 together, for one beat (behind key=60, the anchor)
    2+10|1/2                      D4: two keys above the anchor
    3-10:1/4|1/1                  A3, sounding for a quarter of its line

The other notes of the part in the line count on, each from the one before. So a tune reads the same in all twelve keys,
as in interval.py, and a chord too wherever it stands in the line; but the model need not add intervals up to know where
it is. Losses are those of interval.py, and so is the normal form, but that the header's key is the anchor that
find_keys() gives.
"""

import re
from functools import partial

import numpy as np

from midigpt.encodings import Sheet, interval
from midigpt.encodings._lines import document_of
from midigpt.score import IntArray

VERSION = 3
ALPHABET = interval.ALPHABET

count_notes = interval.count_notes
line_steps = interval.line_steps
write = partial(interval.write, is_anchored=True)
read = partial(interval.read, is_anchored=True)
check_line = partial(interval.check_line, is_anchored=True)

# A part's first note in a line stands at the line's beginning or behind a part mark; drums have "=".
_FROM_ANCHOR = re.compile(r"(^|@)(\d+)([+-])", re.MULTILINE)


def find_keys(sheet: Sheet) -> IntArray:
    """(D,) the anchor of each document, a MIDI note number; -1 where all its notes are drums.

    It is the mean pitch of the notes that are no drums, rounded down, and so moves with the piece.
    """
    pitched = ~sheet.is_drum[sheet.notes.part]
    document, count = document_of(sheet)[pitched], len(sheet.starts) - 1
    notes = np.bincount(document, minlength=count)
    total = np.bincount(document, sheet.notes.pitch[pitched], count).astype(np.int64)
    return np.where(notes > 0, total // np.maximum(notes, 1), -1)


def moved(body: str, key: int, by: int) -> tuple[str, int]:
    """The lines, in normal form, of the same notes counted from an anchor that is lower than `key` by so many keys; and
    that anchor."""

    def add(match: re.Match[str]) -> str:
        number = int(match[2] if match[3] == "+" else f"-{match[2]}") + by
        return f"{match[1]}{abs(number)}{'+' if number >= 0 else '-'}"

    return _FROM_ANCHOR.sub(add, body), key - by
