"""The grammar of documents as an automaton over characters: what a take may be made of.

What the model writes is held to the normal form where that can be seen character by character: the notes of a line
ascend, parts come in their order and are marked where they change, times are on the grid and in lowest terms, a first
interval of the encoding `interval` is `0+`. And to what a player expects of a take: it begins with a note, waits and
notes that last for many bars are slips, drums are those of General MIDI. Of encodings other than intervals and absolute
pitch only the header is known.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import cache, lru_cache

import numpy as np
from numpy.typing import NDArray

from midigpt import header
from midigpt.encodings import MARK_ALPHABET, interval, is_drum_mark
from midigpt.header import METERS, TEMPOS
from midigpt.normal import GRID, VELOCITY_BINS

# The fields of a header in their order, with the values to draw from.
FIELDS = {
    "program": [*map(str, range(128)), "d"],
    "tempo": [*map(str, TEMPOS)],
    "meter": [*METERS],
    "key": [*map(str, range(128))],
}
DRUM_KEYS = frozenset(range(35, 82))  # of General MIDI's percussion map
PIANO = range(21, 109)  # the keys of one
MARKS = [f"{program}{number}" for program in range(128) for number in ("", ".2", ".3", ".4")] + ["d"]  # from nothing
LONGEST_WAIT, LONGEST_NOTE = 8, 16  # beats
UNITS = [unit for unit in range(1, GRID + 1) if GRID % unit == 0]  # a beat's parts on the grid
END = "\0"  # stands for the start token, with which a document ends
OTHER = "\1"  # stands for every character that no rule knows
ALPHABET = "".join(sorted({*header.ALPHABET, *interval.ALPHABET, *MARK_ALPHABET})) + OTHER
NEVER = -1000, 1000  # the pitches up to which, and from which on, nothing is possible


@dataclass(frozen=True)
class Field:
    """A field of the header."""

    name: str
    values: frozenset[str]
    beginnings: frozenset[str]  # of the field as it is written


@dataclass(frozen=True)
class Bounds:
    """What documents may hold. Notes are of a kind: an "interval", a "key" (of absolute pitch) or a "drum"."""

    fields: tuple[Field, ...]
    marks: tuple[str, ...]  # of the parts in their order, with "@"; none in the track layout
    encoding: str  # the kind of notes that are no drums, or "free": there are no rules for lines
    keys: Mapping[str, frozenset[str]] = field(compare=False)  # of the kinds that are written as keys
    key_beginnings: Mapping[str, frozenset[str]] = field(compare=False)  # of their digits
    parts: Mapping[str, tuple[int, ...]] = field(compare=False)  # those whose mark begins so, by their number
    drums: frozenset[int]
    begins_at_key: bool  # whether the first note has to be the header's key

    def kind(self, part: str) -> str:
        """Of the notes of a part, by its mark, or by the program of a track."""
        return "drum" if is_drum_mark(part) else self.encoding


State = tuple[str | int | tuple[int, ...], ...]
# What a character does: ("move", interval) to the pitch, ("first", interval) by a part's first note in a line,
# ("rise", key) to a key that must be above the pitch before, ("key", number) by the header, ("part", number) by a mark,
# ("count", count) by a line's time, ("turn", steps that each of the count has) by a line's end.
Effect = tuple[str | int, ...]
KINDS = {"move": 1, "first": 2, "rise": 3, "key": 4, "part": 5, "count": 6, "turn": 7}  # of effects, as numbers
Step = tuple[State, Effect] | None  # what a character does; None where it can't stand


# --- characters ------------------------------------------------------------------------------------------


def _begin(_: State, c: str, bounds: Bounds) -> Step:
    """("begin",): behind the start token, a header is to come."""
    return (("header", 0, "", -1, ""), ()) if c == "#" else None


def _header(state: State, c: str, bounds: Bounds) -> Step:
    """("header", number of fields read, kind of notes if the header says it, key, text since then)."""
    _, done, kind, key, text = state
    assert isinstance(done, int) and isinstance(key, int)
    fields = [field for field in bounds.fields if field.name != "key" or kind != "drum"]
    text = f"{text}{c}"
    if done == len(fields):
        start = ("free", "start") if bounds.encoding == "free" else ("line", kind, "start")
        return (
            (start, ("key", key) if kind == "drum" or bounds.encoding == "interval" else ()) if text == "\n" else None
        )
    field = fields[done]
    if text in field.beginnings:
        return ("header", done, kind, key, text), ()
    value = text[:-1].removeprefix(f" {field.name}=")
    if value not in field.values:
        return None
    # The character goes on with no value of this field: it is the first one behind it.
    if field.name == "program":
        kind = bounds.kind(value)
    elif field.name == "key":
        key = int(value)
    return _header(("header", done + 1, kind, key, ""), c, bounds)


def _line(state: State, c: str, bounds: Bounds) -> Step:
    """("line", kind, place): at a line's beginning; the kind is of the part that goes on, "" where none does. The place
    is the document's "start", behind given lines ("on"), or behind own ones ("more"), where it may end."""
    _, kind, place = state
    if c == END:
        return (("end",), ()) if place == "more" else None
    if c == "d":
        return _mark(("mark", ""), c, bounds)
    is_bound = place == "start" and kind == "interval" and bounds.begins_at_key
    if c in bounds.parts or (_may_be_note(kind, c, bounds) and (c == "0" or not is_bound)):
        return ("number", kind, "first", int(c)), ()
    return None


