"""Relative intervals: every pitch is written as a distance from an earlier pitch.

    0+10|4+10|3+10|1/1            C4, E4 and G4 together, for one beat (behind key=60)
    2+10|1/2                      D4: two keys above the first note of the line before
    2-10:1/4|1/1                  C4, sounding for a quarter of its line

In the song layout pitches count within their part: a part's first note in a line from its first note in the last line
where it played, at its first entry from the header's key.

    0@7+10|d@36=10|1/1            G4 on a piano, over a bass drum

Normal form: notes of a line from low to high, `0+` for a repeated pitch; rest lines only for silence at the beginning;
a length only where it differs from the line's time; times in lowest terms. Nothing is lost beyond what normalising
rounds. docs/language.md is the specification, with a worked example.
"""

import math
import re
from dataclasses import dataclass, field
from functools import cache

import numpy as np
from numpy.typing import NDArray

from midigpt.encodings import Row, Sheet, first_pitches, is_drum_mark, is_marked, mark_table, split_mark
from midigpt.encodings._lines import document_of
from midigpt.header import DEFAULT_KEY, Header, LanguageError, shown
from midigpt.normal import GRID, MAX_RESOLUTION, MAX_TICKS, VELOCITY_BINS, velocity_of
from midigpt.score import IntArray

VERSION = 1
ALPHABET = "0123456789+-=|:/\n"
LONG = 100 * GRID  # shorter times are looked up; up to 9999/24 they would fit into seven characters
_BLANK = "\1"  # stands for a long time until it is filled in

_TIME = r"([1-9]\d{0,9})/([1-9]\d{0,4})"
_NOTE = re.compile(rf"(0|[1-9]\d{{0,2}})([+\-=])([1-9]\d?)(?::{_TIME})?")
_LINE_TIME = re.compile(_TIME)
_UNIT = re.compile(r"/(\d+)")

find_keys = first_pitches


def count_notes(text: str) -> int:
    """How many notes end in a text."""
    return text.count("|")


def line_steps(line: str) -> int:
    """The time until the next line, in grid steps."""
    return steps_of(line[line.rfind("|") + 1 :])


# --- writing ---------------------------------------------------------------------------------------------


def write(sheet: Sheet, is_anchored: bool = False) -> list[str]:
    """The lines of each document; with `is_anchored` as anchored.py has them.

    A note is two pieces of text (what it is; how long, if not as long as its line), with two more in front for a part
    mark in the song layout, and a line's time is one. Each piece is eight bytes out of a table, unused ones zero; the
    zeros are then taken out of the whole.
    """
    notes, end = sheet.notes, sheet.end
    onset = notes.onset
    starts = sheet.starts[:-1]
    count = len(onset)
    document = document_of(sheet) if sheet.marks else notes.part
    is_first = _is_new(document << 40 | onset)  # of its line
    first = np.flatnonzero(is_first)  # (L,)
    line = np.cumsum(is_first) - 1  # (N,) the line of each note

    line_onset, line_document = onset[first], document[first]
    line_end = np.append(line_onset[1:], 0)  # (L,) the next line's onset ...
    is_last = np.append(line_document[1:] != line_document[:-1], True)
    line_end[is_last] = np.maximum.reduceat(notes.end, first)[is_last] if end is None else end
    line_time = np.maximum(line_end - line_onset, 1)

    length = notes.end - onset
    length[length == line_time[line]] = 0

    width = 4 if sheet.marks else 2
    at = width * np.arange(count) + line  # (N,) the first piece of each note
    time_at = np.append(at[first[1:]], width * count + len(first)) - 1  # (L,)
    steps = np.zeros(width * count + len(first), np.int64)  # what each piece says of time
    steps[at + width - 1], steps[time_at] = length, line_time
    pieces = np.empty(len(steps), np.uint64)
    before = is_first.view(np.uint8)
    if sheet.marks:
        has_mark = is_marked(sheet)
        marks = np.stack([mark_table(sheet, mark).view(np.uint64).reshape(-1, 2) for mark in "|\n"])  # (2, P, 2)
        pieces[at[:, None] + [0, 1]] = np.where(has_mark[:, None], marks[before, notes.part], 0)
        before = np.where(has_mark, 2, before)
    pieces[at + width - 2] = _note_table()[before, _pitch_rows(sheet, document, first, is_anchored), notes.bins]
    pieces[at + width - 1] = _time_table(":")[np.minimum(length, LONG)]
    pieces[time_at] = _time_table("|")[np.minimum(line_time, LONG)]

    bodies = []
    cuts = at[starts].tolist()
    for start, here in zip(starts, map(slice, cuts, [*cuts[1:], None]), strict=True):
        body = pieces[here].tobytes().translate(None, b"\0")[1:].decode("ascii") + "\n"
        if _BLANK in body:
            for long in steps[here][steps[here] >= LONG].tolist():
                body = body.replace(_BLANK, time_text(long), 1)
        if onset[start]:
            body = f"{time_text(int(onset[start]))}\n{body}"
        bodies.append(body)
    return bodies


