"""The grammar over tokens: which may come next, so that every take can be decoded.

From the automaton over characters (automaton.py) follows for each of its states and each token whether the token may
come, the state behind it, and what it does to the pitches that intervals count from and to the time.
"""

from collections.abc import Mapping, Sequence, Set
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from midigpt import automaton
from midigpt.automaton import ALPHABET, DRUM_KEYS, END, FIELDS, KINDS, MARKS, OTHER, Bounds, State
from midigpt.bpe import START_ID, token_texts
from midigpt.encodings import MARK_ALPHABET, is_drum_mark, part_order
from midigpt.header import DEFAULT_KEY
from midigpt.language import TRACKS, Language
from midigpt.positions import POSITIONS_A_STEP
from midigpt.score import IntArray
from midigpt.tokenizer import ranges

# The kind of notes by encoding; of others there are no rules.
NOTES = {"interval": "interval", "anchored": "interval", "absolute": "key"}
_NONE = -128  # stands for no first interval in a token
_NOT_NOW = 300  # stands for the pitch of a part that can't come: higher than any that may come before a token


class Place(NamedTuple):
    """Where a batch of documents stands, with P parts."""

    state: Tensor  # (B,) int64
    pitch: Tensor  # (B,) int16; that the next interval counts from, or the next key is to be above
    references: Tensor  # (B, P) int16; that each part's first note in a line counts from, or is to be above
    part: Tensor  # (B,) int64; which has played last; -1 before the first
    floor: Tensor  # (B,) int64; which one a mark must come behind: in a line the last one, at its beginning -1
    has_key: Tensor  # (B,) bool; whether the first note, which must be the header's key, is written or not asked for
    count: Tensor  # (B,) int64; of the line's time
    time: Tensor  # (B,) int64; grid steps from the document's beginning to that of the line that the next token is of
    index: Tensor  # (B,) int64; of the next token in its line

    def position(self) -> Tensor:
        """Of the next token in musical time (midigpt/positions.py), (B,)."""
        return POSITIONS_A_STEP * self.time + self.index


