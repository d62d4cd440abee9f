"""The interval language: Score <-> text, every pitch written as a distance from an earlier pitch.

docs/language.md is the specification, with a worked example. In short: a document is one track; a line is
all notes that start at one instant and the time until the next line:

    # program=0 tempo=120 meter=4/4 key=60
    0+10|4+10|3+10|1/1            C4, E4 and G4 together, for one beat
    2+10|1/2                      D4: two keys above the first note of the line before
    2-10:1/4|1/1                  C4, sounding for a quarter of its line
"""

import math
import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from midigpt.score import IntArray, Score, Track, cut_repeats

GRID = 24  # steps to the beat: holds 32nds and triplets
VELOCITY_STEP = 8  # velocities to a loudness bin: 16 bins
VELOCITY_BINS = 128 // VELOCITY_STEP
DEFAULT_KEY = 60  # the anchor where the header names none
LANGUAGE = f"interval-1 layout=track grid={GRID} velocity-bins={VELOCITY_BINS} pedal=on"

# The tempos a header can name, in beats per minute; none is further than 5 % from the next.
TEMPOS = (*range(20, 40), *range(40, 120, 2), *range(120, 240, 5), *range(240, 321, 10))

# The meters that a sampler asks for, or lets the model choose from; a file may have any.
METERS = tuple(f"{numerator}/{denominator}" for denominator in (2, 4, 8, 16) for numerator in range(1, 17))

_TEMPO_BORDERS = [math.sqrt(a * b) for a, b in pairwise(TEMPOS)]  # the middle by ratio

TEMPO_RANGE = range(4, 1000)  # of the reader; slower than 3.6 no MIDI file can be
MAX_TICKS = 2**31 - 1  # of a whole piece
MAX_RESOLUTION = 0x7FFF  # ticks per beat, likewise

LONG = 100 * GRID  # shorter times are looked up; up to 9999/24 they would fit into seven characters
_BLANK = "\1"  # stands for a long time until it is filled in

_BODY_ALPHABET = "0123456789+-=|:/\n"
ALPHABET = "".join(sorted(set(_BODY_ALPHABET + "# program=d tempo meter key")))  # of a whole document
_NO_BODY = str.maketrans("", "", _BODY_ALPHABET)
_TIME = r"([1-9]\d{0,9})/([1-9]\d{0,4})"
_NOTE = re.compile(rf"(0|[1-9]\d{{0,2}})([+\-=])([1-9]\d?)(?::{_TIME})?")
_LINE_TIME = re.compile(_TIME)
_UNIT = re.compile(r"/(\d+)")
_FIELD = re.compile(r"([a-z]+)=(\S+)")
_NUMBER = re.compile(r"0|[1-9]\d{0,2}")


class LanguageError(ValueError):
    """Text that is not in the language; the message names the line."""


def nearest_tempo(bpm: float) -> int:
    """The tempo of the fixed list that is nearest by ratio, as tempo is heard."""
    return TEMPOS[bisect_right(_TEMPO_BORDERS, bpm)]


@dataclass(frozen=True)
class _Notes:
    """The notes of all tracks in one table, in normal form: numpy is called once a file, not once a track.

    Each has shape (N,); ordered by part, onset, pitch; times in grid steps.
    """

    part: IntArray  # which of the tracks that have notes
    onset: IntArray
    end: IntArray
    pitch: IntArray
    bins: IntArray  # velocity bin, 1..VELOCITY_BINS


def normalise(score: Score) -> Score:
    """What the language can hold of a score: decode(encode(score)) == normalise(score).

    In this order: notes are lengthened to the release of the sustain pedal; onsets and ends are rounded to
    the grid on the absolute clock, halves up; a note lasts at least a step; notes of one track with the same
    onset and pitch are joined (greater velocity, later end); a note is cut where its pitch starts again.
    Velocities become the middle of their bin, the tempo the nearest of TEMPOS. Names, and tracks without
    notes, are dropped. Raises LanguageError for a piece of more than MAX_TICKS steps.
    """
    tracks = [track for track in score.tracks if len(track)]
    notes = _normal_notes(tracks, np.full(len(tracks), score.ticks_per_beat))
    velocity = notes.bins * VELOCITY_STEP - VELOCITY_STEP // 2
    normal = []
    for track, (start, stop) in zip(tracks, _bounds(notes.part, len(tracks)), strict=True):
        onset, end, pitch, loudness = (a[start:stop] for a in (notes.onset, notes.end, notes.pitch, velocity))
        program = 0 if track.is_drum else track.program
        normal.append(Track(program, track.is_drum, onset, end - onset, pitch, loudness))
    return Score(GRID, tuple(normal), float(nearest_tempo(score.tempo_bpm)), score.meter)


