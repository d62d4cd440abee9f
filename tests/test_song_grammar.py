"""What may follow where in the song layout, and the musical time of each place."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from midigpt.bpe import START_ID, token_texts, train_tokenizer
from midigpt.encodings import part_order
from midigpt.grammar import Grammar, Place
from midigpt.language import TRACKS, Language, decode, encode
from midigpt.midi import load_midi
from midigpt.score import Score

from .conftest import melody, midi_files
from .test_grammar import place_of, reachable, rows_of

SONGS, ABSOLUTE = Language("interval", "song"), Language("absolute", "song")
ANCHORED = Language("anchored", "song")
HEADER = "# tempo=120 meter=4/4 key=60\n"
MARKS = ["d", "33", "0.2", "0"]
START = HEADER + "0@0+1|"
LINE = START + "1/1\n"


def band(seed: int) -> Score:
    """Tunes in step, of which the second rests now and then."""
    tunes = [melody(seed * 5 + n, 30, n == 3, program) for n, program in enumerate((0, 0, 33, 0, 110))]
    return Score(480, tuple(tune.tracks[0] for tune in tunes), 100.0)


@pytest.fixture(scope="module")
def characters() -> Tokenizer:
    return train_tokenizer(["0@0+10|1/1\n"], len(SONGS.alphabet) + 1, SONGS)


@pytest.fixture(scope="module")
def learned() -> Tokenizer:
    return train_tokenizer([encode(band(seed), None, SONGS)[0].text for seed in range(30)], 400, SONGS)


def follow(grammar: Grammar, tokenizer: Tokenizer, text: str, place: Place | None = None) -> Place:
    """The place behind a text; AssertionError at a token that may not come, or is not at its time."""
    place = place or grammar.start(1)
    now, line = int(place.time), ""
    for token in tokenizer.encode(text).ids:
        assert grammar.allowed(place)[0, token], f"{grammar.texts[token]!r} behind {line!r}"
        assert int(place.time) == now
        place = grammar.advance(place, torch.tensor([token]))
        line += grammar.texts[token]
        if line.endswith("\n"):
            now, line = now + (0 if "#" in line else grammar.language.module.line_steps(line)), ""
    return place


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("# ", "t"),
        (HEADER, "03d"),
        (HEADER + "0", ".@"),
        (HEADER + "0.", "2"),
        (HEADER + "0.2", "@"),
        (HEADER + "3", "3"),
        (HEADER + "d", "@"),
        (HEADER + "d@", "345678"),
        (HEADER + "33@", "0"),  # a piece begins with the key's note
        (HEADER + "33@0", "+"),
        (HEADER + "d@36=1|1/1\n33@", "0"),  # also where drums come before it
        (HEADER + "d@36=1|1/1\n33@1", None),
        (START, "0123456789d"),
        (START + "0", "."),
        (START + "33", "+/@"),
        (START + "0@", None),  # parts come in their order
        (HEADER + "33@0+1|0", None),
        (HEADER + "33@0+1|33", "+/"),
        (HEADER + "d@36=1|", "123456789"),
        (HEADER + "d@36=1|3", "/135789"),  # a higher drum or a time
        (HEADER + "d@36=1|33", "/"),  # drums are last
        (START + "33@", "0123456789"),
        (START + "33@12", "+-"),
        (START + "33@12+1|1", "+/0123456789"),  # 13 / .. and 127
        (START + "33@68", None),  # 128 and -8
        (LINE, "$0123456789d"),
        (LINE + "0", "+."),  # the part goes on without a mark
        (LINE + "33@12+1|1/1\n", "$0123456789d"),
        (LINE + "33@12+1|1/1\n33", "+-"),
        (LINE + "33@12+1|1/1\n0", "+.@"),
        (LINE + "d@36=1|1/1\n", "$0345678"),
        (LINE + "d@36=1|1/1\nd", None),
        (LINE + "d@36=1|1/1\n36", "="),
        (LINE + "d@36=1|1/1\n0@67", "+"),  # counted from the part's own last line
        (LINE + "d@36=1|1/1\n0@60", "+-"),
    ],
)
def test_characters_that_may_follow(characters: Tokenizer, text: str, expected: str | None) -> None:
    grammar = Grammar(characters, SONGS, marks=MARKS)
    if expected is None:
        with pytest.raises(AssertionError):
            follow(grammar, characters, text)
    else:
        allowed = grammar.allowed(follow(grammar, characters, text))[0].nonzero()[:, 0].tolist()
        assert "".join("$" if n == START_ID else characters.id_to_token(n) for n in allowed) == expected


def test_a_song_of_drums_alone_has_no_key(characters: Tokenizer) -> None:
    grammar = Grammar(characters, SONGS, marks=["d", "d.2"])
    place = follow(grammar, characters, "# tempo=120 meter=4/4\nd.2@36=1|1/1\nd@36=1|d.2@36=1|1/1\n38=1|39=1|1/1\n")
    with pytest.raises(AssertionError):
        follow(grammar, characters, "d.2@", place)  # which goes on without


def test_parts_go_on_from_their_own_references_within_their_own_keys(characters: Tokenizer) -> None:
    keys = {"0": range(55, 68), "0.2": range(20, 30), "33": range(36, 38)}
    references = {"0": 60, "0.2": 25, "33": 36, "d": 0}
    grammar = Grammar(characters, SONGS, keys=keys, marks=MARKS, behind="33")
    for text, is_possible in {
        "1+1|1/1\n": True,
        "2+1|1/1\n": False,
        "1-1|1/1\n": False,
        "0@7+1|0.2@4+1|33@1+1|d@36=1|1/1\n": True,
        "0@8+1|": False,
        "0.2@4+1|1+1|": False,
        "0.2@5-1|9+1|1/1\n0@5-1|12+1|0.2@9+1|1/1\n": True,
        "0@0+1|1+1|1+1|33@0+1|1/1\n0@8+1|": False,  # the line's first note is what counts, not its last
        "33@": False,
    }.items():
        place = grammar.start(1, references, 99)
        if is_possible:
            follow(grammar, characters, text, place)
        else:
            with pytest.raises(AssertionError):
                follow(grammar, characters, text, place)
    with pytest.raises(ValueError, match="'33' counts from 40"):
        grammar.start(1, references | {"33": 40})


# --- whatever is drawn -----------------------------------------------------------------------------------


@dataclass
class Reader:
    """Reads lines as the specification has them; AssertionError for what is not in its normal form."""

    keys: dict[str, range]
    references: dict[str, int]
    part: str = ""
    now: int = 0
    is_anchored: bool = False
    pitches: list[int] = field(default_factory=list)

    def read(self, line: str) -> None:
        *notes, time = line.removesuffix("\n").split("|")
        before, last = None, 0
        for note in notes:
            match = re.fullmatch(r"(?:([d.\d]+)@)?(\d+)([-+=])(\d+)(?::\d+/\d+)?", note)
            assert match and 1 <= int(match[4]) <= 16, note
            mark, number, sign = match[1], int(match[2]), match[3]
            assert mark != self.part and (mark or self.part), line
            part = self.part = mark or self.part
            is_first = part != before
            assert before is None or part_order(before) <= part_order(part), line
            if sign == "=":
                pitch = number
            else:
                pitch = (self.references[part] if is_first else last) + (number if sign == "+" else -number)
                if is_first and not self.is_anchored:
                    self.references[part] = pitch
            assert (sign == "=") == (part.startswith("d") or not self.references), line
            assert pitch in self.keys[part] and (is_first or pitch > last), line
            before, last = part, pitch
            self.pitches.append(pitch)
        count, unit = map(int, time.split("/"))
        assert notes and 24 % unit == 0
        self.now += count * 24 // unit


def walk(grammar: Grammar, place: Place, tokens: int, seed: int) -> tuple[list[str], list[list[int]], Place]:
    """The texts of random tokens, drawn evenly by their first characters, and the times of all their places."""
    random = torch.Generator().manual_seed(seed)
    texts = [""] * len(place.state)
    times: list[list[int]] = [[] for _ in texts]
    for _ in range(tokens):
        allowed = grammar.allowed(place)
        assert allowed.any(dim=1).all(), [text[-80:] for text, its in zip(texts, allowed, strict=True) if not its.any()]
        weight = allowed * torch.tensor([5.0 if "@" in text else 1.0 for text in grammar.texts])
        token = torch.multinomial(weight, 1, generator=random)[:, 0]
        for row, number in enumerate(token.tolist()):
            texts[row] += grammar.texts[number]
            times[row].append(int(place.time[row]))
        place = grammar.advance(place, token)
    return texts, times, place


KEYS = {"0": range(30, 90), "0.2": range(20, 100), "12": range(60, 73), "12.2": range(36, 49), "112": range(128)}


@pytest.mark.parametrize("language", [SONGS, ANCHORED, ABSOLUTE], ids=str)
def test_random_lines_of_many_parts_are_lines(learned: Tokenizer, language: Language) -> None:
    keys = KEYS | {"d": range(35, 82), "d.2": range(35, 82)}
    references = dict.fromkeys(KEYS, 60) | {"12.2": 60 if language is ANCHORED else 48, "d": 0, "d.2": 0}
    grammar = Grammar(learned, language, None, False, KEYS, marks=[*keys], behind="12.2")
    texts, times, place = walk(grammar, grammar.start(40, references, 7), 400, 1)
    for row, (text, its_times) in enumerate(zip(texts, times, strict=True)):
        reader = Reader(keys, {} if language is ABSOLUTE else dict(references), "12.2", 7, language is ANCHORED)
        expected = []
        lines = text[: text.rfind("\n") + 1].splitlines()
        for line in lines:
            expected.append(reader.now)
            reader.read(line)
        assert len(lines) > 5 and {*expected} <= {*its_times} and int(place.time[row]) == reader.now
        assert sorted(its_times) == its_times
        if text.endswith("\n") and language is not ABSOLUTE:
            held = dict(zip(grammar.marks, place.references[row].tolist(), strict=True))
            assert all(held[mark] == pitch for mark, pitch in reader.references.items() if mark in KEYS)


def test_random_songs_can_be_decoded(learned: Tokenizer) -> None:
    parts, is_away = set(), False
    for language, wishes in ((SONGS, {"key": "64"}), (SONGS, {}), (ANCHORED, {}), (ABSOLUTE, {})):
        grammar = Grammar(learned, language, wishes, False, range(40, 90))
        texts, _, place = walk(grammar, grammar.start(25), 250, 2)
        for row, text in enumerate(texts):
            whole = text[: text.rfind("\n") + 1]
            score = decode([whole], language)
            assert int(place.time[row]) == sum(map(language.module.line_steps, whole.splitlines()[1:]))
            parts |= set(re.findall(r"([d.\d]+)@", text))
            for track in score.tracks:
                assert track.is_drum or (track.pitch.min() >= 40 and track.pitch.max() < 90)
            first = re.search(r"@(\d+[-+])", text)
            assert language is not SONGS or first is None or first[1] == "0+"
            is_away |= language is ANCHORED and first is not None and first[1] != "0+"
    assert is_away
    assert len(parts) > 70 and {"d", "0.2", "127.4"} & parts


def test_moved_parts_read_the_same(learned: Tokenizer) -> None:
    def texts(by: int) -> list[str]:
        keys = {mark: range(its[0] + by, its[-1] + 1 + by) for mark, its in KEYS.items() if mark != "112"}
        references = {mark: its[3] for mark, its in keys.items()} | {"d": 3}
        grammar = Grammar(learned, SONGS, None, False, keys, marks=[*references], behind="0.2")
        return walk(grammar, grammar.start(8, references), 200, 3)[0]

    assert texts(0) == texts(5) == texts(-12)


@pytest.mark.parametrize("behind", ["", "1", "d"])
@pytest.mark.parametrize("anchor", [None, 0, 45, 62, 127])
def test_there_is_always_something_that_may_come(characters: Tokenizer, behind: str, anchor: int | None) -> None:
    """By single characters, from every place that can be reached; anchors may lie outside of a part's keys."""
    keys = {"1": range(60, 62), "12": range(30, 33), "12.2": range(100, 101)}
    language = SONGS if anchor is None else ANCHORED
    grammar = Grammar(characters, language, keys=keys, drums={36, 39, 112}, marks=[*keys, "d"], behind=behind)
    references = {"1": 60, "12": 31, "12.2": 100} if anchor is None else dict.fromkeys(keys, anchor)
    assert len(reachable(grammar, [grammar.start(1, references)])) > (4000 if anchor is None else 1000)