class Grammar:
    """What may follow where, for the tokens of one tokenizer: tables of shape (S, V), states by tokens.

    Of whole documents, behind their start token: `wishes` are the only values that the header's fields of these
    names may have. Or, where `behind` is given, of lines that go on behind given ones, with a line of notes first: it
    is the mark of the part that played last there, "" for none; in the track layout "d" for drums, else "". Without
    `may_end` there is no end. In the song layout parts are those with the given marks. Notes stay within `keys`, which
    can be given by mark, drums within `drums`. Of encodings without rules (`is_free`) any line may come, and
    the time is not known.

    A token is possible where its notes are: with the pitch before it up to `high`, and, if it holds its part's first
    note in the line, `down` keys or more above the lowest. It changes the pitch by `add` or, without `keep`, sets it to
    that. A number that it leaves unfinished must still lead somewhere: to a note, from pitches up to `below` or from
    `above` on, of each state, or to a mark.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        language: Language = TRACKS,
        wishes: dict[str, str] | None = None,
        may_end: bool = True,
        keys: range | Mapping[str, range] = range(128),
        drums: Set[int] = DRUM_KEYS,
        marks: Sequence[str] = MARKS,
        behind: str | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        self.language = language
        notes = NOTES.get(language.encoding, "free")
        self.is_free, self._device = notes == "free", device
        self._has_marks = language.is_song and not self.is_free
        self.marks = sorted(marks, key=part_order) if self._has_marks else [""]
        values = _header_values(language, wishes or {}, keys, marks)
        self._is_anchored = language.is_anchored
        self._begins_at_key = behind is None and language.is_chained
        marked = self.marks if self._has_marks else ()
        bounds = automaton.make_bounds(values, drums, marked, notes, self._begins_at_key)
        states, characters = automaton.write_out(self._start(bounds, behind), bounds)
        self.texts = token_texts(tokenizer)
        tables = _compose(characters, np.array([state[0] == "mark" for state in states]), tuple(self.texts))
        if not may_end:
            ends = [n for state, n in states.items() if state[0] in ("line", "free")]
            tables["next"][ends, START_ID] = -1
        tensors = {name: torch.from_numpy(table).to(device) for name, table in tables.items()}
        self._next, self._keep, self._add = tensors["next"], tensors["keep"], tensors["add"]
        self._high, self._down = tensors["high"], tensors["down"]
        self._count, self._turn = tensors["count"], tensors["turn"]
        self._is_end = self._tensor([text.endswith("\n") for text in self.texts], torch.bool)
        if self._has_marks:
            self._know_marks(tables["mark"])
        self._behind = self.marks.index(behind) if self._has_marks and behind else -1 if self._has_marks else 0
        self._know_parts(bounds, keys, behind)
        self._know_states(bounds, list(states))

    def _start(self, bounds: Bounds, behind: str | None) -> State:
        if behind is None:
            return ("begin",)
        if self.is_free:
            return "free", "on"
        return "line", bounds.kind(behind) if behind or not self._has_marks else "", "on"

    def _know_marks(self, marks: NDArray[np.int16]) -> None:
        """The tokens that decide which part comes, (M,), with its number behind each state, (S, M + 1), the last column
        for all other tokens; and those that can be the beginning of a mark, (U,)."""
        with_mark = np.flatnonzero((marks >= 0).any(axis=0)).tolist()
        before_end = set(MARK_ALPHABET) - {"@"}
        beginnings = [token for token, text in enumerate(self.texts) if text and set(text) <= before_end]
        self._with_mark, self._beginnings = (self._tensor(tokens, torch.long) for tokens in (with_mark, beginnings))
        self._column = self._tensor([len(with_mark)] * len(self.texts), torch.long)
        self._column[self._with_mark] = torch.arange(len(with_mark), device=self._device)
        none = np.full((len(marks), 1), -1, np.int16)
        self._mark = torch.from_numpy(np.hstack([marks[:, with_mark], none])).to(self._device)

    def _know_parts(self, bounds: Bounds, keys: range | Mapping[str, range], behind: str | None) -> None:
        """What is known of each part, (P,), and of the ranges of keys that they have, (R,)."""
        kinds = [bounds.kind(mark or behind or "") for mark in self.marks]
        within = [
            range(128) if self.is_free or kind == "drum" else keys if isinstance(keys, range) else keys[mark]
            for mark, kind in zip(self.marks, kinds, strict=True)
        ]
        self._ranges = list(dict.fromkeys(within))
        self._range = self._tensor([self._ranges.index(its) for its in within], torch.long)
        self._lowest = self._tensor([its[0] for its in self._ranges])
        self._is_relative = self._tensor([kind == "interval" for kind in kinds], torch.bool)
        self._pitched = kinds.index("interval") if "interval" in kinds else 0  # a part that counts from the anchor
        self._spare = self._tensor([its[0] - 1 for its in within])  # any of its keys is above it

    def _know_states(self, bounds: Bounds, states: list[State]) -> None:
        """What is known of each state, (S,), and of each with a part of each range of keys, (S, R)."""
        reach = [[automaton.pitches_for(state, its, bounds) for its in self._ranges] for state in states]
        if self._is_anchored:  # a part's first note in a line may count from an anchor outside of its keys
            is_before = [state[0] in ("rest", "note") or bool(automaton.intervals_from(state)) for state in states]
            anywhere = [(127, automaton.NEVER[1])] * len(self._ranges)
            reach = [anywhere if before else its for its, before in zip(reach, is_before, strict=True)]
        self._below, self._above = self._tensor(reach).movedim(-1, 0).contiguous()
        parts = self._tensor([automaton.parts_for(state, bounds) for state in states], torch.long)
        self._first_part, self._last_part = parts.T.contiguous()
        self._is_settled = self._tensor([automaton.is_settled(state) for state in states], torch.bool)
        self._is_header = self._tensor([state[0] == "header" for state in states], torch.bool)
        self._is_away = self._tensor(
            [state[:3] == ("number", "interval", "marked") and state[3] != 0 for state in states], torch.bool
        )

        if self._is_anchored:
            self._know_anchor(states)

    def _know_anchor(self, states: list[State]) -> None:
        """Whether an unfinished interval from each anchor, 0..127, leads into each range of keys, (128, S * R): other
        intervals count from a pitch within the range."""
        leads = np.ones((128, len(states), len(self._ranges)), bool)
        anchors = np.arange(128)[:, None]
        for number, state in enumerate(states):
            if intervals := automaton.intervals_from(state):
                ends = np.concatenate([anchors + intervals, anchors - intervals], axis=1)  # (128, 2 I)
                for column, keys in enumerate(self._ranges):
                    leads[:, number, column] = ((ends >= keys[0]) & (ends <= keys[-1])).any(axis=1)
        self._leads = torch.from_numpy(leads.reshape(128, -1)).to(self._device)

    def _tensor(self, rows: Sequence[object], dtype: torch.dtype = torch.int16) -> Tensor:
        return torch.tensor(rows, dtype=dtype, device=self._device)

    def start(self, batch_size: int, references: Mapping[str, int] | None = None, time: int = 0) -> Place:
        """Where documents begin, or lines go on, `time` grid steps after the beginning.

        Each part, by its mark, counts from its reference. Raises ValueError for one outside the part's keys; an anchor
        may be there.
        """
        given = [(references or {}).get(mark, DEFAULT_KEY) for mark in self.marks]
        if references is not None:
            for mark, pitch, is_relative, number in zip(
                self.marks, given, self._is_relative.tolist(), self._range.tolist(), strict=True
            ):
                if is_relative and pitch not in self._ranges[number] and not self._is_anchored:
                    raise ValueError(f"part {mark!r} counts from {pitch}, outside {self._ranges[number]}")
        first = torch.where(self._is_relative, self._tensor(given), self._spare)  # (P,)

        def numbers(number: int) -> Tensor:
            return torch.full((batch_size,), number, dtype=torch.long, device=self._device)

        return Place(
            state=numbers(0),
            pitch=first[max(self._behind, 0)].repeat(batch_size),
            references=first.repeat(batch_size, 1),
            part=numbers(self._behind),
            floor=numbers(-1),
            has_key=numbers(not self._begins_at_key).bool(),
            count=numbers(0),
            time=numbers(time),
            index=numbers(0),
        )

    def allowed(self, place: Place) -> Tensor:
        """Which tokens can follow, (B, V)."""
        state = place.state
        following = self._next[state].long()
        before, keys = place.pitch[:, None], self._range[place.part.clamp(min=0)][:, None]
        if self._has_marks:
            before, keys = self._behind_marks(place, before, keys)
        after = torch.where(self._keep[state], before, 0) + self._add[state]
        down = self._down[state]
        allowed = (following >= 0) & (before <= self._high[state]) & (before >= self._lowest[keys] + down)
        at = following * len(self._ranges) + keys
        leads_on = (after <= self._below.view(-1)[at]) | (after >= self._above.view(-1)[at])
        if self._is_anchored:
            anchor = place.references[:, self._pitched].long().clamp(0, 127)
            leads_on &= self._leads[anchor].gather(1, at.clamp(min=0))
        if self._has_marks:
            behind = following[:, self._beginnings].clamp(min=0)
            leads_on[:, self._beginnings] |= self._can_be_marks(place).gather(1, behind)
            if self._begins_at_key:
                allowed &= place.has_key[:, None] | ((down & 127 == 0) & ~self._is_away[following])
        return allowed & leads_on

    def _behind_marks(self, place: Place, before: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """The pitch before each token's notes, (B, V), and the range of their keys, (B, V) or (B, 1), from those of the
        part that goes on, (B, 1): where a token holds a mark they are that part's."""
        number = torch.arange(len(self.marks), device=self._device)
        can_come = (number > place.floor[:, None]) & (number != place.part[:, None])
        pitches = torch.cat([place.references.where(can_come, _NOT_NOW), before], dim=1)  # (B, P + 1)
        at = self._mark[place.state][:, :-1].long() % pitches.shape[1]  # -1 is the part that goes on
        shape = len(before), len(self.texts)
        before = before.expand(shape).index_copy(1, self._with_mark, pitches.gather(1, at))
        if len(self._ranges) > 1:
            ranges = torch.cat([self._range.expand(len(keys), -1), keys], dim=1).gather(1, at)
            keys = keys.expand(shape).index_copy(1, self._with_mark, ranges)
        return before, keys

    def _can_be_marks(self, place: Place) -> Tensor:
        """Whether what is unfinished in each state can become the mark of a part, (B, S)."""
        part = place.part[:, None]
        floor = torch.where(self._is_settled, part, place.floor[:, None])
        return (self._last_part > floor) & ((self._last_part != part) | (self._first_part != part))

    def advance(self, place: Place, tokens: Tensor) -> Place:
        """The place behind one more token of each document, (B,)."""
        at = place.state, tokens
        state, part = self._next[at].long(), place.part
        references, before = place.references, place.pitch
        if self._has_marks:
            mark = self._mark[place.state, self._column[tokens]].long()
            part = torch.where(mark >= 0, mark, part)
            before = torch.where(mark >= 0, references.gather(1, part.clamp(min=0)[:, None])[:, 0], before)
        column = part.clamp(min=0)[:, None]
        pitch = torch.where(self._keep[at], before, 0) + self._add[at]
        is_first = self._down[at] != _NONE
        first = torch.where(is_first[:, None], (before - self._down[at])[:, None], references.gather(1, column))
        if not self._is_anchored:
            references = references.scatter(1, column, first)
        is_key = self._is_header[place.state] & ~self._keep[at]
        of_key = self._is_relative if self._has_marks else True
        references = torch.where(is_key[:, None] & of_key, pitch[:, None], references)
        count = torch.where(self._count[at] > 0, self._count[at].long(), place.count)
        is_turn = self._turn[at] > 0
        return Place(
            state=state,
            pitch=torch.where(is_turn, references.gather(1, column)[:, 0], pitch),
            references=references,
            part=part,
            floor=torch.where(is_turn, -1, torch.where(self._is_settled[state], part, place.floor)),
            has_key=place.has_key | is_first,
            count=count,
            time=place.time + count * self._turn[at],
            index=torch.where(self._is_end[tokens], 0, place.index + 1),
        )


