"""The grammar of documents as an automaton over tokens: what may follow, so that every take can be decoded.

An automaton over characters (`_STEPS`) is written out as states; from it, for each state and token, follows whether
the token may come, the state behind it, and what it does to the pitch that intervals count from. What the model
writes is held to the normal form where that can be seen character by character: the notes of a line ascend, times
are on the grid and in lowest terms, silence is a line of its own only at the beginning. Two limits are the
automaton's own: a time's count has at most three digits (999 beats), and a header has all four fields.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from midigpt.language import ALPHABET, DEFAULT_KEY, GRID, METERS, TEMPOS, VELOCITY_BINS
from midigpt.tokenizer import START

# The fields of a header in their order, with the values to draw from.
FIELDS = {
    "program": [*map(str, range(128)), "d"],
    "tempo": [*map(str, TEMPOS)],
    "meter": [*METERS],
    "key": [*map(str, range(128))],
}
UNITS = [str(unit) for unit in range(1, GRID + 1) if GRID % unit == 0]  # a beat's parts on the grid
_RESIDUE = math.prod(p for p in (2, 3, 5, 7) if GRID % p == 0)  # what of a count tells its common factors with those
_END = "\0"  # stands for the start token, with which a document ends
_SPARE = -1  # the pitch before the first drum of a line: any key is above it



class Field(NamedTuple):
    """A field of the header."""

    values: set[str]  # that it may have
    beginnings: set[str]  # of the field as it is written


Fields = dict[str, Field]
State = tuple[str | int | bool, ...]
# What a character does to the pitch: ("move", interval), ("first", interval) by a line's first note, ("key", number),
# ("drum", key), or ("turn",) at a line's end.
Effect = tuple[str | int, ...]
Step = tuple[State, Effect] | None  # what a character does; None where it can't stand


# --- characters ------------------------------------------------------------------------------------------


def _begin(state: State, c: str, fields: Fields) -> Step:
    """("begin",): behind the start token, a header is to come."""
    return (("header", 0, False, _SPARE, ""), ()) if c == "#" else None


def _end(state: State, c: str, fields: Fields) -> Step:
    """("end",): behind the document, for good."""
    return (state, ()) if c == _END else None


def _header(state: State, c: str, fields: Fields) -> Step:
    """("header", number of fields read, is_drum, key, text since then)."""
    _, done, is_drum, key, text = state
    assert isinstance(done, int)
    names = [name for name in fields if name != "key" or not is_drum]
    text = f"{text}{c}"
    if done == len(names):
        return (("line", is_drum, 0), ("key", key)) if text == "\n" else None
    if text in fields[names[done]].beginnings:
        return ("header", done, is_drum, key, text), ()
    value = text[:-1].removeprefix(f" {names[done]}=")
    if value not in fields[names[done]].values:
        return None
    # The character goes on with no value of this field: it is the first one behind it.
    if names[done] == "program":
        is_drum = value == "d"
    elif names[done] == "key":
        key = int(value)
    return _header(("header", done + 1, is_drum, key, ""), c, fields)


def _line(state: State, c: str, fields: Fields) -> Step:
    """("line", is_drum, stage): at a line's start; stage 0 before all lines, 1 behind silence, 2 behind notes."""
    _, is_drum, stage = state
    if c == _END:
        return (("end",), ()) if stage == 2 else None
    if c.isdecimal():
        return ("number", is_drum, "first" if stage else "opening", int(c)), ()
    return None


def _number(state: State, c: str, fields: Fields) -> Step:
    """("number", is_drum, place, value): an interval, or a time's count. In a line's "first" field it can't be a
    count; in the document's "opening" one it can be silence's; in a "next" one the line's."""
    _, is_drum, place, value = state
    assert isinstance(value, int)
    may_be_note = place != "next" or value > 0  # the notes of a line ascend
    may_be_time = place != "first" and value > 0
    if c.isdecimal() and value:
        more = 10 * value + int(c)
        if more < 128:
            return ("number", is_drum, place, more), ()
        return (("count", is_drum, _ends(place), len(str(more)), more % _RESIDUE), ()) if may_be_time else None
    if c == "/" and may_be_time:
        return ("unit", is_drum, _ends(place), value % _RESIDUE, ""), ()
    if is_drum:
        return (("velocity", is_drum, ""), ("drum", value)) if c == "=" and may_be_note else None
    if (c == "+" and may_be_note) or (c == "-" and value and place != "next"):
        return ("velocity", is_drum, ""), ("move" if place == "next" else "first", value if c == "+" else -value)
    return None


