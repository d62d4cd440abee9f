"""What may follow where: all that the language writes, and nothing that it can't read."""

import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from midigpt.automaton import FIELDS
from midigpt.bpe import START, START_ID
from midigpt.grammar import Grammar, Place
from midigpt.language import TRACKS, Language, encode
from midigpt.midi import load_midi

from .conftest import melody, midi_files

HEADER = "# program=0 tempo=120 meter=4/4 key=60\n"
DRUMS = "# program=d tempo=120 meter=4/4\n"


@pytest.fixture(scope="session")
def learned(prepared: Path) -> Tokenizer:
    """One whose tokens hold several characters, and some whole lines."""
    return Tokenizer.from_file(str(prepared / "cache" / "tokenizer.json"))


def follow(grammar: Grammar, tokenizer: Tokenizer, text: str) -> Place:
    """The place behind a text; AssertionError at a token that may not come."""
    place = grammar.start(1)
    for number, token in enumerate(tokenizer.encode(text).ids):
        before = tokenizer.decode(tokenizer.encode(text).ids[:number])
        assert grammar.allowed(place)[0, token], f"{tokenizer.id_to_token(token)!r} behind {before!r}"
        place = grammar.advance(place, torch.tensor([token]))
    return place


def following(grammar: Grammar, tokenizer: Tokenizer, text: str) -> str:
    """The characters that may come behind a text, with $ for its end."""
    allowed = grammar.allowed(follow(grammar, tokenizer, text))[0].nonzero()[:, 0].tolist()
    return "".join(sorted("$" if token == START_ID else tokenizer.id_to_token(token) for token in allowed))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "#"),
        ("#", " "),
        ("# ", "p"),
        ("# program=", "0123456789d"),
        ("# program=12", " 01234567"),
        ("# program=128", None),
        ("# program=d tempo=120 meter=3/4", "\n"),
        ("# program=7 tempo=120 meter=3/4", " "),
        ("# program=7 tempo=120 meter=3/4 key=12", "\n01234567"),
        (HEADER, "0"),  # a piece begins with the key's note
        (HEADER + "0", "+"),
        (HEADER + "0+", "123456789"),
        (HEADER + "0+1", "0123456:|"),
        (HEADER + "0+17", None),
        (HEADER + "0+16", ":|"),
        (HEADER + "0+16:", "123456789"),
        (HEADER + "0+16:2", "/0123456789"),
        (HEADER + "0+16:38", "/3"),  # 383 steps are less than 16 beats
        (HEADER + "0+16:383", "/"),
        (HEADER + "0+16:383/", "2"),
        (HEADER + "0+16:18", "157"),  # in lowest terms 18 can be of nothing but beats, and so many are too long
        (HEADER + "0+16:42", None),
        (HEADER + "0+16:12/", "1"),
        (HEADER + "0+16:1/1", "2|"),
        (HEADER + "0+16|", "123456789"),
        (HEADER + "0+16|3", "+/0123456789"),  # the notes of a line ascend
        (HEADER + "0+16|30", "+"),  # for a time too long
        (HEADER + "0+16|68", None),  # 68 above 60 there is no key
        (HEADER + "0+16|67", "+/"),
        (HEADER + "0+16|128", None),
        (HEADER + "0+16|185", "/"),
        (HEADER + "0+16|193", None),  # more than 8 beats
        (HEADER + "0+16|4/", "13"),
        (HEADER + "0+16|4/1", "\n"),
        (HEADER + "0+16|5/2", "\n4"),
        (HEADER + "0+16|1/1\n", "$0123456789"),
        (HEADER + "0+16|1/1\n4", "+-0123456789"),
        (HEADER + "0+16|1/1\n68", None),  # neither up nor down from 60
        (HEADER + "0+16|1/1\n4/", None),  # silence
        (HEADER + "0+1|1/1\n53-1|100+1|1/1\n121", None),  # a line counts from the first note of the one before
        (HEADER + "0+1|1/1\n53-1|100+1|1/1\n120", "+"),
        (DRUMS, "345678"),
        (DRUMS + "3", "56789"),
        (DRUMS + "8", "01"),
        (DRUMS + "36", "="),
        (DRUMS + "36=4|3", "/135789"),  # 36 is no higher, and no time
        (DRUMS + "36=4|36", None),
        (DRUMS + "36=4|37", "/="),
        (DRUMS + "36=4|37=4|1/1\n36", "="),
    ],
)
def test_characters_that_may_follow(tokenizer: Tokenizer, text: str, expected: str | None) -> None:
    grammar = Grammar(tokenizer)
    if expected is None:
        with pytest.raises(AssertionError):
            follow(grammar, tokenizer, text)
    else:
        assert following(grammar, tokenizer, text) == expected


