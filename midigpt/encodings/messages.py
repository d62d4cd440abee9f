"""MIDI messages on a time grid: where each note begins, and where it ends.

    60+10|64+10|67+10|24          C4, E4 and G4 begin; 24 grid steps, one beat, until the next line
    60-|64-|67-|62+10|12          they end, D4 begins
    62-|60+10|6                   D4 ends, C4 begins
    60-|18                        C4 ends; a rest to the end; without it the line is 60-|0

Normal form: in each part of a line first what ends, then what begins, from low to high; lines without messages only
for silence at the beginning; the time 0 only in the last line. Nothing is lost beyond what normalising rounds, but for
prompts: what still sounds where one is cut has no ending.

The reader ends a note where its pitch begins again, and with the document; it refuses an ending of what does not sound.
"""

import re
from dataclasses import dataclass, field

import numpy as np

from midigpt.encodings import Row, Sheet, first_pitches
from midigpt.encodings._lines import Taken, document_of, join_lines, last_onsets, read_lines
from midigpt.header import Header, LanguageError, shown
from midigpt.normal import GRID, VELOCITY_BINS, velocity_of
from midigpt.score import IntArray

VERSION = 1
ALPHABET = "0123456789+-|\n"

_MESSAGE = re.compile(r"(0|[1-9][0-9]?|1[01][0-9]|12[0-7])(?:\+([1-9]|1[0-6])|-)")
_LINE_TIME = re.compile(r"0|[1-9][0-9]{0,9}")

# How a message is written: by pitch, then by velocity bin; 0 is the note's end.
_TEXTS = [[f"{pitch}-|", *(f"{pitch}+{b}|" for b in range(1, VELOCITY_BINS + 1))] for pitch in range(128)]

find_keys = first_pitches


def count_notes(text: str) -> int:
    """How many notes begin in a text."""
    return text.count("+")


def line_steps(line: str) -> int:
    """The time until the next line, in grid steps."""
    return int(line[line.rfind("|") + 1 :])


def write(sheet: Sheet) -> list[str]:
    """The lines of each document."""
    return write_until(sheet, document_ends(sheet))


def document_ends(sheet: Sheet) -> IntArray:
    """(D,) grid steps at which each document ends: where it is to end, or when no note sounds any more."""
    if sheet.end is None:
        return np.maximum.reduceat(sheet.notes.end, sheet.starts[:-1])
    return np.maximum(sheet.end, last_onsets(sheet) + 1)


def write_until(sheet: Sheet, ends: IntArray) -> list[str]:
    """The lines of each document up to its end, (D,) grid steps, behind its last onset."""
    notes, document = sheet.notes, document_of(sheet)
    is_written = notes.end < ends[document] if sheet.end is not None else np.ones(len(document), bool)
    ending = np.flatnonzero(is_written)
    note = np.concatenate((np.arange(len(document)), ending))  # (I,) whose message it is
    time = np.concatenate((notes.onset, notes.end[ending]))
    velocity = np.concatenate((notes.bins, np.zeros(len(ending), np.int64)))
    document, part, pitch = document[note], notes.part[note], notes.pitch[note]
    order = np.lexsort((pitch, velocity > 0, part, time, document))
    rows = zip(pitch[order].tolist(), velocity[order].tolist(), strict=True)
    texts = [_TEXTS[key][velocity_bin] for key, velocity_bin in rows]
    starts = np.searchsorted(document[order], np.arange(len(ends) + 1)).tolist()
    return join_lines(texts, time[order], part[order], starts, ends, sheet.marks, str)


def read(body: str, header: Header, first: int, is_song: bool) -> tuple[list[Row], int]:
    """The notes of a document, in normal form or not, and the ticks to the beat in which their times are."""
    reader = _Reader(is_song)
    end = read_lines(body, first, reader.read_line)
    for (part, pitch), (onset, velocity) in reader.sounding.items():
        reader.rows.append(Row(part, onset, end - onset, pitch, velocity))
    return reader.rows, GRID


def check_line(line: str, header: Header, is_song: bool) -> None:
    """Raises LanguageError where a line can't be the first of a document."""
    _Reader(is_song).read_line(line, 0)


@dataclass
class _Reader(Taken):
    """Lines -> rows of the notes that have ended, and those that sound."""

    sounding: dict[tuple[str, int], tuple[int, int]] = field(default_factory=dict)  # by part, pitch: onset, velocity
    has_ended: bool = False

    def read_line(self, line: str, now: int) -> int:
        """Takes down the messages of a line that begins `now`; returns the time until the next, both in steps."""
        if self.has_ended:
            raise LanguageError("the document has ended with the time 0 of the line before")
        *messages, time = line.split("|")
        if not _LINE_TIME.fullmatch(time):
            raise LanguageError(f"{shown(line)} does not end in a time such as 24")
        self.has_ended = time == "0"
        for message in messages:
            text = self.without_mark(message)
            match = _MESSAGE.fullmatch(text)
            if not match:
                raise LanguageError(f"{shown(message)} is no message such as 60+10 or 60-")
            note = self.part, int(match[1])
            self._end(note, now, message, is_again=match[2] is not None)
            if match[2]:
                if self.has_ended:
                    raise LanguageError(f"{message!r} begins where the document ends")
                self.sounding[note] = now, velocity_of(int(match[2]))
        return int(time)

    def _end(self, note: tuple[str, int], now: int, message: str, is_again: bool) -> None:
        """A note ends, or begins again, which it need not have been sounding for."""
        onset, velocity = self.sounding.pop(note, (-1, 0))
        if onset == now:
            raise LanguageError(f"{message!r} follows its own note at the same instant")
        if onset >= 0:
            self.rows.append(Row(note[0], onset, now - onset, note[1], velocity))
        elif not is_again:
            raise LanguageError(f"{message!r} ends a note that does not sound")