def _normal_notes(tracks: Sequence[Track], ticks_per_beat: IntArray) -> _Notes:
    """The normal form of tracks, (P,), each with its own clock, (P,)."""
    part = np.repeat(np.arange(len(tracks)), [len(track) for track in tracks])
    onset, duration, pitch, velocity = (
        np.concatenate([getattr(track, column) for track in tracks] or [np.empty(0, np.int64)])
        for column in ("onset", "duration", "pitch", "velocity")
    )
    end = onset + duration
    for (start, stop), track in zip(_bounds(part, len(tracks)), tracks, strict=True):
        if len(track.pedal) and not track.is_drum:
            end[start:stop] = held_ends(end[start:stop], track.pedal)

    beat = ticks_per_beat[part]
    onset, end = ((2 * GRID * ticks + beat) // (2 * beat) for ticks in (onset, end))
    end = np.maximum(end, onset + 1)
    bins = (velocity + (VELOCITY_STEP - 1)) // VELOCITY_STEP

    if len(end) and (latest := int(end.max())) > MAX_TICKS:
        raise LanguageError(f"the piece is {latest} steps long; {MAX_TICKS} is the most")
    place = part << 40 | onset << 7 | pitch  # onsets have 31 bits
    step = np.diff(place)
    if (step < 0).any():  # rounding has put notes on one onset that were not
        order = np.argsort(place, kind="stable")
        part, onset, end, pitch, bins = (a[order] for a in (part, onset, end, pitch, bins))
        step = np.diff(place[order])
    if (step == 0).any():
        first = np.flatnonzero(np.concatenate(([1], step)))  # of each group to be joined
        end, bins = np.maximum.reduceat(end, first), np.maximum.reduceat(bins, first)
        part, onset, pitch = part[first], onset[first], pitch[first]
    return _Notes(part, onset, cut_repeats(onset, end, part << 7 | pitch), pitch, bins)


def _bounds(part: IntArray, parts: int) -> list[tuple[int, int]]:
    """Where each part's notes begin and end."""
    cuts = np.searchsorted(part, np.arange(parts + 1)).tolist()
    return list(pairwise(cuts))


def held_ends(end: IntArray, pedal: IntArray) -> IntArray:
    """The ends of notes with the sustain pedal: a note whose pedal is down at its end lasts until the release."""
    down, up = pedal.T
    held = np.searchsorted(down, end, side="right") - 1  # the last pedal pressed by the note's end
    return np.where((held >= 0) & (end < up[held]), up[held], end)


# --- Score -> text ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Document:
    """One track as text. `body`, the lines, is the same in every key."""

    header: str  # with its newline
    body: str
    onset: IntArray = field(compare=False, repr=False)  # (N,) grid steps
    pitch: IntArray = field(compare=False, repr=False)  # (N,)

    @property
    def notes(self) -> int:
        return len(self.onset)

    @property
    def text(self) -> str:
        return self.header + self.body


def encode(score: Score, end: int | None = None) -> list[Document]:
    """Write a score in normal form, a document for each track that has notes.

    Documents end with their last note, or, if `end` (grid steps) is given and later than that note's onset,
    there: a prompt runs to its cut. Raises LanguageError for a piece of more than MAX_TICKS steps.
    """
    return encode_batch([score], end)[0]


def encode_batch(scores: Sequence[Score], end: int | None = None) -> list[list[Document]]:
    """encode() of several scores at once: numpy's cost for each call is shared, which small files gain by."""
    rows = [(number, track) for number, score in enumerate(scores) for track in score.tracks if len(track)]
    if not rows:
        return [[] for _ in scores]
    tracks = [track for _, track in rows]
    notes = _normal_notes(tracks, np.array([scores[number].ticks_per_beat for number, _ in rows]))
    bounds = _bounds(notes.part, len(tracks))
    bodies = _bodies(notes, np.array([track.is_drum for track in tracks]), bounds, end)
    shared = [f"tempo={nearest_tempo(s.tempo_bpm)} meter={s.meter[0]}/{s.meter[1]}" for s in scores]
    keys = notes.pitch[[start for start, _ in bounds]].tolist()
    documents: list[list[Document]] = [[] for _ in scores]
    for (number, track), (start, stop), key, body in zip(rows, bounds, keys, bodies, strict=True):
        program, anchor = ("d", "") if track.is_drum else (track.program, f" key={key}")
        header = f"# program={program} {shared[number]}{anchor}\n"
        documents[number].append(Document(header, body, notes.onset[start:stop], notes.pitch[start:stop]))
    return documents


def _bodies(notes: _Notes, is_drum: NDArray[np.bool_], bounds: list[tuple[int, int]], end: int | None) -> list[str]:
    """The lines of each part.

    A note is two pieces of text (what it is; how long, if not as long as its line), and a line's time is one.
    Each piece is looked up as eight bytes, unused ones zero; the zeros are then taken out of the whole.
    """
    part, onset, pitch = notes.part, notes.onset, notes.pitch
    count = len(onset)
    is_first = np.ones(count, bool)  # of its line
    is_first[1:] = np.diff(part << 40 | onset) != 0
    first = np.flatnonzero(is_first)  # (L,)
    line = np.cumsum(is_first) - 1  # (N,) the line of each note

    line_onset, line_part = onset[first], part[first]
    line_end = np.append(line_onset[1:], 0)  # (L,) the next line's onset ...
    is_last = np.append(line_part[1:] != line_part[:-1], True)
    line_end[is_last] = np.maximum.reduceat(notes.end, first)[is_last] if end is None else end
    line_time = np.maximum(line_end - line_onset, 1)

    before = np.arange(-1, count - 1)  # the note that each one's pitch is counted from
    before[first[1:]] = first[:-1]
    before[[start for start, _ in bounds]] = [start for start, _ in bounds]
    row = np.where(is_drum[part], 255 + pitch, 127 + pitch - pitch[before])
    length = notes.end - onset
    length[length == line_time[line]] = 0

    at = 2 * np.arange(count) + line  # (N,) the first piece of each note
    time_at = np.append(at[first[1:]], 2 * count + len(first)) - 1  # (L,)
    steps = np.zeros(2 * count + len(first), np.int64)  # what each piece says of time
    steps[at + 1], steps[time_at] = length, line_time
    pieces = np.empty(len(steps), np.uint64)
    pieces[at] = _note_table()[is_first.view(np.uint8), row, notes.bins]
    pieces[at + 1] = _time_table(":")[np.minimum(length, LONG)]
    pieces[time_at] = _time_table("|")[np.minimum(line_time, LONG)]

    bodies = []
    cuts = at[[start for start, _ in bounds]].tolist()
    for (start, _), here in zip(bounds, map(slice, cuts, [*cuts[1:], None]), strict=True):
        body = pieces[here].tobytes().translate(None, b"\0")[1:].decode("ascii") + "\n"
        if _BLANK in body:
            for long in steps[here][steps[here] >= LONG].tolist():
                body = body.replace(_BLANK, time_text(long), 1)
        if onset[start]:
            body = f"{time_text(int(onset[start]))}\n{body}"
        bodies.append(body)
    return bodies


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
    """(2, 383, 17) texts of a note: whether it is the first of its line; interval + 127, or 255 + drum; bin."""
    pitches = [f"{abs(interval)}{'+' if interval >= 0 else '-'}" for interval in range(-127, 128)]
    pitches += [f"{drum}=" for drum in range(128)]
    texts = [[[f"{mark}{pitch}{b}" for b in range(VELOCITY_BINS + 1)] for pitch in pitches] for mark in "|\n"]
    return np.array(texts, "S8").view(np.uint64)


# --- text -> Score ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Header:
    """The fields of a document's first line; None where it is silent."""

    program: int | None = None
    is_drum: bool = False
    tempo_bpm: int | None = None
    meter: tuple[int, int] | None = None
    key: int | None = None


def decode(documents: Iterable[str]) -> Score:
    """Read documents, in normal form or not, as the tracks of one score.

    Tempo and meter are those of the first document that names them. The clock is GRID ticks to the beat, or
    finer where a text's times need it. Raises LanguageError, which names document and line.
    """
    texts = list(documents)
    units = {
        int(unit) for text in texts for unit in _UNIT.findall(split_header(text)[1]) if len(unit) <= 5 and int(unit)
    }
    resolution = math.lcm(GRID, *units)
    if resolution > MAX_RESOLUTION:
        raise LanguageError(f"times in units of {', '.join(map(str, sorted(units)))} of a beat have no common clock")
    headers, tracks = [], []
    for number, text in enumerate(texts, start=1):
        try:
            headers.append(read_header(text))
            tracks.append(_decode_track(text, headers[-1], resolution))
        except LanguageError as error:
            raise LanguageError(f"document {number}, {error}" if len(texts) > 1 else str(error)) from None
    tempo = next((header.tempo_bpm for header in headers if header.tempo_bpm), 120)
    meter = next((header.meter for header in headers if header.meter), (4, 4))
    return Score(resolution, tuple(track for track in tracks if len(track)), float(tempo), meter)


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


def check_document(text: str) -> None:
    """A quick look whether text can be a document: LanguageError for prose, of course, and binary data.

    The header is read, the lines' characters and the first line's form are checked; not every line.
    """
    header = read_header(text)
    body = split_header(text)[1]
    if strange := body.translate(_NO_BODY):
        raise LanguageError(f"{_shown(strange)} has no place in a document's lines")
    if first := body.partition("\n")[0]:
        read_line(first, DEFAULT_KEY if header.key is None else header.key, header.is_drum)


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


def read_line(line: str, reference: int, is_drum: bool) -> tuple[list[tuple[int, int, str]], str, int]:
    """One line without its newline: its notes as (pitch, velocity bin, length or ""), its time, and the
    pitch the next line counts from. Raises LanguageError without the line's number."""
    *notes, time = line.split("|")
    if not _LINE_TIME.fullmatch(time):
        raise LanguageError(f"{_shown(line)} does not end in a time such as 1/2")
    read = []
    pitch = reference
    for i, note in enumerate(notes):
        match = _NOTE.fullmatch(note)
        if not match:
            raise LanguageError(f"{_shown(note)} is not a note such as 4+10 or 4-10:1/2")
        interval, sign, velocity = int(match[1]), match[2], int(match[3])
        if velocity > VELOCITY_BINS:
            raise LanguageError(f"velocity {velocity} of {note!r} is not in 1..{VELOCITY_BINS}")
        if is_drum and sign != "=":
            raise LanguageError(f"{note!r} is an interval, but drums are written as keys (36=10)")
        pitch = interval if sign == "=" else pitch + interval if sign == "+" else pitch - interval
        if not 0 <= pitch < 128:
            raise LanguageError(f"{note!r} leads to pitch {pitch}, outside 0..127")
        if i == 0:
            reference = pitch
        read.append((pitch, velocity, note.partition(":")[2]))
    return read, time, reference


def _shown(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:40] + "...")


def _decode_track(text: str, header: Header, resolution: int) -> Track:
    def to_ticks(time: str) -> int:
        count, _, unit = time.partition("/")
        return int(count) * (resolution // int(unit))

    rows: list[tuple[int, int, int, int]] = []
    now, reference = 0, DEFAULT_KEY if header.key is None else header.key
    body = split_header(text)[1]
    lines = body.removesuffix("\n").split("\n") if body else []
    for number, line in enumerate(lines, start=2 if text.startswith("#") else 1):
        try:
            notes, time, reference = read_line(line, reference, header.is_drum)
        except LanguageError as error:
            raise LanguageError(f"line {number}: {error}") from None
        line_ticks = to_ticks(time)
        for pitch, velocity_bin, length in notes:
            duration = to_ticks(length) if length else line_ticks
            rows.append((now, duration, pitch, velocity_bin * VELOCITY_STEP - VELOCITY_STEP // 2))
        now += line_ticks
        if now > MAX_TICKS:
            raise LanguageError(f"line {number}: the piece is longer than a MIDI file can be")
    rows.sort(key=lambda row: (row[0], row[2]))
    return Track(header.program or 0, header.is_drum, *np.array(rows, np.int64).reshape(-1, 4).T)