def _ends(place: str | int | bool) -> str:
    return "silence" if place == "opening" else "line"


def _velocity(state: State, c: str, fields: Fields) -> Step:
    """("velocity", is_drum, text): behind a sign."""
    _, is_drum, text = state
    if c.isdecimal():
        text = f"{text}{c}"
        possible = any(str(b).startswith(text) for b in range(1, VELOCITY_BINS + 1))
        return (("velocity", is_drum, text), ()) if possible else None
    if text and c in ":|":
        return (("count", is_drum, "note", 0, 0), ()) if c == ":" else (("field", is_drum), ())
    return None


def _field(state: State, c: str, fields: Fields) -> Step:
    """("field", is_drum): behind a note's "|"."""
    return (("number", state[1], "next", int(c)), ()) if c in "123456789" else None


def _count(state: State, c: str, fields: Fields) -> Step:
    """("count", is_drum, what ends with it, digits, residue): of a note's length, or of any time from 128 on."""
    _, is_drum, what, digits, residue = state
    assert isinstance(digits, int) and isinstance(residue, int)
    if c.isdecimal() and digits < 3 and (digits or c != "0"):
        return ("count", is_drum, what, digits + 1, (10 * residue + int(c)) % _RESIDUE), ()
    return (("unit", is_drum, what, residue, ""), ()) if c == "/" and digits else None


def _unit(state: State, c: str, fields: Fields) -> Step:
    """("unit", is_drum, what ends with it, residue of the count, text): behind a time's "/"."""
    _, is_drum, what, residue, text = state
    assert isinstance(residue, int)
    units = [unit for unit in UNITS if math.gcd(residue, int(unit)) == 1 or unit == "1"]
    if c.isdecimal():
        text = f"{text}{c}"
        return (("unit", is_drum, what, residue, text), ()) if any(u.startswith(text) for u in units) else None
    if text not in units:
        return None
    if what == "note":
        return (("field", is_drum), ()) if c == "|" else None
    if c != "\n":
        return None
    if what == "silence":
        return ("line", is_drum, 1), ()
    return ("line", is_drum, 2), ("key", _SPARE) if is_drum else ("turn",)


