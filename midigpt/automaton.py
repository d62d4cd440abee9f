"""The grammar of documents as an automaton over characters: what a take may be made of.

What the model writes is held to the normal form where that can be seen character by character: a document's first
interval is `0+`, the notes of a line ascend, times are on the grid and in lowest terms. And to what a player expects of
a take: it begins with a note, waits and notes that last for many bars are slips, drums are those of General MIDI.
"""

import math
from collections.abc import Callable, Iterable, Set
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
from numpy.typing import NDArray

from midigpt.header import METERS, TEMPOS
from midigpt.language import TRACKS
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
LONGEST_WAIT, LONGEST_NOTE = 8, 16  # beats
UNITS = [unit for unit in range(1, GRID + 1) if GRID % unit == 0]  # a beat's parts on the grid
END = "\0"  # stands for the start token, with which a document ends
SPARE = -1  # the pitch before the first drum of a line: any key is above it


@dataclass(frozen=True)
class Field:
    """A field of the header."""

    name: str
    values: frozenset[str]
    beginnings: frozenset[str]  # of the field as it is written


@dataclass(frozen=True)
class Bounds:
    """What documents may hold."""

    fields: tuple[Field, ...]
    drums: frozenset[str]  # keys
    drum_beginnings: frozenset[str]  # of their digits


State = tuple[str | int | bool | tuple[int, ...], ...]
# What a character does to the pitch: ("move", interval), ("first", interval) by a line's first note, ("key", number),
# ("drum", key), or ("turn",) at a line's end.
Effect = tuple[str | int, ...]
KINDS = {"move": 1, "first": 2, "key": 3, "drum": 4, "turn": 5}  # of effects, as numbers
Step = tuple[State, Effect] | None  # what a character does; None where it can't stand


# --- characters ------------------------------------------------------------------------------------------


def _begin(_: State, c: str, bounds: Bounds) -> Step:
    """("begin",): behind the start token, a header is to come."""
    return (("header", 0, False, SPARE, ""), ()) if c == "#" else None


def _header(state: State, c: str, bounds: Bounds) -> Step:
    """("header", number of fields read, is_drum, key, text since then)."""
    _, done, is_drum, key, text = state
    assert isinstance(done, int) and isinstance(key, int)
    fields = [field for field in bounds.fields if field.name != "key" or not is_drum]
    text = f"{text}{c}"
    if done == len(fields):
        return (("line", is_drum, "start"), ("key", key)) if text == "\n" else None
    field = fields[done]
    if text in field.beginnings:
        return ("header", done, is_drum, key, text), ()
    value = text[:-1].removeprefix(f" {field.name}=")
    if value not in field.values:
        return None
    # The character goes on with no value of this field: it is the first one behind it.
    if field.name == "program":
        is_drum = value == "d"
    elif field.name == "key":
        key = int(value)
    return _header(("header", done + 1, is_drum, key, ""), c, bounds)


def _line(state: State, c: str, bounds: Bounds) -> Step:
    """("line", is_drum, place): at a line's beginning. The place is the document's "start", behind given lines ("on"),
    or behind own ones ("more"), where it may end."""
    _, is_drum, place = state
    if c == END:
        return (("end",), ()) if place == "more" else None
    is_possible = c in bounds.drum_beginnings if is_drum else c == "0" if place == "start" else c.isdecimal()
    return (("number", is_drum, "first", int(c)), ()) if is_possible else None


def _number(state: State, c: str, bounds: Bounds) -> Step:
    """("number", is_drum, place, value): an interval or a drum's key; in a "next" field, behind notes, or the count of
    the line's time."""
    _, is_drum, place, value = state
    assert isinstance(value, int)
    is_next = place == "next"
    if c.isdecimal() and value:
        more = 10 * value + int(c)
        may_be_note = str(more) in bounds.drum_beginnings if is_drum else more < 128
        may_be_time = is_next and _may_be_time(more, LONGEST_WAIT)
        if more < 128 and (may_be_note or may_be_time):
            return ("number", is_drum, place, more), ()
        return (("counted", is_drum, "line", _units(more, LONGEST_WAIT)), ()) if may_be_time else None
    if c == "/" and is_next and (units := _units(value, LONGEST_WAIT)):
        return ("unit", is_drum, "line", units, ""), ()
    if is_drum:
        return (("velocity", is_drum, ""), ("drum", value)) if c == "=" and str(value) in bounds.drums else None
    if c == "+" or (c == "-" and value and not is_next):
        return ("velocity", is_drum, ""), ("move" if is_next else "first", value if c == "+" else -value)
    return None


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
    """("velocity", is_drum, text): behind a sign."""
    _, is_drum, text = state
    if c.isdecimal():
        text = f"{text}{c}"
        possible = any(str(b).startswith(text) for b in range(1, VELOCITY_BINS + 1))
        return (("velocity", is_drum, text), ()) if possible else None
    if text and c in ":|":
        return (("count", is_drum, 0), ()) if c == ":" else (("field", is_drum), ())
    return None


