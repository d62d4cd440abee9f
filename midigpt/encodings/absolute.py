"""Absolute pitch: every pitch is written as its key, in lines like those of intervals.

    60=10|64=10|67=10|1/1         C4, E4 and G4 together, for one beat
    62=10|1/2                     D4
    60=10:1/4|1/1                 C4, sounding for a quarter of its line

It is the yardstick for intervals: all that differs is how a pitch is written. Normal form and losses are those of
interval.py.
"""

import re
from dataclasses import replace

from midigpt.encodings import Row, Sheet, first_pitches, interval, is_drum_mark
from midigpt.encodings._lines import read_lines
from midigpt.header import Header, LanguageError, shown
from midigpt.score import with_room

VERSION = 1
ALPHABET = interval.ALPHABET.replace("+", "").replace("-", "")

find_keys = first_pitches
count_notes = interval.count_notes
line_steps = interval.line_steps


def write(sheet: Sheet) -> list[str]:
    """The lines of each document: as if all its notes were drums."""
    return interval.write(replace(sheet, is_drum=sheet.is_drum | True))


_MARK_OR_PITCH = re.compile(r"([d\d.]+)@|(\d+)=")


def moved(body: str, key: int, by: int) -> tuple[str, int]:
    """The lines of the same music, but drums, higher `by` (see with_room), and its first note, which was `key`."""
    pitches, is_drum = [], False
    for match in _MARK_OR_PITCH.finditer(body):
        if match[1]:
            is_drum = is_drum_mark(match[1])
        elif not is_drum:
            pitches.append(match)
    there = [int(match[2]) for match in pitches]
    by = with_room(by, min(there), max(there)) if there else 0
    pieces, at = [], 0
    for match in pitches:
        pieces += [body[at : match.start()], f"{int(match[2]) + by}="]
        at = match.end()
    return "".join([*pieces, body[at:]]), key + by


def read(body: str, header: Header, first: int, is_song: bool) -> tuple[list[Row], int]:
    """The notes of a document, in normal form or not, and the ticks to the beat in which their times are."""
    read_lines(body, first, _refuse_intervals)
    return interval.read(body, header, first, is_song)


def check_line(line: str, header: Header, is_song: bool) -> None:
    """Raises LanguageError where a line can't be the first of a document."""
    _refuse_intervals(line)
    interval.check_line(line, header, is_song)


def _refuse_intervals(line: str, now: int = 0) -> int:
    if "+" in line or "-" in line:
        raise LanguageError(f"{shown(line)} has an interval; in this language notes are keys such as 60=10")
    return 0