def _header_values(
    language: Language, wishes: dict[str, str], keys: range | Mapping[str, range], marks: Sequence[str]
) -> dict[str, list[str]]:
    """What the fields of the header may be. Raises ValueError for a wished key outside of the given ones."""
    if not isinstance(keys, range):
        return FIELDS
    if language.is_chained and int(wishes.get("key", keys[0])) not in keys:
        raise ValueError(f"a first note {wishes['key']} outside {keys}")
    values = FIELDS | {"key": [*map(str, keys)]} | {name: [value] for name, value in wishes.items()}
    if "key" in wishes:  # which drums have none of
        values["program"] = [value for value in values["program"] if value != "d"]
    if language.is_song:
        del values["program"]
        if all(map(is_drum_mark, marks)):
            del values["key"]
    return values


class _Trie(NamedTuple):
    """The beginnings of all tokens, (N,): a beginning's next ones lie side by side, and behind it."""

    letter: IntArray  # its last character's number
    token: IntArray  # that it is, or -1
    children: IntArray  # the first of its next ones
    ends: IntArray  # and where they end


_NUMBER = {c: number for number, c in enumerate(END + ALPHABET)}


@lru_cache(maxsize=4)
def _trie(texts: tuple[str, ...]) -> _Trie:
    token = {text: n for n, text in enumerate(texts) if text} | {END: START_ID}
    beginnings = {"": [0, 0]} | {text[:end]: [0, 0] for text in token for end in range(1, len(text) + 1)}
    ordered = sorted(beginnings, key=lambda text: (len(text), text))
    for n, text in enumerate(ordered[1:], start=1):
        parent = beginnings[text[:-1]]
        parent[0], parent[1] = parent[0] or n, n + 1
    rows = [(_NUMBER.get(text[-1:], _NUMBER[OTHER]), token.get(text, -1), *beginnings[text]) for text in ordered]
    return _Trie(*np.array(rows).T.copy())