def _field(state: State, c: str, bounds: Bounds) -> Step:
    """("field", is_drum): behind a note's "|"."""
    return (("number", state[1], "next", int(c)), ()) if c in "123456789" else None


def _count(state: State, c: str, bounds: Bounds) -> Step:
    """("count", is_drum, value): of a note's length, up to 99."""
    _, is_drum, value = state
    assert isinstance(value, int)
    if c.isdecimal():
        more = 10 * value + int(c)
        if not more or not _may_be_time(more, LONGEST_NOTE):
            return None
        after = ("count", is_drum, more) if more < 100 else ("counted", is_drum, "note", _units(more, LONGEST_NOTE))
        return after, ()
    units = _units(value, LONGEST_NOTE) if value else ()
    return (("unit", is_drum, "note", units, ""), ()) if c == "/" and units else None


def _counted(state: State, c: str, bounds: Bounds) -> Step:
    """("counted", is_drum, what ends with it, possible units): behind the count of a time, which is complete."""
    return (("unit", *state[1:], ""), ()) if c == "/" else None


def _unit(state: State, c: str, bounds: Bounds) -> Step:
    """("unit", is_drum, what ends with it, possible units, text): behind a time's "/"."""
    _, is_drum, what, units, text = state
    assert isinstance(units, tuple)
    if c.isdecimal():
        text = f"{text}{c}"
        possible = any(str(unit).startswith(text) for unit in units)
        return (("unit", is_drum, what, units, text), ()) if possible else None
    if not text or int(str(text)) not in units:
        return None
    if what == "note":
        return (("field", is_drum), ()) if c == "|" else None
    return (("line", is_drum, "more"), ("key", SPARE) if is_drum else ("turn",)) if c == "\n" else None


def _end(state: State, c: str, bounds: Bounds) -> Step:
    """("end",): behind the document, for good."""
    return (state, ()) if c == END else None


_STEPS: dict[str, Callable[[State, str, Bounds], Step]] = {
    "begin": _begin,
    "header": _header,
    "line": _line,
    "number": _number,
    "velocity": _velocity,
    "field": _field,
    "count": _count,
    "counted": _counted,
    "unit": _unit,
    "end": _end,
}


# --- all states ------------------------------------------------------------------------------------------


def make_bounds(values: dict[str, list[str]], drums: Set[int]) -> Bounds:
    """Of the values that each field of the header may have, by its name, and the keys of drums."""

    def beginnings(texts: Iterable[str]) -> frozenset[str]:
        return frozenset(text[:end] for text in texts for end in range(1, len(text) + 1))

    fields = [Field(n, frozenset(v), beginnings(f" {n}={value}" for value in v)) for n, v in values.items()]
    keys = frozenset(map(str, drums))
    return Bounds(tuple(fields), keys, beginnings(keys))


@lru_cache(maxsize=4)  # the parts of a prompt have the same
def write_out(start: State, bounds: Bounds) -> tuple[dict[State, int], NDArray[np.int16]]:
    """The states, `start` first; for each state and character the next state, or -1, and the effect's kind and number,
    (3, S, C)."""
    states: dict[State, int] = {start: 0}
    rows: list[list[tuple[int, int, int]]] = []
    waiting = list(states)
    while waiting:
        state = waiting.pop(0)
        rows.append([])
        for c in END + TRACKS.alphabet:
            after, effect = _STEPS[str(state[0])](state, c, bounds) or (None, ())
            if after is not None and after not in states:
                states[after] = len(states)
                waiting.append(after)
            kind, number = (*effect, 0, 0)[:2]
            rows[-1].append((-1 if after is None else states[after], KINDS.get(str(kind), 0), int(number)))
    return states, np.array(rows, np.int16).transpose(2, 0, 1).copy()


def pitches_for(state: State, keys: range, drums: Set[int]) -> tuple[int, int]:
    """The pitch up to which, and that from which on, an unfinished number can become something."""
    anything = 127, -1
    if state[0] != "number":
        return anything
    _, is_drum, place, value = state
    assert isinstance(value, int)
    if place == "first":
        return anything if is_drum else (keys[-1] - value, keys[0] + value)
    if _may_be_time(value, LONGEST_WAIT):
        return anything
    highest = max((key for key in drums if str(key).startswith(str(value))), default=0)
    return highest - 1 if is_drum else keys[-1] - value, 128