def _may_be_note(kind: object, digits: str, bounds: Bounds) -> bool:
    """Whether digits are the beginning of a note's pitch."""
    if kind == "interval":
        return digits.isdecimal() and int(digits) < 128
    return digits in bounds.key_beginnings.get(str(kind), ())


def _note(state: State, c: str, bounds: Bounds) -> Step:
    """("note", kind): behind a part's mark."""
    return (("number", state[1], "marked", int(c)), ()) if _may_be_note(state[1], c, bounds) else None


def _number(state: State, c: str, bounds: Bounds) -> Step:
    """("number", kind, place, value): an interval or a key; in a "first" or "next" field of a line perhaps the program
    of a mark, in a "next" one, behind notes, perhaps the count of the line's time."""
    _, kind, place, value = state
    assert isinstance(value, int)
    is_next = place == "next"
    if c.isdecimal() and value:
        more = 10 * value + int(c)
        may_be_time = is_next and _may_be_time(more, LONGEST_WAIT)
        may_be_mark = place != "marked" and str(more) in bounds.parts
        if more < 128 and (_may_be_note(kind, str(more), bounds) or may_be_time or may_be_mark):
            return ("number", kind, place, more), ()
        return (("counted", kind, "line", _units(more, LONGEST_WAIT), more), ()) if may_be_time else None
    if c in ".@" and place != "marked":
        return _mark(("mark", str(value)), c, bounds)
    if c == "/" and is_next and value and (units := _units(value, LONGEST_WAIT)):
        return ("unit", kind, "line", units, ""), ("count", value)
    if kind != "interval":
        is_key = c == "=" and str(value) in bounds.keys.get(str(kind), ())
        return (("velocity", kind, ""), ("rise", value)) if is_key else None
    if (c == "+" and (value or not is_next)) or (c == "-" and value and not is_next):
        return ("velocity", kind, ""), ("move" if is_next else "first", value if c == "+" else -value)
    return None


def _mark(state: State, c: str, bounds: Bounds) -> Step:
    """("mark", text): in a part's mark, which may still be that of several parts."""
    text = f"{state[1]}{c}"
    parts = bounds.parts.get(text, ())
    if len(parts) != 1:
        return (("mark", text), ()) if parts else None
    mark = bounds.marks[parts[0]]
    kind, rest = bounds.kind(mark), mark.removeprefix(text)
    return ("rest", kind, rest) if rest else ("note", kind), ("part", parts[0])


def _rest(state: State, c: str, bounds: Bounds) -> Step:
    """("rest", kind, text): in the mark of the one part that it can be, of which the text is to come."""
    _, kind, rest = state
    rest = str(rest)
    return (("rest", kind, rest[1:]) if rest[1:] else ("note", kind), ()) if c == rest[0] else None