def _compose(
    characters: NDArray[np.int16], is_mark: NDArray[np.bool_], texts: tuple[str, ...]
) -> dict[str, NDArray[Any]]:
    """The tables of Grammar: every token read from every state, character by character, all at once.

    A token has notes of one part, behind its mark if that is in the token, and no more than the end of one line.
    """
    _, states, alphabet = characters.shape
    shape, trie = (states, len(texts)), _trie(texts)
    next_state, kinds, numbers = characters.reshape(3, -1)  # by state and character in one index
    tables: dict[str, NDArray[Any]] = {
        "next": np.full(shape, -1, np.int16),
        "keep": np.zeros(shape, bool),
        "add": np.zeros(shape, np.int8),
        "high": np.zeros(shape, np.int8),
        "down": np.full(shape, _NONE, np.int8),
        "mark": np.full(shape, -1, np.int16),
        "count": np.zeros(shape, np.uint8),
        "turn": np.zeros(shape, np.int8),
    }
    # What is still possible, (P,): from a state, a beginning of tokens that has led to a state.
    now = np.arange(states)
    at = {"start": now, "node": np.zeros(states, np.int64), "next": now, "keep": np.ones(states, bool)}
    at |= {name: np.full(states, value) for name, value in (("add", 0), ("high", 127), ("down", _NONE), ("mark", -1))}
    at |= {name: np.zeros(states, np.int64) for name in ("count", "turn", "noted")}
    while len(at["start"]):
        # Each goes on with each of its next characters that its state has a place for.
        node = at["node"]
        children = trie.ends[node] - trie.children[node]
        parent, node = np.repeat(np.arange(len(node)), children), ranges(trie.children[node], children)
        step = at["next"][parent] * alphabet + trie.letter[node]
        can = np.flatnonzero(next_state[step] >= 0)
        at = {name: values[parent[can]] for name, values in at.items()} | {"node": node[can]}
        possible = _take(at, next_state[step[can]].astype(np.int64), kinds[step[can]], numbers[step[can]], is_mark)
        at = {name: values[possible] for name, values in at.items()}

        done = trie.token[at["node"]] >= 0
        pair = at["start"][done], trie.token[at["node"][done]]
        for name, table in tables.items():
            table[pair] = at[name][done]
        goes_on = trie.letter[at["node"]] != _NUMBER["\n"]
        at = {name: values[goes_on] for name, values in at.items()}
    return tables


