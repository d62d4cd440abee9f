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
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cache
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

TEMPO_RANGE = range(4, 1000)  # of the reader; slower than 3.6 no MIDI file can be
MAX_TICKS = 2**31 - 1  # of a whole piece
MAX_RESOLUTION = 0x7FFF  # ticks per beat, likewise

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
    return min(TEMPOS, key=lambda tempo: abs(math.log(tempo / max(bpm, 1.0))))


def normalise(score: Score) -> Score:
    """What the language can hold of a score: decode(encode(score)) == normalise(score).

    In this order: notes are lengthened to the release of the sustain pedal; onsets and ends are rounded to
    the grid on the absolute clock, halves up; a note lasts at least a step; notes of one track with the same
    onset and pitch are joined (greater velocity, later end); a note is cut where its pitch starts again.
    Velocities become the middle of their bin, the tempo the nearest of TEMPOS. Names, and tracks without
    notes, are dropped.
    """
    tracks = (_normalise_track(track, score.ticks_per_beat) for track in score.tracks if len(track))
    return Score(GRID, tuple(tracks), float(nearest_tempo(score.tempo_bpm)), score.meter)


def _normalise_track(track: Track, ticks_per_beat: int) -> Track:
    onset, end, pitch = track.onset, track.onset + track.duration, track.pitch
    if len(track.pedal) and not track.is_drum:
        down, up = track.pedal.T
        held = np.searchsorted(down, end, side="right") - 1  # the last pedal pressed by the note's end
        is_held = (held >= 0) & (end < up[held])
        end = np.where(is_held, up[held], end)

    def to_grid(ticks: IntArray) -> IntArray:
        return (2 * GRID * ticks + ticks_per_beat) // (2 * ticks_per_beat)

    onset, end = to_grid(onset), to_grid(end)
    end = np.maximum(end, onset + 1)

    place = onset * 128 + pitch
    order = np.argsort(place, kind="stable")
    first = np.flatnonzero(np.diff(place[order], prepend=-1))  # of each group to be joined
    onset, pitch = onset[order][first], pitch[order][first]
    end = np.maximum.reduceat(end[order], first)
    velocity = np.maximum.reduceat(track.velocity[order], first)

    end = cut_repeats(onset, end, pitch)

    bins = -(-velocity // VELOCITY_STEP)
    velocity = bins * VELOCITY_STEP - VELOCITY_STEP // 2
    program = 0 if track.is_drum else track.program
    return Track(program, track.is_drum, onset, end - onset, pitch, velocity)


# --- Score -> text ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Document:
    """One track as text. `body`, the lines, is the same in every key."""

    header: str  # with its newline
    body: str
    notes: int

    @property
    def text(self) -> str:
        return self.header + self.body


def encode(score: Score, end: int | None = None) -> list[Document]:
    """Write a score in normal form, a document for each track that has notes.

    Documents end with their last note, or, if `end` (grid steps) is given and later than that note's onset,
    there: a prompt runs to its cut. Raises LanguageError for a piece of more than MAX_TICKS steps.
    """
    score = normalise(score)
    if score.end > MAX_TICKS:
        raise LanguageError(f"the piece is {score.end} steps long; {MAX_TICKS} is the most")
    return [_encode_track(track, score, end) for track in score.tracks]


def _encode_track(track: Track, score: Score, end: int | None) -> Document:
    first = np.flatnonzero(np.diff(track.onset, prepend=-1))  # (L,) first note of each line
    line_onset = track.onset[first]
    last_end = int(line_onset[-1] + track.duration[first[-1] :].max()) if end is None else end
    line_time = np.diff(line_onset, append=max(last_end, int(line_onset[-1]) + 1))  # (L,) steps
    line = np.repeat(np.arange(len(first)), np.diff(first, append=len(track)))  # (N,) the line of each note

    key = int(track.pitch[0])
    if track.is_drum:
        interval, sign = track.pitch, np.full(len(track), 2)
    else:
        interval = np.diff(track.pitch, prepend=key)
        interval[first] = np.diff(track.pitch[first], prepend=key)
        sign = (interval < 0).astype(np.int64)
    bins = (track.velocity + VELOCITY_STEP // 2) // VELOCITY_STEP

    # A note is two pieces of text (what it is; how long, if not as long as its line), a line's time is one.
    pieces = np.empty(2 * len(track) + len(first), object)
    at = 2 * np.arange(len(track)) + line
    pieces[at] = _note_texts()[sign, np.abs(interval), bins]
    is_detached = track.duration != line_time[line]
    length = np.full(len(track), "|", object)
    length[is_detached] = _time_texts(track.duration[is_detached], ":{}|")
    pieces[at + 1] = length
    pieces[2 * np.append(first[1:], len(track)) + np.arange(len(first))] = _time_texts(line_time, "{}\n")
    body = "".join(pieces.tolist())
    if line_onset[0]:
        body = f"{_time_text(int(line_onset[0]))}\n{body}"

    numerator, denominator = score.meter
    fields = [
        f"program={'d' if track.is_drum else track.program}",
        f"tempo={score.tempo_bpm:.0f}",
        f"meter={numerator}/{denominator}",
    ]
    if not track.is_drum:
        fields.append(f"key={key}")
    return Document(f"# {' '.join(fields)}\n", body, len(track))


def _time_text(steps: int) -> str:
    common = math.gcd(steps, GRID)
    return f"{steps // common}/{GRID // common}"


@cache
def _time_table(form: str) -> NDArray[np.object_]:
    return np.array([form.format(_time_text(steps)) for steps in range(64 * GRID)], object)


def _time_texts(steps: IntArray, form: str) -> NDArray[np.object_]:
    """The text of many times at once; times beyond the table's 64 beats are rare and written singly."""
    table = _time_table(form)
    texts = table[np.minimum(steps, len(table) - 1)]
    for i in np.flatnonzero(steps >= len(table)).tolist():
        texts[i] = form.format(_time_text(int(steps[i])))
    return texts


@cache
def _note_texts() -> NDArray[np.object_]:
    """(3, 128, 17) texts of a note by sign (+ - =), interval and velocity bin."""
    return np.array(
        [[[f"{interval}{sign}{b}" for b in range(VELOCITY_BINS + 1)] for interval in range(128)] for sign in "+-="],
        object,
    )


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