@pytest.mark.parametrize("language", [SONGS, ANCHORED], ids=str)
def test_a_token_may_come_where_its_characters_may(
    characters: Tokenizer, learned: Tokenizer, language: Language
) -> None:
    keys = {"0": range(30, 90), "0.2": range(20, 128), "33": range(60, 73), "110": range(36, 49)}
    references = {"0": 60, "0.2": 60, "33": 65, "110": 40} if language is SONGS else dict.fromkeys(keys, 65)
    single, several = (
        Grammar(its, language, None, False, keys, marks=[*keys, "d"], behind="33") for its in (characters, learned)
    )
    letters = {text: number for number, text in enumerate(token_texts(characters))}
    place, rows = single.start(12, references), []
    random = torch.Generator().manual_seed(0)
    for _ in range(40):
        token = torch.multinomial(single.allowed(place).float(), 1, generator=random)[:, 0]
        place = single.advance(place, token)
        rows += rows_of(place)
    place = place_of(list(dict.fromkeys(rows)), place)
    seen = several.allowed(place)
    for token, text in [*enumerate(several.texts)][40::2]:
        at, may_come = place, torch.ones(len(place.state), dtype=torch.bool)
        for character in text:
            one = torch.full_like(at.state, letters[character])
            may_come &= single.allowed(at)[:, letters[character]]
            at = single.advance(at, one)
        # No piece of text has notes and then the beginning of a mark.
        if not re.search(r"[|@]\d+$", text):
            assert torch.equal(seen[:, token], may_come), text
        assert not (seen[:, token] & ~may_come).any(), text
        behind = several.advance(place, torch.full_like(place.state, token))
        for name, mine, its in zip(Place._fields, behind, at, strict=True):
            assert name == "index" or torch.equal(mine[may_come], its[may_come]), (text, name)
    assert seen.any(dim=0).sum() > 150