def _is_new(values: IntArray) -> NDArray[np.bool_]:
    """(N,) Which of the values differ from the one before."""
    is_new = np.ones(len(values), bool)
    is_new[1:] = values[1:] != values[:-1]
    return is_new


def _pitch_rows(sheet: Sheet, document: IntArray, first: IntArray, is_anchored: bool) -> IntArray:
    """(N,) in which row of the table each note's pitch stands: its interval + 127, or 255 + the drum."""
    if not sheet.marks:  # the first notes of lines are those of parts in lines
        notes = sheet.notes
        return _rows_of_parts(notes.part, notes.pitch, first, sheet.keys, sheet.is_drum, is_anchored)
    order = np.argsort(sheet.notes.part, kind="stable")  # part by part, as the track layout has it
    part, onset, pitch = (column[order] for column in (sheet.notes.part, sheet.notes.onset, sheet.notes.pitch))
    keys = np.zeros(len(sheet.marks), np.int64)  # (P,) of the part's header
    keys[part] = sheet.keys[document[order]]
    rows = np.empty_like(pitch)
    first = np.flatnonzero(_is_new(part << 40 | onset))
    rows[order] = _rows_of_parts(part, pitch, first, keys, sheet.is_drum, is_anchored)
    return rows


def _rows_of_parts(
    part: IntArray, pitch: IntArray, first: IntArray, keys: IntArray, is_drum: NDArray[np.bool_], is_anchored: bool
) -> IntArray:
    """The same of notes ordered by part, `first` of each line; `keys` (P,) is what parts begin at."""
    before = np.arange(-1, len(pitch) - 1)  # the note that each one's pitch is counted from
    before[first[1:]] = first[:-1]
    counted_from = pitch[before]
    entries = first if is_anchored else first[_is_new(part[first])]
    counted_from[entries] = keys[part[entries]]
    return np.where(is_drum[part], 255 + pitch, 127 + pitch - counted_from)


def time_text(steps: int) -> str:
    """A time in grid steps as it is written: 12 as 1/2."""
    common = math.gcd(steps, GRID)
    return f"{steps // common}/{GRID // common}"


def steps_of(time: str) -> int:
    """A time on the grid, as it is written, in grid steps: 1/2 as 12."""
    count, unit = map(int, time.split("/"))
    return count * GRID // unit


@cache
def _time_table(mark: str) -> NDArray[np.uint64]:
    """(LONG + 1,) texts of times in steps, none for 0; a blank for LONG and more, as they may not fit."""
    texts = ["", *(mark + time_text(steps) for steps in range(1, LONG)), mark + _BLANK]
    return np.array(texts, "S8").view(np.uint64)


@cache
def _note_table() -> NDArray[np.uint64]:
    """(3, 383, 17) texts: what stands before (a note, a line, a mark); interval + 127, or 255 + drum; bin."""
    pitches = [f"{abs(interval)}{'+' if interval >= 0 else '-'}" for interval in range(-127, 128)]
    pitches += [f"{drum}=" for drum in range(128)]
    texts = [[[f"{mark}{pitch}{b}" for b in range(VELOCITY_BINS + 1)] for pitch in pitches] for mark in ("|", "\n", "")]
    return np.array(texts, "S8").view(np.uint64)