def test_from_an_anchor_any_interval_may_come_first(tokenizer: Tokenizer) -> None:
    assert following(Grammar(tokenizer, Language("anchored", "track")), tokenizer, HEADER) == "0123456789"


def test_without_an_end_lines_go_on(tokenizer: Tokenizer) -> None:
    assert following(Grammar(tokenizer, may_end=False), tokenizer, HEADER + "0+16|1/1\n") == "0123456789"


def test_behind_the_end_nothing_but_ends_can_come(tokenizer: Tokenizer) -> None:
    grammar = Grammar(tokenizer)
    place = follow(grammar, tokenizer, HEADER + "0+16|1/1\n")
    for _ in range(2):
        place = grammar.advance(place, torch.tensor([START_ID]))
        assert grammar.allowed(place)[0].nonzero().tolist() == [[START_ID]]


def test_wishes_are_the_only_values(tokenizer: Tokenizer) -> None:
    grammar = Grammar(tokenizer, TRACKS, {"tempo": "90", "key": "6"})
    assert following(grammar, tokenizer, "# program=1 tempo=") == "9"
    assert following(grammar, tokenizer, "# program=1 tempo=90 meter=4/4 key=6") == "\n"


def test_keys_bound_what_is_not_drums(tokenizer: Tokenizer) -> None:
    grammar = Grammar(tokenizer, keys=range(55, 68))
    assert following(grammar, tokenizer, HEADER[:-3]) == "56"
    first = HEADER + "0+1|1/1\n"
    assert following(grammar, tokenizer, first + "6") == "+"  # 66, but not 54
    assert following(grammar, tokenizer, first + "7+1|1/1\n1") == "-012"  # 11 and 12 down
    assert following(grammar, tokenizer, DRUMS + "36") == "="


def test_drums_are_those_allowed_and_a_wished_key_excludes_them(tokenizer: Tokenizer) -> None:
    grammar = Grammar(tokenizer, drums={7, 36, 39})
    assert following(grammar, tokenizer, DRUMS) == "37"
    assert following(grammar, tokenizer, DRUMS + "3") == "69"
    assert following(grammar, tokenizer, DRUMS + "36=1|3") == "/13579"
    assert following(grammar, tokenizer, DRUMS + "36=1|39") == "/="
    assert following(grammar, tokenizer, DRUMS + "39=1|39") == "/"
    assert following(Grammar(tokenizer, TRACKS, {"key": "60"}), tokenizer, "# program=") == "0123456789"


def test_lines_that_go_on_begin_with_a_note(tokenizer: Tokenizer) -> None:
    grammar = Grammar(tokenizer, behind="")
    for digits, pitch, expected in (("68", 60, None), ("67", 60, "+"), ("60", 60, "+-"), ("68", 68, "-")):
        place = grammar.start(1, {"": pitch})
        for digit in digits:
            token = tokenizer.token_to_id(digit)
            is_allowed = bool(grammar.allowed(place)[0, token])
            place = grammar.advance(place, torch.tensor([token]))
        assert is_allowed == (expected is not None)
        if expected:
            signs = [sign for sign in "+-/" if grammar.allowed(place)[0, tokenizer.token_to_id(sign)]]
            assert "".join(signs) == expected


def test_the_language_writes_nothing_that_may_not_come(learned: Tokenizer) -> None:
    grammar = Grammar(learned, drums=range(128))
    for seed in range(20):
        for document in encode(melody(seed, notes=60, is_drum=seed % 3 == 0)):
            follow(grammar, learned, document.text)


def test_real_music_may_come(corpus: Callable[[str], Path], learned: Tokenizer) -> None:
    """Every line behind the first note, but those with times that a take has no use for."""
    grammars = {part == "d": Grammar(learned, behind=part, may_end=False, drums=range(128)) for part in ("", "d")}
    lines = long = 0
    for path in midi_files(corpus("mini"))[::40]:
        for document in encode(load_midi(path)):
            grammar = grammars["program=d" in document.header]
            place = grammar.start(1, {"": int(document.pitch[0])})
            for line in document.body.splitlines(keepends=True):
                times = [Fraction(time) for time in re.findall(r"[:|]([0-9]+/[0-9]+)", "|" + line)]
                if "|" not in line:  # silence
                    continue
                if times[-1] > 8 or max(times) > 16:
                    long += 1
                    break
                lines += 1
                for token in learned.encode(line).ids:
                    assert grammar.allowed(place)[0, token], (path, line)
                    place = grammar.advance(place, torch.tensor([token]))
    assert lines > 1000 and long < 20