@cache
def _units(count: int, longest: int) -> tuple[int, ...]:
    """What a count can be of, in lowest terms and no longer than so many beats."""
    return tuple(unit for unit in UNITS if math.gcd(count, unit) == 1 and count <= longest * unit)


@cache
def _may_be_time(digits: int, longest: int) -> bool:
    """Whether digits are such a count, or the beginning of one."""
    more = range(10 * digits, min(10 * digits + 10, longest * GRID + 1))
    return bool(_units(digits, longest)) or any(_may_be_time(count, longest) for count in more)


def _velocity(state: State, c: str, bounds: Bounds) -> Step:
    """("velocity", kind, text): behind a sign."""
    _, kind, text = state
    if c.isdecimal():
        text = f"{text}{c}"
        possible = any(str(b).startswith(text) for b in range(1, VELOCITY_BINS + 1))
        return (("velocity", kind, text), ()) if possible else None
    if text and c in ":|":
        return (("count", kind, 0), ()) if c == ":" else (("field", kind), ())
    return None


def _field(state: State, c: str, bounds: Bounds) -> Step:
    """("field", kind): behind a note's "|"."""
    if c == "d":
        return _mark(("mark", ""), c, bounds)
    return (("number", state[1], "next", int(c)), ()) if c in "123456789" or c in bounds.parts else None


def _count(state: State, c: str, bounds: Bounds) -> Step:
    """("count", kind, value): of a note's length, up to 99."""
    _, kind, value = state
    assert isinstance(value, int)
    if c.isdecimal():
        more = 10 * value + int(c)
        if not more or not _may_be_time(more, LONGEST_NOTE):
            return None
        after = ("count", kind, more) if more < 100 else ("counted", kind, "note", _units(more, LONGEST_NOTE), 0)
        return after, ()
    units = _units(value, LONGEST_NOTE) if value else ()
    return (("unit", kind, "note", units, ""), ()) if c == "/" and units else None


def _counted(state: State, c: str, bounds: Bounds) -> Step:
    """("counted", kind, what ends with it, possible units, count of a line's time): behind a count that is complete."""
    _, kind, what, units, count = state
    assert isinstance(count, int)
    return (("unit", kind, what, units, ""), ("count", count) if what == "line" else ()) if c == "/" else None


