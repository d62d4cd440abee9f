"""The grammar of documents as an automaton over tokens: what may follow, so that every take can be decoded.

An automaton over characters (`_STEPS`) is written out as states; from it, for each state and token, follows whether
the token may come, the state behind it, and what it does to the pitch that intervals count from. What the model
writes is held to the normal form where that can be seen character by character: a document's first interval is `0+`,
the notes of a line ascend, times are on the grid and in lowest terms. And to what a player expects of a take: it begins
with a note, waits and notes that last for many bars are slips, drums are those of General MIDI.
"""

import math
from collections.abc import Callable, Iterable, Set
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from midigpt.language import ALPHABET, DEFAULT_KEY, GRID, METERS, TEMPOS, VELOCITY_BINS
from midigpt.score import IntArray
from midigpt.tokenizer import START, ranges

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
_END = "\0"  # stands for the start token, with which a document ends
_SPARE = -1  # the pitch before the first drum of a line: any key is above it



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
Step = tuple[State, Effect] | None  # what a character does; None where it can't stand


# --- characters ------------------------------------------------------------------------------------------


def _begin(_: State, c: str, bounds: Bounds) -> Step:
    """("begin",): behind the start token, a header is to come."""
    return (("header", 0, False, _SPARE, ""), ()) if c == "#" else None


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
    if c == _END:
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
    return (("line", is_drum, "more"), ("key", _SPARE) if is_drum else ("turn",)) if c == "\n" else None


def _end(state: State, c: str, bounds: Bounds) -> Step:
    """("end",): behind the document, for good."""
    return (state, ()) if c == _END else None


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


# --- tokens ----------------------------------------------------------------------------------------------


class Place(NamedTuple):
    """Where a batch of documents stands; each of shape (B,)."""

    state: Tensor  # int64
    pitch: Tensor  # int16; that the next interval counts from; of a line of drums the latest
    first: Tensor  # int16; of the line's first note, which the next line counts from


class Grammar:
    """What may follow where, for the tokens of one tokenizer: tables of shape (S, V), states by tokens.

    Of whole documents, behind their start token: `wishes` are the only values that the header's fields of these
    names may have. Or, where `is_drum` is given, of lines that go on behind given ones, with a line of notes first.
    Without `may_end` there is no end. Notes stay within `keys`, drums within `drums`.
    A token is possible where its notes are: with the pitch before it between `low` and `high`. It changes the pitch
    by `add` or, without `keep`, sets it to that. A number that it leaves unfinished must still lead somewhere: from
    pitches up to `below` or from `above` on, of each state.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        wishes: dict[str, str] | None = None,
        may_end: bool = True,
        keys: range = range(128),
        drums: Set[int] = DRUM_KEYS,
        is_drum: bool | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        wishes = wishes or {}
        values = FIELDS | {"key": [*map(str, keys)]} | {name: [value] for name, value in wishes.items()}
        if "key" in wishes:  # which drums have none of
            values["program"] = [value for value in values["program"] if value != "d"]
        bounds = _bounds(values, drums)
        states, characters = _characters(("begin",) if is_drum is None else ("line", is_drum, "on"), bounds)
        names = (tokenizer.id_to_token(token) or "" for token in range(tokenizer.get_vocab_size()))
        texts = tuple(_END if name == START else name for name in names)
        tables = _compose(characters, texts, keys)
        if not may_end:
            ends = [n for state, n in states.items() if state[0] == "line"]
            tables["next"][ends, texts.index(_END)] = -1
        tensors = {name: torch.from_numpy(table).to(device) for name, table in tables.items()}
        self._next, self._low, self._high = tensors["next"], tensors["low"], tensors["high"]
        self._keep, self._add, self._first, self._turn = (tensors[name] for name in ("keep", "add", "first", "turn"))
        needs = torch.tensor([_pitches_for(state, keys, drums) for state in states], dtype=torch.int16, device=device)
        self._below, self._above = needs.T
        self._is_drum, self._device = is_drum, device

    def __len__(self) -> int:
        """The tokens there are."""
        return self._next.shape[1]

    def start(self, batch_size: int, pitch: int = DEFAULT_KEY) -> Place:
        """Where documents begin, or lines go on: the next one counts from `pitch`."""
        states = torch.zeros(batch_size, dtype=torch.long, device=self._device)
        pitches = torch.full((batch_size,), _SPARE if self._is_drum else pitch, dtype=torch.int16, device=self._device)
        return Place(states, pitches, pitches.clone())

    def allowed(self, place: Place) -> Tensor:
        """Which tokens can follow, (B, V)."""
        following, pitch = self._next[place.state], place.pitch[:, None]
        allowed = (following >= 0) & (pitch >= self._low[place.state]) & (pitch <= self._high[place.state])
        following, after = following.long(), pitch + self._add[place.state]
        return allowed & ((after <= self._below[following]) | (after >= self._above[following]))

    def advance(self, place: Place, tokens: Tensor) -> Place:
        """The place behind one more token of each document, (B,)."""
        at = place.state, tokens
        move = self._first[at]
        first = torch.where(move == _NONE, place.first, place.pitch + move)
        pitch = torch.where(self._keep[at], place.pitch, 0) + self._add[at]
        return Place(self._next[at].long(), torch.where(self._turn[at], first, pitch), first)


def _bounds(values: dict[str, list[str]], drums: Set[int]) -> Bounds:
    def beginnings(texts: Iterable[str]) -> frozenset[str]:
        return frozenset(text[:end] for text in texts for end in range(1, len(text) + 1))

    fields = [Field(n, frozenset(v), beginnings(f" {n}={value}" for value in v)) for n, v in values.items()]
    keys = frozenset(map(str, drums))
    return Bounds(tuple(fields), keys, beginnings(keys))


def _pitches_for(state: State, keys: range, drums: Set[int]) -> tuple[int, int]:
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


@lru_cache(maxsize=4)  # the parts of a prompt have the same
def _characters(start: State, bounds: Bounds) -> tuple[dict[State, int], NDArray[np.int16]]:
    """The states, `start` first; for each state and character the next state, or -1, and the effect's kind and number,
    (3, S, C)."""
    states: dict[State, int] = {start: 0}
    rows: list[list[tuple[int, int, int]]] = []
    waiting = list(states)
    while waiting:
        state = waiting.pop(0)
        rows.append([])
        for c in _END + ALPHABET:
            after, effect = _STEPS[str(state[0])](state, c, bounds) or (None, ())
            if after is not None and after not in states:
                states[after] = len(states)
                waiting.append(after)
            kind, number = (*effect, 0, 0)[:2]
            rows[-1].append((-1 if after is None else states[after], _KINDS.get(str(kind), 0), int(number)))
    return states, np.array(rows, np.int16).transpose(2, 0, 1).copy()


_KINDS = {"move": 1, "first": 2, "key": 3, "drum": 4, "turn": 5}
_NONE = -128  # no first note in this token


class _Trie(NamedTuple):
    """The beginnings of all tokens, (N,): a beginning's next ones lie side by side, and behind it."""

    letter: IntArray  # its last character's number
    token: IntArray  # that it is, or -1
    children: IntArray  # the first of its next ones
    ends: IntArray  # and where they end


