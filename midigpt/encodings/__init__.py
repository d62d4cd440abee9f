"""The ways in which a document's lines say what is played: a module for each, which midigpt/language.py calls.

A line is all that happens at one instant, and the time until the next line. A module has

    VERSION             of the encoding
    ALPHABET            the characters of its lines, but those of part marks (MARK_ALPHABET); None where they are more
                        than a vocabulary can have: then tokens are made of bytes
    find_keys(sheet)    the header's key of each document, (D,); -1 where all its notes are drums
    write(sheet)        the lines of each document, (D,) texts
    read(body, header, first, is_song)
                        the way back: the notes of a document whose lines begin with line `first` of its text, as Rows,
                        and the ticks to the beat in which their times are; raises LanguageError, which names the line
    check_line(line, header, is_song)
                        raises LanguageError where a line can't be the first of a document
    count_notes(text)   how many notes a text holds, also of a token, which is a part of a line
    line_steps(line)    the time until the next line, in grid steps; raises ValueError where it has none

and its docstring says what the normal form is and what is lost. Where pitches count from something fixed, it also has

    moved(body, key, by)
                        the lines in another key, or counted from another anchor: each number that says a pitch by
                        itself is higher `by`; and the header's key to them, which was `key`

In the song layout a document has several parts. Directly in front of a note stands the mark of its part, `33.2@`,
where it is another part's than the note before, and in front of the document's first note: of the second part with
program 33; `33@` is the first one's, `d@` that of drums. Elsewhere no part has a mark.
"""

import re
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from midigpt.header import LanguageError, shown
from midigpt.normal import Notes
from midigpt.score import IntArray

MARK_ALPHABET = "0123456789d.@"
MARK_BYTES = 16  # no mark is longer, with a character before it

_MARK = re.compile(r"(d|0|[1-9][0-9]{0,2})(?:\.([2-9]|[1-9][0-9]{1,6}))?")


@dataclass(frozen=True)
class Sheet:
    """Documents to be written."""

    notes: Notes  # ordered by document, onset, part and pitch
    starts: list[int]  # (D + 1,) where each document's notes begin
    is_drum: NDArray[np.bool_]  # (P,) of each part
    marks: list[str]  # (P,) of each part, without "@"; empty in the track layout, where a part is a document
    end: int | None = None  # grid steps, to which documents run; without it to the end of their notes
    keys: IntArray = field(default_factory=lambda: np.empty(0, np.int64))  # (D,) of the headers, once they are found


class Row(NamedTuple):
    """A note as it is read."""

    mark: str  # of its part, without "@"; in the track layout ""
    onset: int  # ticks
    duration: int  # ticks
    pitch: int
    velocity: int  # 1..127


# --- writing ---------------------------------------------------------------------------------------------


def is_marked(sheet: Sheet) -> NDArray[np.bool_]:
    """(N,) in front of which notes a part mark stands."""
    part = sheet.notes.part
    if not sheet.marks:
        return np.zeros(len(part), bool)
    differs = np.ones(len(part), bool)  # documents have no part in common
    differs[1:] = part[1:] != part[:-1]
    return differs


def mark_table(sheet: Sheet, before: str = "") -> NDArray[np.bytes_]:
    """(P,) the mark of each part as it is written, MARK_BYTES bytes with zeros behind, and a character before it."""
    return np.array([f"{before}{mark}@" for mark in sheet.marks], f"S{MARK_BYTES}")


def first_pitches(sheet: Sheet) -> IntArray:
    """(D,) the pitch of each document's first note that is no drum; -1 where there is none.

    As the header's key it is all that intervals don't say.
    """
    notes, starts = sheet.notes, np.array(sheet.starts)
    if not sheet.marks:
        return np.where(sheet.is_drum, -1, notes.pitch[starts[:-1]])
    pitched = np.flatnonzero(~sheet.is_drum[notes.part])
    at = np.searchsorted(pitched, starts)
    is_there = at[1:] > at[:-1]
    first = np.full(len(is_there), -1)
    first[is_there] = notes.pitch[pitched[at[:-1][is_there]]]
    return first


# --- reading ---------------------------------------------------------------------------------------------


def split_mark(note: str, part: str, is_song: bool) -> tuple[str, str]:
    """Whose a note is, as a mark without "@", and its text without one. `part` is whose the note before is, or "".

    Raises LanguageError for a mark that is none, in the track layout for any, in the song layout where the document's
    first note has none.
    """
    mark, at, rest = note.rpartition("@")
    if at:
        if not is_song:
            raise LanguageError(f"{shown(note)} has a part mark, which only the song layout knows")
        part_order(mark)
    elif is_song and not part:
        raise LanguageError(f"{shown(note)} is the first note and has no part mark such as 0@")
    return mark or part, rest


def is_drum_mark(mark: str) -> bool:
    """Whether the notes of a part are drums."""
    return mark.startswith("d")


def part_order(mark: str) -> tuple[bool, int, int]:
    """By which the parts of a song are ordered: drums last, program, number. LanguageError for what is no mark."""
    match = _MARK.fullmatch(mark)
    if not match or (match[1] != "d" and int(match[1]) > 127):
        raise LanguageError(f"{shown(mark + '@')} is no part mark such as 0@ or 127.2@, or d@ for drums")
    is_drum = match[1] == "d"
    return is_drum, 0 if is_drum else int(match[1]), int(match[2] or 1)