_STEPS: dict[str, Callable[[State, str, Fields], Step]] = {
    "begin": _begin,
    "header": _header,
    "line": _line,
    "number": _number,
    "velocity": _velocity,
    "field": _field,
    "count": _count,
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
    Without `may_end` there is no end. Notes that are not drums stay within `keys`.

    A token is possible where its notes are: with the pitch before it between `low` and `high`. It changes the pitch
    by `add` or, without `keep`, sets it to that. It may leave an interval unfinished that is too `wide` for both
    directions.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        wishes: dict[str, str] | None = None,
        may_end: bool = True,
        keys: range = range(128),
        is_drum: bool | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        values = FIELDS | {"key": [*map(str, keys)]} | {name: [value] for name, value in (wishes or {}).items()}
        fields = {name: _field_of(name, texts) for name, texts in values.items()}
        states, characters = _characters(("begin",) if is_drum is None else ("line", is_drum, 1), fields)
        texts = [tokenizer.id_to_token(token) or "" for token in range(tokenizer.get_vocab_size())]
        texts = [_END if text == START else text for text in texts]
        tables = _compose(characters, texts, keys)
        if not may_end:
            ends = [n for state, n in states.items() if state[0] == "line"]
            tables["next"][ends, texts.index(_END)] = -1
        tensors = {name: torch.from_numpy(table).to(device) for name, table in tables.items()}
        self._next, self._low, self._high = tensors["next"], tensors["low"], tensors["high"]
        self._keep, self._add, self._first, self._turn = (tensors[name] for name in ("keep", "add", "first", "turn"))
        wide = [s[3] if s[0] == "number" and s[2] == "first" and not s[1] else 0 for s in states]
        self._keys, self._is_drum = keys, is_drum
        self._wide = torch.tensor(wide, dtype=torch.int16, device=device)
        self._device = device

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
        wide, after = self._wide[following.long()], pitch + self._add[place.state]
        return allowed & ((after >= wide + self._keys[0]) | (after <= self._keys[-1] - wide))

    def advance(self, place: Place, tokens: Tensor) -> Place:
        """The place behind one more token of each document, (B,)."""
        at = place.state, tokens
        move = self._first[at]
        first = torch.where(move == _NONE, place.first, place.pitch + move)
        pitch = torch.where(self._keep[at], place.pitch, 0) + self._add[at]
        return Place(self._next[at].long(), torch.where(self._turn[at], first, pitch), first)


def _field_of(name: str, values: list[str]) -> Field:
    texts = [f" {name}={value}" for value in values]
    return Field(set(values), {text[:end] for text in texts for end in range(1, len(text) + 1)})


def _characters(start: State, fields: Fields) -> tuple[dict[State, int], NDArray[np.int16]]:
    """The states, `start` first; for each state and character the next state, or -1, and the effect's kind and number,
    (3, S, C)."""
    states: dict[State, int] = {start: 0}
    rows: list[list[tuple[int, int, int]]] = []
    waiting = list(states)
    while waiting:
        state = waiting.pop(0)
        rows.append([])
        for c in _END + ALPHABET:
            after, effect = _STEPS[str(state[0])](state, c, fields) or (None, ())
            if after is not None and after not in states:
                states[after] = len(states)
                waiting.append(after)
            kind, number = (*effect, 0, 0)[:2]
            rows[-1].append((-1 if after is None else states[after], _KINDS.get(str(kind), 0), int(number)))
    return states, np.array(rows, np.int16).transpose(2, 0, 1).copy()


_KINDS = {"move": 1, "first": 2, "key": 3, "drum": 4, "turn": 5}
_NONE = -128  # no first note in this token


def _compose(
    characters: NDArray[np.int16], texts: list[str], keys: range
) -> dict[str, NDArray[np.generic]]:
    """The tables of Grammar: every token read from every state, character by character, all at once."""
    _, states, alphabet = characters.shape
    shape = states, len(texts)
    number = {c: i for i, c in enumerate(_END + ALPHABET)}
    known = np.array([bool(text) and all(c in number for c in text) for text in texts])
    longest = max(map(len, texts))
    letters = np.array([[number.get(c, 0) for c in text.ljust(longest)] for text in texts], np.int32)  # (V, longest)
    lengths = np.where(known, [len(text) for text in texts], 0)

    # The pairs that are still possible, (P,).
    next_state, kinds, numbers = characters.reshape(3, -1)  # by state and character in one index
    start, token = (i.astype(np.int32) for i in np.nonzero((characters[0][:, letters[:, 0]] >= 0) & known))
    now = start
    keep, add = np.ones(len(now), bool), np.zeros(len(now), np.int16)
    low, high = np.full(len(now), -128, np.int16), np.full(len(now), 127, np.int16)
    first, turn = np.full(len(now), _NONE, np.int16), np.zeros(len(now), bool)
    tables: dict[str, NDArray[np.generic]] = {"next": np.full(shape, -1, np.int16)}
    tables |= {name: np.zeros(shape, np.int8) for name in ("low", "high", "add", "first")}
    tables |= {name: np.zeros(shape, bool) for name in ("keep", "turn")}
    for at in range(longest):
        step = now * alphabet + letters[token, at]
        now, kind, value = next_state[step].astype(np.int32), kinds[step], numbers[step]
        is_move, is_key, is_drum = (kind == 1) | (kind == 2), kind == 3, kind == 4
        high = np.where(is_drum & keep, np.minimum(high, value - 1), high)
        possible = (now >= 0) & ~(is_drum & ~keep & (add >= value))
        add = np.where(is_move, add + value, np.where(is_key | is_drum, value, add))
        keep &= ~(is_key | is_drum)
        low = np.where(is_move, np.maximum(low, keys[0] - add), low)
        high = np.where(is_move, np.minimum(high, keys[-1] - add), high)
        first = np.where(kind == 2, add, first)
        turn |= kind == 5
        possible &= low <= high

        done = possible & (lengths[token] == at + 1)
        pair = start[done], token[done]
        for name, values in (("next", now), ("low", low), ("high", high), ("add", add), ("first", first)):
            tables[name][pair] = values[done]
        tables["keep"][pair], tables["turn"][pair] = keep[done], turn[done]
        on = possible & ~done
        start, token, now, keep, add = start[on], token[on], now[on], keep[on], add[on]
        low, high, first, turn = low[on], high[on], first[on], turn[on]

    return tables