@dataclass
class Vocabulary:
    """A tokenizer as far as the grammar looks at it."""

    texts: list[str]
    decoder: object = None

    decoder = None

    def get_vocab_size(self) -> int:
        return len(self.texts)

    def id_to_token(self, token: int) -> str:
        return self.texts[token]


def rows_of(place: Place) -> list[tuple[int, ...]]:
    """A batch of places row by row, but for their times."""
    timeless = place._replace(**{name: torch.zeros_like(place.time) for name in ("count", "time", "index")})
    columns = torch.cat([column.view(len(column), -1).long() for column in timeless], dim=1)
    return [tuple(row) for row in columns.tolist()]


def place_of(rows: list[tuple[int, ...]], like: Place) -> Place:
    """The way back."""
    widths = [column[0].numel() for column in like]
    parts = torch.tensor(rows).split(widths, dim=1)
    return Place(*(part.view(-1, *its.shape[1:]).to(its.dtype) for part, its in zip(parts, like, strict=True)))


def reachable(grammar: Grammar, starts: list[Place]) -> list[tuple[int, ...]]:
    """All places that there are; AssertionError at one from which nothing leads on."""
    waiting = [row for start in starts for row in rows_of(start)]
    seen = dict.fromkeys(waiting)
    while waiting:
        place = place_of(waiting, starts[0])
        allowed = grammar.allowed(place)
        assert allowed.any(dim=1).all()
        rows, tokens = allowed.nonzero().T
        after = grammar.advance(Place(*(column[rows] for column in place)), tokens)
        waiting = [row for row in dict.fromkeys(rows_of(after)) if row not in seen]
        seen.update(dict.fromkeys(waiting))
    return list(seen)


@pytest.mark.parametrize("is_drum", [False, True])
def test_a_token_may_come_where_its_characters_may(is_drum: bool) -> None:
    characters, part = [START, *TRACKS.alphabet], "d" if is_drum else ""
    across = ["=8|54", "54=8|54", "=13:1/24|70", "|70", "70", "=8|70|", "36=1|38=2|4", "1/1\n", "38=16|1/2\n"]
    across += ["=1|36=1|", "+10|4+10|", "2+", "12-3|60", "|30", "+9|67", "+1|1/1\n", "7+1|5+1|1/1\n", "-1|100+1|"]
    across += ["100", "64", "+1|64", "99+1|50+1|"]
    single, several = (
        Grammar(Vocabulary(texts), behind=part, keys=range(20, 110), drums={7, 36, 38, 54, 70, 112})
        for texts in (characters, characters + across)
    )
    places = reachable(single, [single.start(1, {"": pitch}) for pitch in range(20, 110, 7)])
    places = random.Random(0).sample(places, min(4000, len(places)))
    place = place_of(places, single.start(1))
    allowed = several.allowed(place)
    for token, text in enumerate(across, start=len(characters)):
        at, may_come = place, torch.ones(len(place.state), dtype=torch.bool)
        for character in text:
            one = torch.full_like(at.state, characters.index(character))
            may_come &= single.allowed(at)[torch.arange(len(one)), one]
            at = single.advance(at, one)
        assert torch.equal(allowed[:, token], may_come), text
        behind = several.advance(place, torch.full_like(place.state, token))
        at = at._replace(index=behind.index)  # of tokens, which are fewer
        for mine, its in zip(behind, at, strict=True):
            assert torch.equal(mine[may_come], its[may_come]), text
    assert allowed[:, len(characters) :].any(dim=0).sum() >= 8  # of either kind


@pytest.mark.parametrize(
    ("behind", "keys"),
    [
        (None, range(60, 72)),
        ("", range(55, 68)),
        ("", range(12)),
        ("", range(116, 128)),
        ("", range(100)),
        ("d", range(128)),
    ],
    ids=str,
)
def test_there_is_always_something_that_may_come(tokenizer: Tokenizer, behind: str | None, keys: range) -> None:
    """From every state that can be reached, at every pitch that it can be reached with, by single characters."""
    grammar = Grammar(tokenizer, keys=keys, behind=behind, drums={7, 36, 39, 112})
    starts = [grammar.start(1)] if behind is None else [grammar.start(1, {"": pitch}) for pitch in keys]
    places = reachable(grammar, starts)
    assert len(places) > 1000


def test_every_value_of_a_field_can_be_drawn(tokenizer: Tokenizer) -> None:
    grammar = Grammar(tokenizer)
    for tempo in FIELDS["tempo"]:
        follow(grammar, tokenizer, f"# program=5 tempo={tempo} meter=16/16 key=127\n")
