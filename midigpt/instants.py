"""Text -> what begins at each instant, as one number that octaves, doublings, loudness and lengths don't change.

Many documents are read at once, by numpy: the copy meter reads all training songs.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from midigpt.header import DEFAULT_KEY, Header, read_header, split_header
from midigpt.language import TRACKS, Language, decode, encode
from midigpt.normal import GRID
from midigpt.score import IntArray

TIME_AT = 43  # in a moment: from this bit on the time until the next; below it DRUM, and what begins
DRUM = 1 << 42
PITCH_CLASSES = 0xFFF
LONGEST = (1 << 20) - 1  # grid steps that a moment can hold: twelve hours at 60 beats per minute

_IS_MARK = bytes(byte in b"+-=/@\n" for byte in range(256))
_LENGTH = re.compile(rb"[^|:\n]*(?::(\d+)/(\d+))?")  # of a note, from its sign on
_POWERS = 10 ** np.arange(1, 11)
_IS_SIGN = np.array([byte in b"+-=" for byte in range(256)])
# A drum key's bit in two words of 64, and behind the 128 keys those of the pitch classes.
_LOW = np.array([1 << key if key < 64 else 0 for key in range(128)] + [1 << pc for pc in range(12)], np.uint64)
_HIGH = np.array([0 if key < 64 else 1 << (key - 64) for key in range(128)] + [0] * 12, np.uint64)


@dataclass(frozen=True)
class Instants:
    """The instants at which notes begin, part by part. In the track layout a document is a part."""

    headers: list[Header]  # (P,) of the parts; those of a song's parts say what plays
    text: IntArray  # (P,) the document of each part
    part: IntArray  # (L,) whose instant it is
    onset: IntArray  # (L,) grid steps since the document's beginning
    moment: IntArray  # (L,) what begins, and the time until the next; never 0
    notes: IntArray  # (L,) how many notes begin


def read_instants(texts: Sequence[str], language: Language = TRACKS) -> Instants:
    """Read documents, in normal form or not. Onsets are rounded to the grid as by `normalise`.

    A moment is a set of pitch classes (of drums: a 42-bit hash of the set of keys) and the time until the next
    instant, of the last one until the document's end, in a song until the end of the part's last notes: so a part
    gives what its own document would. A song's parts come in their order. Lines are not checked: what is no line
    gives some moment or other; but other encodings than intervals are read in full. Raises LanguageError for a
    header, or in those a line, that is none.
    """
    if not (language.is_chained or language.is_anchored):
        texts = [_in_intervals(text, language) for text in texts]
    split = [split_header(text) for text in texts]
    headers = [_header(header) for header, _ in split]
    bodies = [body if body.endswith("\n") or not body else body + "\n" for _, body in split]
    whole = ("|" + "".join(bodies)).encode("ascii", "replace")
    text = np.frombuffer(whole, np.uint8)
    last_newline = np.cumsum([len(body) for body in bodies], dtype=np.int64)  # (D,)

    mark = np.flatnonzero(np.frombuffer(whole.translate(_IS_MARK), bool))
    sort = text[mark]
    is_newline = sort == ord("\n")
    line = np.cumsum(is_newline) - is_newline  # (M,) of each mark
    newline = np.flatnonzero(is_newline)
    line_document = np.searchsorted(last_newline, mark[newline])  # (lines,)
    clock = _clock(text, mark[newline], mark[newline - 1], line_document)
    line_end = _on_grid(clock)
    line_begin = np.where(_changes(line_document), 0, np.append(0, line_end)[:-1])

    is_note = _IS_SIGN[sort]
    at, line = mark[is_note], line[is_note]  # (N,) of each note
    part, of_text = line_document[line], np.arange(len(texts))
    if language.is_song:
        part, of_text, headers = _parts(text, mark[sort == ord("@")], at, part, last_newline, headers)
        order = np.argsort(part, kind="stable")
        at, line, part = at[order], line[order], part[order]
    pitch = _pitches(_number_before(text, at), text[at], part << 32 | line, part, headers, language.is_anchored)

    onset = line_begin[line]
    first = np.flatnonzero(_changes(onset) | _changes(part))  # (L,) notes of each instant
    chord = _chords(pitch, np.array([header.is_drum for header in headers], bool)[part], first)
    notes = np.diff(first, append=len(onset))
    end = np.zeros(len(headers), np.int64)  # (P,)
    if language.is_song:
        begin = np.where(_changes(line_document), 0, np.append(0, clock)[:-1])
        end = _ends(whole, at, line, part, begin, clock, len(headers))
    else:
        end[line_document] = line_end  # the last of each document stays
    part, onset = part[first], onset[first]
    is_last = _changes(part, is_next=True)
    until = np.where(is_last, end[part], np.append(onset[1:], 0)[: len(onset)])
    wait = np.minimum(until - onset, LONGEST)
    return Instants(headers, of_text, part, onset, wait << TIME_AT | chord, notes)


def _in_intervals(text: str, language: Language) -> str:
    documents = encode(decode([text], language), language=replace(language, encoding=TRACKS.encoding))
    return documents[0].text if documents else "#\n"


# --- the parts of songs ----------------------------------------------------------------------------------


def _parts(
    text: NDArray[np.uint8],
    marks: IntArray,
    at: IntArray,
    document: IntArray,
    last_newline: IntArray,
    headers: list[Header],
) -> tuple[IntArray, IntArray, list[Header]]:
    """(N,) the part of each note; (P,) the document of each part; the parts' headers.

    Parts are numbered by document, then in their order. `marks` are the places of part marks in the text, `at` those
    of notes. A note without a mark before it in its document is of part 0@.
    """
    number = _number_before(text, marks)
    before = marks - 2 - np.searchsorted(_POWERS, number, side="right")  # where the number's point would be
    has_number = (text[before] == ord(".")) & (text[marks - 1] != ord("d"))
    program_at = np.where(has_number, before, marks)
    is_drum = text[program_at - 1] == ord("d")
    program = np.where(is_drum, 0, _number_before(text, program_at) & 127)
    code = is_drum.astype(np.int64) << 31 | program << 24 | np.where(has_number, number & 0xFFFFFF, 1)

    last = np.searchsorted(marks, at) - 1
    begin = np.append(0, last_newline)[document]
    is_marked = (last >= 0) & (np.append(marks, -1)[last] > begin)
    found = document << 32 | np.where(is_marked, np.append(code, 1)[last], 1)
    parts, part = np.unique(found, return_inverse=True)
    own = [replace(headers[key >> 32], is_drum=bool(key >> 31 & 1), program=key >> 24 & 127) for key in parts.tolist()]
    return part, parts >> 32, own


def _ends(
    whole: bytes,
    at: IntArray,
    line: IntArray,
    part: IntArray,
    begin: NDArray[np.float64],
    clock: NDArray[np.float64],
    parts: int,
) -> IntArray:
    """(P,) when the notes of each part's last line end, in grid steps since the document's beginning.

    Notes, (N,), are ordered by part, then by line. `begin` and `clock` say when each line begins and ends.
    """
    last_line = np.zeros(parts, np.int64)
    last_line[part] = line
    chosen = np.flatnonzero(line == last_line[part])
    ends = []
    for place, number in zip(at[chosen].tolist(), line[chosen].tolist(), strict=True):
        length = _LENGTH.match(whole, place)
        count, unit = length.groups(b"") if length else (b"", b"")
        ends.append(begin[number] + int(count) / max(int(unit), 1) if count else clock[number])
    end = np.zeros(parts, np.int64)
    np.maximum.at(end, part[chosen], _on_grid(np.array(ends)))
    return end


# --- notes -----------------------------------------------------------------------------------------------


@lru_cache(maxsize=4096)  # songs have many in common
def _header(line: str) -> Header:
    return read_header(line)


def moment_time(moment: IntArray) -> IntArray:
    """The time until the next instant, in grid steps."""
    return moment >> TIME_AT


def moved(moment: IntArray, keys: int) -> IntArray:
    """Moments of pitched notes moved up by 0..11 keys; of drums as they are."""
    chord = moment & PITCH_CLASSES
    turned = (chord << keys | chord >> (12 - keys)) & PITCH_CLASSES
    return np.where(moment & DRUM, moment, moment - chord + turned)


def _changes(values: IntArray, is_next: bool = False) -> NDArray[np.bool_]:
    """Which values differ from the one before; or from the next."""
    differs = np.diff(values) != 0
    return np.append(differs, True)[: len(values)] if is_next else np.append(True, differs)[: len(values)]


def _clock(text: NDArray[np.uint8], newline: IntArray, slash: IntArray, document: IntArray) -> NDArray[np.float64]:
    """When each line ends, in beats since its document's beginning: the sum of times."""
    beats = _number_before(text, slash) / np.maximum(_number_before(text, newline), 1)
    clock = np.cumsum(beats)
    first = np.maximum.accumulate(np.where(_changes(document), np.arange(len(document)), 0))
    return clock - (clock - beats)[first]