def _unit(state: State, c: str, bounds: Bounds) -> Step:
    """("unit", kind, what ends with it, possible units, text): behind a time's "/"."""
    _, kind, what, units, text = state
    assert isinstance(units, tuple)
    if c.isdecimal():
        text = f"{text}{c}"
        possible = any(str(unit).startswith(text) for unit in units)
        return (("unit", kind, what, units, text), ()) if possible else None
    if not text or int(str(text)) not in units:
        return None
    if what == "note":
        return (("field", kind), ()) if c == "|" else None
    return (("line", kind, "more"), ("turn", GRID // int(str(text)))) if c == "\n" else None


def _free(state: State, c: str, bounds: Bounds) -> Step:
    """("free", place): in the lines of an encoding without rules; the place is "within" one, or as in _line."""
    if c == END:
        return (("end",), ()) if state[1] == "more" else None
    return ("free", "more" if c == "\n" else "within"), ()


def _end(state: State, c: str, bounds: Bounds) -> Step:
    """("end",): behind the document, for good."""
    return (state, ()) if c == END else None


_STEPS: dict[str, Callable[[State, str, Bounds], Step]] = {
    "begin": _begin,
    "header": _header,
    "line": _line,
    "note": _note,
    "number": _number,
    "mark": _mark,
    "rest": _rest,
    "velocity": _velocity,
    "field": _field,
    "count": _count,
    "counted": _counted,
    "unit": _unit,
    "free": _free,
    "end": _end,
}


# --- all states ------------------------------------------------------------------------------------------


def make_bounds(
    values: dict[str, list[str]], drums: Set[int], marks: Sequence[str], encoding: str, begins_at_key: bool
) -> Bounds:
    """Of the values that each field of the header may have, by its name, the keys of drums, and the marks of parts."""

    def beginnings(texts: Iterable[str]) -> frozenset[str]:
        return frozenset(text[:end] for text in texts for end in range(1, len(text) + 1))

    fields = [Field(n, frozenset(v), beginnings(f" {n}={value}" for value in v)) for n, v in values.items()]
    keys = {"drum": frozenset(map(str, drums)), "key": frozenset(map(str, range(128)))}
    parts: dict[str, tuple[int, ...]] = {}
    for number, mark in enumerate(marks):
        for end in range(1, len(mark) + 2):
            beginning = f"{mark}@"[:end]
            parts[beginning] = (*parts.get(beginning, ()), number)
    written = tuple(f"{mark}@" for mark in marks)
    key_beginnings = {kind: beginnings(its) for kind, its in keys.items()}
    return Bounds(tuple(fields), written, encoding, keys, key_beginnings, parts, frozenset(drums), begins_at_key)


@lru_cache(maxsize=4)  # the parts of a prompt have the same
def write_out(start: State, bounds: Bounds) -> tuple[dict[State, int], NDArray[np.int16]]:
    """The states, `start` first; for each state and character the next state, or -1, and the effect's kind and number,
    (3, S, C)."""
    states: dict[State, int] = {start: 0}
    rows: list[list[tuple[int, int, int]]] = []
    waiting = [start]
    for state in waiting:
        rows.append([])
        for c in END + ALPHABET:
            after, effect = _STEPS[str(state[0])](state, c, bounds) or (None, ())
            if after is not None and after not in states:
                states[after] = len(states)
                waiting.append(after)
            kind, number = (*effect, 0, 0)[:2]
            rows[-1].append((-1 if after is None else states[after], KINDS.get(str(kind), 0), int(number)))
    return states, np.array(rows, np.int16).transpose(2, 0, 1).copy()


def pitches_for(state: State, keys: range, bounds: Bounds) -> tuple[int, int]:
    """The pitch up to which, and that from which on, what is unfinished can become something other than a mark, in a
    part with these keys; of other states the highest pitch that there can be."""
    if state[0] in ("begin", "header", "free", "end"):
        return 127, NEVER[1]
    kind = state[1]
    if state[0] == "mark" or (state[0] == "number" and not kind):
        return NEVER
    top = keys[-1] if kind in ("interval", "key") else 127
    if state[0] != "number":
        return top, NEVER[1]
    _, _, place, value = state
    assert isinstance(value, int)
    if place == "next" and value and _may_be_time(value, LONGEST_WAIT):
        return top, NEVER[1]
    if kind == "interval":
        if place == "next":
            return (keys[-1] - value, NEVER[1]) if value else NEVER
        return keys[-1] - value, keys[0] + value
    leads_to = [int(key) for key in bounds.keys[str(kind)] if key.startswith(str(value)) and int(key) <= top]
    return max(leads_to, default=NEVER[0] + 1) - 1, NEVER[1]


def intervals_from(state: State) -> list[int]:
    """What an unfinished number of a part's first note in a line can be as an interval; of other states none."""
    if state[:2] != ("number", "interval") or state[2] == "next":
        return []
    value = int(str(state[3]))
    longer = [number for tens in (10, 100) for number in range(value * tens, (value + 1) * tens) if value]
    return [number for number in (value, *longer) if number < 128]


def parts_for(state: State, bounds: Bounds) -> tuple[int, int]:
    """The first and the last part whose mark an unfinished number or mark can become; -1 where there is none."""
    text = str(state[-1]) if state[0] == "mark" or (state[0] == "number" and state[2] != "marked") else ""
    parts = bounds.parts.get(text, (-1,))
    return min(parts), max(parts)


def is_settled(state: State) -> bool:
    """Whether it is certain, in the middle of a line, which part has played last in it."""
    return state[0] not in ("begin", "header", "line", "mark", "free", "end") and state[2:3] != ("first",)
