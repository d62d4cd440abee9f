"""The grammar over tokens: which may come next, so that every take can be decoded.

From the automaton over characters (automaton.py) follows for each of its states and each token whether the token may
come, the state behind it, and what it does to the pitch that intervals count from.
"""

from collections.abc import Set
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from midigpt.automaton import DRUM_KEYS, END, FIELDS, KINDS, SPARE, make_bounds, pitches_for, write_out
from midigpt.header import DEFAULT_KEY
from midigpt.language import TRACKS
from midigpt.score import IntArray
from midigpt.tokenizer import START_ID, ranges, token_texts

_NONE = -128  # stands for no first note in a token


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
        if int(wishes.get("key", keys[0])) not in keys:
            raise ValueError(f"a first note {wishes['key']} outside {keys}")
        values = FIELDS | {"key": [*map(str, keys)]} | {name: [value] for name, value in wishes.items()}
        if "key" in wishes:  # which drums have none of
            values["program"] = [value for value in values["program"] if value != "d"]
        bounds = make_bounds(values, drums)
        states, characters = write_out(("begin",) if is_drum is None else ("line", is_drum, "on"), bounds)
        self.texts = token_texts(tokenizer)
        tables = _compose(characters, tuple(self.texts), keys)
        if not may_end:
            ends = [n for state, n in states.items() if state[0] == "line"]
            tables["next"][ends, START_ID] = -1
        tensors = {name: torch.from_numpy(table).to(device) for name, table in tables.items()}
        self._next, self._low, self._high = tensors["next"], tensors["low"], tensors["high"]
        self._keep, self._add, self._first, self._turn = (tensors[name] for name in ("keep", "add", "first", "turn"))
        needs = torch.tensor([pitches_for(state, keys, drums) for state in states], dtype=torch.int16, device=device)
        self._below, self._above = needs.T
        self._is_drum, self._device = is_drum, device

    def start(self, batch_size: int, pitch: int = DEFAULT_KEY) -> Place:
        """Where documents begin, or lines go on: the next one counts from `pitch`."""
        states = torch.zeros(batch_size, dtype=torch.long, device=self._device)
        pitches = torch.full((batch_size,), SPARE if self._is_drum else pitch, dtype=torch.int16, device=self._device)
        return Place(states, pitches, pitches.clone())

    def allowed(self, place: Place) -> Tensor:
        """Which tokens can follow, (B, V)."""
        following, pitch = self._next[place.state], place.pitch[:, None]
        allowed = (following >= 0) & (pitch >= self._low[place.state]) & (pitch <= self._high[place.state])
        following, after = following.long(), torch.where(self._keep[place.state], pitch, 0) + self._add[place.state]
        return allowed & ((after <= self._below[following]) | (after >= self._above[following]))

    def advance(self, place: Place, tokens: Tensor) -> Place:
        """The place behind one more token of each document, (B,)."""
        at = place.state, tokens
        move = self._first[at]
        first = torch.where(move == _NONE, place.first, place.pitch + move)
        pitch = torch.where(self._keep[at], place.pitch, 0) + self._add[at]
        return Place(self._next[at].long(), torch.where(self._turn[at], first, pitch), first)


class _Trie(NamedTuple):
    """The beginnings of all tokens, (N,): a beginning's next ones lie side by side, and behind it."""

    letter: IntArray  # its last character's number
    token: IntArray  # that it is, or -1
    children: IntArray  # the first of its next ones
    ends: IntArray  # and where they end


@lru_cache(maxsize=4)
def _trie(texts: tuple[str, ...]) -> _Trie:
    number = {c: i for i, c in enumerate(END + TRACKS.alphabet)}
    token = {text: n for n, text in enumerate(texts) if text and all(c in number for c in text)} | {END: START_ID}
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
        is_first, is_key, is_drum = (kind == KINDS[name] for name in ("first", "key", "drum"))
        is_move = is_first | (kind == KINDS["move"])
        high = np.where(is_drum & keep, np.minimum(high, value - 1), high)
        possible = ~(is_drum & ~keep & (add >= value))
        add = np.where(is_move, add + value, np.where(is_key | is_drum, value, add))
        keep &= ~(is_key | is_drum)
        low = np.where(is_move, np.maximum(low, keys[0] - add), low)
        high = np.where(is_move, np.minimum(high, keys[-1] - add), high)
        first = np.where(is_first, add, first)
        turn |= kind == KINDS["turn"]
        possible &= low <= high

        done = possible & (trie.token[node] >= 0)
        pair = start[done], trie.token[node[done]]
        for name, values in (("next", now), ("low", low), ("high", high), ("add", add), ("first", first)):
            tables[name][pair] = values[done]
        tables["keep"][pair], tables["turn"][pair] = keep[done], turn[done]
        start, node, now, keep, add = start[possible], node[possible], now[possible], keep[possible], add[possible]
        low, high, first, turn = low[possible], high[possible], first[possible], turn[possible]
    return tables
