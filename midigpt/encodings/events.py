"""MIDI messages with waits from a logarithmic table.

    60+10|64+10|67+10|24          C4, E4 and G4 begin; 24 grid steps, one beat, until the next line
    60-|64-|67-|62+10|12          they end, D4 begins
    62-|60+10|6                   D4 ends, C4 begins
    60-|18                        C4 ends; a rest to the end

Lines and normal form are those of messages.py, but a line's time is one of WAITS: a beat times a power of 2 ** (1/12),
in whole steps. As a fifth and a fourth have nearly whole numbers of semitones, the usual values are all among them:
dotted ones and triplets too.

Lost beyond what normalising rounds: each wait is the one that leads nearest to the place where the music goes on, so
no error is passed on. Everything is within 3 % of the longest wait before it, and one step, of its place; where no
wait is longer than 20 steps, it is in its place.
"""

from bisect import bisect_left
from dataclasses import replace

import numpy as np

from midigpt.encodings import Row, Sheet, first_pitches, messages
from midigpt.encodings._lines import read_lines
from midigpt.header import Header, LanguageError, shown
from midigpt.normal import GRID, MAX_TICKS

VERSION = 1
ALPHABET = messages.ALPHABET

_POWERS = (round(GRID * 2 ** (k / 12)) for k in range(-12 * 5, 12 * 27))
WAITS = sorted({steps for steps in _POWERS if 1 <= steps <= MAX_TICKS})  # 1, 2, ... 21, 23, 24, 25, 27, ...

_TIMES = {"0", *map(str, WAITS)}

find_keys = first_pitches
count_notes = messages.count_notes
line_steps = messages.line_steps


def write(sheet: Sheet) -> list[str]:
    """The lines of each document."""
    onset, end = sheet.notes.onset.copy(), sheet.notes.end.copy()
    last = messages.document_ends(sheet)
    for document, (begin, stop) in enumerate(zip(sheet.starts, sheet.starts[1:], strict=False)):
        heard = np.minimum(end[begin:stop], last[document])  # what still sounds where a document is cut has no ending
        instants, place = np.unique(np.concatenate((onset[begin:stop], heard, last[[document]])), return_inverse=True)
        instants = np.array(_reached(instants.tolist()))[place]
        onset[begin:stop], end[begin:stop] = np.split(instants[:-1], 2)
        last[document] = instants[-1]
    return messages.write_until(replace(sheet, notes=replace(sheet.notes, onset=onset, end=end)), last)


def _reached(instants: list[int]) -> list[int]:
    """The instants, ascending, in grid steps, as waits of the table lead to them one after another."""
    reached, clock = [], 0
    for instant in instants:
        clock += _nearest_wait(instant - clock) if instant else 0
        reached.append(clock)
    return reached


def _nearest_wait(steps: int) -> int:
    at = bisect_left(WAITS, steps, lo=1, hi=len(WAITS) - 1)
    return WAITS[at - 1] if steps - WAITS[at - 1] <= WAITS[at] - steps else WAITS[at]


def read(body: str, header: Header, first: int, is_song: bool) -> tuple[list[Row], int]:
    """The notes of a document, in normal form or not, and the ticks to the beat in which their times are."""
    read_lines(body, first, _check_time)
    return messages.read(body, header, first, is_song)


def check_line(line: str, header: Header, is_song: bool) -> None:
    """Raises LanguageError where a line can't be the first of a document."""
    _check_time(line)
    messages.check_line(line, header, is_song)


def _check_time(line: str, now: int = 0) -> int:
    time = line[line.rfind("|") + 1 :]
    if time not in _TIMES:
        raise LanguageError(f"{shown(line)} does not end in a wait of the table, such as 21, 23, 24 or 25")
    return 0