@lru_cache(maxsize=4)
def _trie(texts: tuple[str, ...]) -> _Trie:
    number = {c: i for i, c in enumerate(_END + ALPHABET)}
    token = {text: n for n, text in enumerate(texts) if text and all(c in number for c in text)}
    beginnings = {"": [0, 0]} | {text[:end]: [0, 0] for text in token for end in range(1, len(text) + 1)}
    ordered = sorted(beginnings, key=lambda text: (len(text), text))
    for n, text in enumerate(ordered[1:], start=1):
        parent = beginnings[text[:-1]]
        parent[0], parent[1] = parent[0] or n, n + 1
    rows = [(number.get(text[-1:], 0), token.get(text, -1), *beginnings[text]) for text in ordered]
    return _Trie(*np.array(rows).T.copy())


def _compose(characters: NDArray[np.int16], texts: tuple[str, ...], keys: range) -> dict[str, NDArray[np.generic]]:
    """The tables of Grammar: every token read from every state, character by character, all at once."""
    _, states, alphabet = characters.shape
    shape, trie = (states, len(texts)), _trie(texts)
    next_state, kinds, numbers = characters.reshape(3, -1)  # by state and character in one index
    # What is still possible, (P,): from a state, a beginning of tokens that has led to a state.
    start, node, now = np.arange(states), np.zeros(states, np.int64), np.arange(states)
    keep, add = np.ones(states, bool), np.zeros(states, np.int16)
    low, high = np.full(states, -128, np.int16), np.full(states, 127, np.int16)
    first, turn = np.full(states, _NONE, np.int16), np.zeros(states, bool)
    tables: dict[str, NDArray[np.generic]] = {"next": np.full(shape, -1, np.int16)}
    tables |= {name: np.zeros(shape, np.int8) for name in ("low", "high", "add", "first")}
    tables |= {name: np.zeros(shape, bool) for name in ("keep", "turn")}
    while len(start):
        # Each goes on with each of its next characters that its state has a place for.
        parent = np.repeat(np.arange(len(start)), trie.ends[node] - trie.children[node])
        node = ranges(trie.children[node], trie.ends[node] - trie.children[node])
        step = now[parent] * alphabet + trie.letter[node]
        can = np.flatnonzero(next_state[step] >= 0)
        parent, node, step = parent[can], node[can], step[can]
        start, keep, add = start[parent], keep[parent], add[parent]
        low, high, first, turn = low[parent], high[parent], first[parent], turn[parent]
        now, kind, value = next_state[step].astype(np.int64), kinds[step], numbers[step]
        is_move, is_key, is_drum = (kind == 1) | (kind == 2), kind == 3, kind == 4
        high = np.where(is_drum & keep, np.minimum(high, value - 1), high)
        possible = ~(is_drum & ~keep & (add >= value))
        add = np.where(is_move, add + value, np.where(is_key | is_drum, value, add))
        keep &= ~(is_key | is_drum)
        low = np.where(is_move, np.maximum(low, keys[0] - add), low)
        high = np.where(is_move, np.minimum(high, keys[-1] - add), high)
        first = np.where(kind == 2, add, first)
        turn |= kind == 5
        possible &= low <= high

        done = possible & (trie.token[node] >= 0)
        pair = start[done], trie.token[node[done]]
        for name, values in (("next", now), ("low", low), ("high", high), ("add", add), ("first", first)):
            tables[name][pair] = values[done]
        tables["keep"][pair], tables["turn"][pair] = keep[done], turn[done]
        start, node, now, keep, add = start[possible], node[possible], now[possible], keep[possible], add[possible]
        low, high, first, turn = low[possible], high[possible], first[possible], turn[possible]
    return tables