def _on_grid(beats: NDArray[np.float64]) -> IntArray:
    """Times in grid steps, halves rounded up; a sum of fractions may be a little less than it should."""
    return np.floor(beats * GRID + (0.5 + 1e-6)).astype(np.int64)


def _number_before(text: NDArray[np.uint8], at: IntArray) -> IntArray:
    """The numbers whose last digits stand before the given places."""
    value = (text[at - 1] - np.uint8(ord("0"))).astype(np.int64)
    going, scale = np.arange(len(at)), 1
    for back in range(2, 11):  # no number has more digits
        scale *= 10
        digit = text[at - back if len(going) == len(at) else at[going] - back] - np.uint8(ord("0"))
        is_digit = digit < 10
        going = going[is_digit]
        if not len(going):
            break
        value[going] += digit[is_digit].astype(np.int64) * scale
    return value


def _pitches(
    value: IntArray,
    sign: NDArray[np.uint8],
    line: IntArray,
    document: IntArray,
    headers: list[Header],
    is_anchored: bool,
) -> IntArray:
    """(N,) MIDI note numbers, whether or not there are such."""
    step = np.where(sign == ord("-"), -value, value)
    is_key = sign == ord("=")
    is_first = _changes(line)  # notes count from the one before in their line, a line's first from the anchor or ...
    first = np.flatnonzero(is_first)
    keys = np.array([DEFAULT_KEY if header.key is None else header.key for header in headers], np.int64)
    begin = np.where(is_key, value, keys[document] + step)
    if not is_anchored:  # ... from the last first
        begin[first] = _running(step[first], is_key[first] | _changes(document[first]), begin[first])
    return _running(step, is_key | is_first, begin)


def _running(step: IntArray, restarts: NDArray[np.bool_], begin: IntArray) -> IntArray:
    """The running sum of steps; where it restarts it is `begin`. It must restart at the first."""
    total = np.cumsum(step)
    last = np.maximum.accumulate(np.where(restarts, np.arange(len(step)), 0))
    return total - total[last] + begin[last]


def _chords(pitch: IntArray, is_drum: NDArray[np.bool_], first: IntArray) -> IntArray:
    """(L,) what begins with the notes from each of `first` to the next."""
    if not len(first):
        return np.empty(0, np.int64)
    bit = np.where(is_drum, pitch & 127, 128 + pitch % 12)
    low, high = np.bitwise_or.reduceat(_LOW[bit], first), np.bitwise_or.reduceat(_HIGH[bit], first)
    mixed = low * np.uint64(0x9E3779B97F4A7C15) ^ high * np.uint64(0xC2B2AE3D27D4EB4F)
    mixed = (mixed ^ mixed >> np.uint64(32)) * np.uint64(0xD6E8FEB86659FD93)
    return np.where(is_drum[first], DRUM | (mixed >> np.uint64(22)).astype(np.int64), low.astype(np.int64))