# --- real music ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("language", [SONGS, ANCHORED, ABSOLUTE, TRACKS, Language("anchored", "track")], ids=str)
def test_real_music_may_come(corpus: Callable[[str], Path], language: Language) -> None:
    """Every line, but those with times that a take has no use for, at its time."""
    files = midi_files(corpus("mini"))[:: 70 if language.is_song else 80]
    scores = [load_midi(path) for path in files]
    documents = [document for score in scores for document in encode(score, None, language)]
    tokenizer = train_tokenizer([document.text for document in documents], 1000, language)
    lines = parts = 0
    for document in documents:
        marks = set(re.findall(r"([d.\d]+)@", document.body)) or {""}
        key = int((re.search(r"key=(\d+)", document.header) or ["", "60"])[1])
        behind = "d" if "program=d" in document.header else ""
        grammar = Grammar(tokenizer, language, drums=range(128), marks=[*marks], behind=behind)
        place, now = grammar.start(1, dict.fromkeys(marks, key)), 0
        for line in document.body.splitlines(keepends=True):
            times = [Fraction(time) for time in re.findall(r"[:|]([0-9]+/[0-9]+)", line)]
            if "|" in line and (times[-1] > 8 or max(times) > 16):
                break
            if "|" in line:
                place, now = follow(grammar, tokenizer, line, place), now + int(24 * times[-1])
                lines += 1
        assert int(place.time) == now
        parts = max(parts, len(marks))
    assert lines > 500 and (parts > 4 or not language.is_song)