def _take(
    at: dict[str, NDArray[Any]],
    state: IntArray,
    kind: NDArray[np.int16],
    value: NDArray[np.int16],
    is_mark: NDArray[np.bool_],
) -> NDArray[np.bool_]:
    """Let a character of each that is possible lead to a state, with its effect; gives whether it still is possible."""
    is_first, is_rise, is_key, is_part = (kind == KINDS[name] for name in ("first", "rise", "key", "part"))
    is_move = is_first | (kind == KINDS["move"])
    at["high"] = np.where(is_rise & at["keep"], np.minimum(at["high"], value - 1), at["high"])
    possible = ~(is_rise & ~at["keep"] & (at["add"] >= value))
    at["add"] = np.where(is_move, at["add"] + value, np.where(is_key | is_rise, value, at["add"]))
    at["keep"] = at["keep"] & ~(is_key | is_rise)
    at["down"] = np.where(is_first, -value, at["down"])
    possible &= at["add"] <= 127  # it begins at 0 or above
    possible &= at["add"] + np.where(at["down"] == _NONE, 0, at["down"]) <= 127  # else its notes are too far apart
    possible &= ~(at["noted"].astype(bool) & (is_part | is_mark[state]))
    possible &= ~(is_part & (at["mark"] >= 0))
    at["noted"] = at["noted"] | is_move | is_rise
    at["mark"] = np.where(is_part, value, at["mark"])
    at["count"] = np.where(kind == KINDS["count"], value, at["count"])
    at["turn"] = np.where(kind == KINDS["turn"], value, at["turn"])
    at["next"] = state
    return possible