# --- reading ---------------------------------------------------------------------------------------------


@dataclass
class _Pitches:
    """What the pitches of the next line count from."""

    key: int  # of the header
    is_drum: bool  # in the track layout
    is_song: bool
    is_anchored: bool
    part: str = ""  # the last note's
    references: dict[str, int] = field(default_factory=dict)  # of each part, the pitch of its first note in a line


def read(
    body: str, header: Header, first: int, is_song: bool, is_anchored: bool = False
) -> tuple[list[Row], int]:
    """The notes of a document, in normal form or not, and the ticks to the beat in which their times are.

    The clock is GRID ticks to the beat, or finer where the text's times need it.
    """
    units = {int(unit) for unit in _UNIT.findall(body) if len(unit) <= 5 and int(unit)}
    resolution = math.lcm(GRID, *units)
    if resolution > MAX_RESOLUTION:
        listed = ", ".join(map(str, sorted(units)))
        raise LanguageError(f"line {first}: times in units of {listed} of a beat have no common clock")

    def to_ticks(time: str) -> int:
        count, _, unit = time.partition("/")
        return int(count) * (resolution // int(unit))

    rows: list[Row] = []
    now, pitches = 0, _pitches(header, is_song, is_anchored)
    lines = body.removesuffix("\n").split("\n") if body else []
    for number, line in enumerate(lines, start=first):
        try:
            notes, time = _read_line(line, pitches)
        except LanguageError as error:
            raise LanguageError(f"line {number}: {error}") from None
        line_ticks = to_ticks(time)
        for part, pitch, velocity_bin, length in notes:
            duration = to_ticks(length) if length else line_ticks
            rows.append(Row(part, now, duration, pitch, velocity_of(velocity_bin)))
        now += line_ticks
        if now > MAX_TICKS:
            raise LanguageError(f"line {number}: the piece is longer than a MIDI file can be")
    return rows, resolution


def check_line(line: str, header: Header, is_song: bool, is_anchored: bool = False) -> None:
    """Raises LanguageError where a line can't be the first of a document."""
    _read_line(line, _pitches(header, is_song, is_anchored))


def _pitches(header: Header, is_song: bool, is_anchored: bool) -> _Pitches:
    return _Pitches(DEFAULT_KEY if header.key is None else header.key, header.is_drum, is_song, is_anchored)


def _read_line(line: str, pitches: _Pitches) -> tuple[list[tuple[str, int, int, str]], str]:
    """One line without its newline: its notes as (part, pitch, velocity bin, length or ""), and its time; brings
    `pitches` up to the next line. Raises LanguageError without the line's number."""
    *notes, time = line.split("|")
    if not _LINE_TIME.fullmatch(time):
        raise LanguageError(f"{shown(line)} does not end in a time such as 1/2")
    read = []
    before: dict[str, int] = {}  # of each part, the pitch of its last note in this line
    for note in notes:
        part, text = split_mark(note, pitches.part, pitches.is_song)
        match = _NOTE.fullmatch(text)
        if not match:
            raise LanguageError(f"{shown(note)} is not a note such as 4+10 or 4-10:1/2")
        interval, sign, velocity = int(match[1]), match[2], int(match[3])
        if velocity > VELOCITY_BINS:
            raise LanguageError(f"velocity {velocity} of {note!r} is not in 1..{VELOCITY_BINS}")
        if (is_drum_mark(part) or pitches.is_drum) and sign != "=":
            raise LanguageError(f"{note!r} is an interval, but drums are written as keys (36=10)")
        counted_from = before.get(part, pitches.references.get(part, pitches.key))
        pitch = interval if sign == "=" else counted_from + interval if sign == "+" else counted_from - interval
        if not 0 <= pitch < 128:
            raise LanguageError(f"{note!r} leads to pitch {pitch}, outside 0..127")
        if part not in before and not pitches.is_anchored:
            pitches.references[part] = pitch
        before[part] = pitch
        pitches.part = part
        read.append((part, pitch, velocity, text.partition(":")[2]))
    return read, time
