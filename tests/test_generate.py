"""What is drawn: takes that can all be decoded, as long and as likely as asked, the same for the same seed."""

import copy
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from torch import Tensor

from midigpt.bpe import START_ID, base_alphabet, token_texts, train_tokenizer
from midigpt.decoder import Decoder, Prepared
from midigpt.encodings.characters import FIRST_NOTE, FIRST_TIME
from midigpt.files import UserError
from midigpt.generate import Drawing, Length, Writer, compose, draw, go_on, placed, without_key
from midigpt.grammar import Grammar
from midigpt.header import read_header, split_header
from midigpt.language import TRACKS, Language, decode, encode
from midigpt.midi import read_midi, write_midi
from midigpt.model import GPT, ModelConfig, build_model
from midigpt.normal import Layout
from midigpt.positions import token_positions
from midigpt.score import Score
from midigpt.tokenizer import document_tokens

from .conftest import melody

SMALLEST = len(TRACKS.alphabet) + 1  # vocabulary
SONGS = Language("interval", "song")
CONFIG = ModelConfig(vocab_size=SMALLEST, block_size=64, n_layer=1, n_head=2, n_kv_head=2, n_embd=16, n_hidden=32)


@pytest.fixture(scope="module")
def learned(prepared: Path) -> Tokenizer:
    return Tokenizer.from_file(str(prepared / "cache" / "tokenizer.json"))


@pytest.fixture(scope="module")
def untrained(learned: Tokenizer) -> GPT:
    torch.manual_seed(0)
    return build_model(replace(CONFIG, vocab_size=learned.get_vocab_size())).eval()


# --- what is written -------------------------------------------------------------------------------------


def test_a_thousand_takes_of_an_untrained_model_can_all_be_decoded(untrained: GPT, learned: Tokenizer) -> None:
    documents = compose(untrained, learned, TRACKS, Drawing(seed=1), length=Length(notes=12), takes=1000)
    scores = [decode([document]) for document in documents]
    assert len(set(documents)) == 1000
    assert min(score.notes for score in scores) >= 12
    assert sum(score.tracks[0].is_drum for score in scores) > 0
    pitches = torch.cat([torch.from_numpy(score.tracks[0].pitch) for score in scores if not score.tracks[0].is_drum])
    assert pitches.min() == 21 and pitches.max() == 108


def test_takes_survive_the_midi_file(untrained: GPT, learned: Tokenizer, tmp_path: Path) -> None:
    for document in compose(untrained, learned, TRACKS, Drawing(seed=2), length=Length(notes=30), takes=5):
        write_midi(decode([document]), tmp_path / "take.mid")
        assert read_midi(tmp_path / "take.mid").notes == decode([document]).notes


class Scripted(Decoder):
    """Goes on with a text, token by token, whatever it reads, from the first token read on."""

    def __init__(
        self, tokenizer: Tokenizer, text: str, block_size: int = 2000, rows: int = 1, vocab_size: int = SMALLEST
    ) -> None:
        super().__init__(Prepared(GPT(replace(CONFIG, block_size=block_size, vocab_size=vocab_size)), "float32"), rows)
        self.script = torch.tensor([*tokenizer.encode(text).ids, START_ID])
        self.reads: list[list[list[int]]] = []
        self.placed: list[tuple[int, int]] = []  # the first row's tokens and their positions, but those read again
        self.again: list[tuple[list[int], list[int], int]] = []  # their tokens and positions, and how many there were
        self.told = 0

    def _logits(self) -> Tensor:
        logits = torch.zeros(self.batch_size, self.model.config.vocab_size)
        logits[:, self.script[self.told % len(self.script)]] = 50.0
        return logits

    def read(self, tokens: Tensor, positions: Tensor) -> Tensor:
        read = tokens[0].tolist(), positions[0].tolist()
        if self.reads:
            self.again.append((*read, len(self.placed)))
        else:
            self.placed += zip(*read, strict=True)
        self.reads.append(tokens.tolist())
        self.cache.length = tokens.shape[1]
        return self._logits()

    def step(self, tokens: Tensor, positions: Tensor) -> Tensor:
        self.told += 1
        self.placed.append((int(tokens[0]), int(positions[0])))
        self.cache.length += 1
        return self._logits()


TEXT = "# program=3 tempo=90 meter=3/4 key=62\n" + "0+10|2+10|1/1\n2-9|1/2\n" * 20


NO_LENGTH = Length()


def written(tokenizer: Tokenizer, text: str = TEXT, length: Length = NO_LENGTH, **sizes: int) -> tuple[str, Scripted]:
    decoder = Scripted(tokenizer, text, **sizes)
    grammar = Grammar(tokenizer, may_end=not length.is_given)
    writer = Writer(decoder, tokenizer, grammar, Drawing())
    rows = decoder.batch_size
    return writer.write([(START_ID, 0)], grammar.start(rows), [length] * rows)[0].text, decoder


def test_a_document_is_written_until_its_end(tokenizer: Tokenizer) -> None:
    assert written(tokenizer)[0] == TEXT


@pytest.mark.parametrize(
    ("length", "lines"),
    [
        (Length(notes=1), 1),
        (Length(notes=3), 2),  # to the end of the line
        (Length(notes=4), 3),
        (Length(steps=24), 1),
        (Length(steps=25), 2),
        (Length(bars=1), 4),  # of 3/4; the lines' times are 1 and 1/2
        (Length(seconds=2.1), 5),  # at 90 beats a minute 3.15 beats
        (Length(notes=3, bars=1), 2),
    ],
)
def test_takes_are_as_long_as_asked(tokenizer: Tokenizer, length: Length, lines: int) -> None:
    assert written(tokenizer, length=length)[0].splitlines() == TEXT.splitlines()[: 1 + lines]


def test_without_an_end_a_take_has_a_thousand_notes(tokenizer: Tokenizer) -> None:
    endless = TEXT + "2+10|1/1\n" * 2000
    assert decode([written(tokenizer, endless, block_size=10_000)[0]]).notes == 1000


def test_when_the_context_is_full_the_header_and_the_latest_tokens_are_read(tokenizer: Tokenizer) -> None:
    text, decoder = written(tokenizer, length=Length(notes=50), block_size=80)
    assert text == "".join(TEXT.splitlines(keepends=True)[: len(text.splitlines())])
    assert len(decoder.reads) > 3
    ids = [START_ID, *tokenizer.encode(TEXT).ids]
    head = ids[: TEXT.index(" key") + 1] + tokenizer.encode("\n").ids  # without the key
    for number, (seen,) in enumerate(decoder.reads[1:]):
        end = 80 + number * 20
        assert seen == (head[:30] + ids[end - 30 : end])  # 60 are read, half of them at most the header's


@pytest.mark.parametrize("begun", [0, 3], ids=["from nothing", "behind lines"])
@pytest.mark.parametrize("language", [TRACKS, SONGS, Language("messages", "song"), Language("characters")], ids=str)
def test_tokens_are_read_at_their_positions(language: Language, begun: int) -> None:
    """Those given, those drawn, and those read once more when the context is full."""
    tunes = [melody(1, 60), melody(2, 60, program=30), melody(3, 60, is_drum=True)]
    text = encode(Score(480, tuple(tune.tracks[0] for tune in tunes), 100.0), None, language)[0].text
    tokenizer = train_tokenizer([text], 400, language)
    header, body = split_header(text)
    given = header + "".join(body.splitlines(keepends=True)[:begun]) if begun else ""
    ids, times = document_tokens(tokenizer, language, text)
    expected = token_positions([0, *times], ["", *map(token_texts(tokenizer).__getitem__, ids)])

    decoder = Scripted(tokenizer, text.removeprefix(given), block_size=48, vocab_size=tokenizer.get_vocab_size())
    marks = re.findall(r"([d.\d]+)@", given) or [""]
    grammar = Grammar(tokenizer, language, behind=marks[-1] if begun else None, marks=["0", "30", "d"])
    now = sum(map(language.module.line_steps, given.splitlines()[1:]))
    place = grammar.start(1, dict.fromkeys(["", "0", "30", "d"], 60) if begun else None, now)
    writer = Writer(decoder, tokenizer, grammar, Drawing())
    (written,) = writer.write(placed(tokenizer, grammar, given), place, [Length(steps=500)])
    assert text.startswith(given + written.text) and written.end >= 500
    assert [position for _, position in decoder.placed] == expected[: len(decoder.placed)]
    assert len(decoder.reads) > 1
    for read, positions, count in decoder.again:
        head = min(len(placed(tokenizer, grammar, without_key(header))), 18)  # half of 36 tokens at most
        assert positions[head:] == expected[count - len(read) + head : count]
        assert positions[:head] == [positions[head] + position for position in expected[:head]]


def test_a_given_document_that_is_too_long_is_read_from_a_line_on(untrained: GPT, tokenizer: Tokenizer) -> None:
    decoder = Scripted(tokenizer, "0+1|1/1\n", block_size=100)
    writer = Writer(decoder, tokenizer, Grammar(tokenizer, behind="", may_end=False), Drawing())
    header = "# tempo=90\n"
    given = [START_ID, *tokenizer.encode(header + "".join(f"0+{n}|1/{n}\n" for n in (1, 2, 3, 4, 6, 8) * 9)).ids]
    writer.write([(token, 0) for token in given], writer.grammar.start(1), [Length(notes=1)], read_header(header))
    (seen,) = decoder.reads[0]
    text = tokenizer.decode(seen)
    assert text.startswith(header) and 50 < len(seen) <= 75
    assert tokenizer.decode(given).endswith("\n" + text.removeprefix(header)) and text.count("\n0+") > 5


def test_rows_are_as_if_written_alone(untrained: GPT, learned: Tokenizer) -> None:
    def takes(seed: int, count: int) -> list[str]:
        length = Length(notes=25)
        return compose(untrained, learned, TRACKS, Drawing(seed=seed), length=length, takes=count, weights="float32")

    assert takes(5, 3) == [takes(seed, 1)[0] for seed in (5, 6, 7)]


def test_a_step_of_fixed_shapes_writes_the_same(untrained: GPT, learned: Tokenizer) -> None:
    texts = []
    for fixed_shapes in (False, True):
        grammar = Grammar(learned, may_end=False)
        writer = Writer(Decoder(Prepared(untrained, "float32"), 2, fixed_shapes), learned, grammar, Drawing(seed=4))
        texts.append([lines.text for lines in writer.write([(START_ID, 0)], grammar.start(2), [Length(notes=40)] * 2)])
    assert texts[0] == texts[1]


@pytest.fixture(scope="module")
def of_songs() -> Tokenizer:
    tunes = [[melody(3 * seed + n, 30, n == 2, 12 * n).tracks[0] for n in range(3)] for seed in range(20)]
    return train_tokenizer([encode(Score(480, tuple(t), 90.0), None, SONGS)[0].text for t in tunes], 300, SONGS)


@pytest.fixture(scope="module")
def player(of_songs: Tokenizer) -> GPT:
    torch.manual_seed(1)
    return build_model(replace(CONFIG, vocab_size=of_songs.get_vocab_size())).eval()


def test_songs_from_nothing_can_be_decoded(player: GPT, of_songs: Tokenizer) -> None:
    drawing, length, keys = Drawing(seed=1), Length(notes=40), range(40, 80)
    marks = ["0", "12", "12.2", "d"]
    takes = compose(player, of_songs, SONGS, drawing, {"key": "50"}, length, 50, keys, marks=marks)
    scores = [decode([take], SONGS) for take in takes]
    assert all(" key=50\n" in take for take in takes)
    assert len(set(takes)) == 50 and min(score.notes for score in scores) >= 40
    assert {(t.program, t.is_drum) for score in scores for t in score.tracks} == {(0, False), (12, False), (0, True)}
    assert all(t.is_drum or {*t.pitch.tolist()} <= {*keys} for score in scores for t in score.tracks)


@pytest.mark.parametrize("notes", [30, 200], ids=["within the context", "beyond it"])
def test_songs_go_on_part_by_part_in_every_key(player: GPT, of_songs: Tokenizer, notes: int) -> None:
    body = "12@0+8|4+8|d@36=9|1/2\n0@7-8|12@2+8|1/2\n" * 6
    last = {"12": 72, "0": 18}

    def lines(by: int, marks: list[str]) -> list[str]:
        references = {mark: last.get(mark, 0) + by for mark in marks}
        keys = {mark: range(last[mark] - 9 + by, last[mark] + 12 + by) for mark in last}
        document = f"# tempo=100 meter=4/4 key={60 + by}\n{body}"
        prepared, lengths = Prepared(player, "float32"), [Length(notes=notes)] * 6
        written = go_on(prepared, of_songs, SONGS, Drawing(seed=9), document, references, lengths, keys)
        for its in written:
            tracks = decode([document + its.text], SONGS).tracks
            assert [t.is_drum for t in tracks] == [False, False, True]
            for track, mark in zip(tracks, ("0", "12"), strict=False):
                late = track.pitch[track.onset >= 6 * 24]
                assert {*late.tolist()} <= {*keys[mark]}
                assert len(late) == 0 or mark in marks
        return [its.text for its in written]

    everyone = lines(0, ["0", "12", "d"])
    assert everyone == lines(3, ["0", "12", "d"])
    assert all(re.search(f"{mark}@", "".join(everyone)) for mark in ("0", "12", "d"))
    assert "@" not in "".join(lines(0, ["12"]))  # it has played last, and goes on without a mark
    alone = lines(0, ["0"])
    assert all(text.startswith("0@") and text.count("@") == 1 for text in alone)


@pytest.mark.parametrize("layout", ["track", "song"])
@pytest.mark.parametrize("is_readable", [False, True])
def test_what_has_no_grammar_is_cut_where_it_can_not_be_read(
    is_readable: bool, layout: Layout, untrained: GPT, monkeypatch: pytest.MonkeyPatch
) -> None:
    language = Language("messages", layout)
    tokenizer = train_tokenizer(["60+9|12\n"], 60, language)
    program, mark = ("", "0@") if language.is_song else (" program=0", "")
    header, body = f"#{program} tempo=100 meter=4/4 key=60\n", "60+9|12\n60-|62+9|12\n62-|12\n"
    wrong = "" if is_readable else "61-|24\n62+9|12\n"  # the end of what has not begun

    def follow(script: str) -> None:
        size = tokenizer.get_vocab_size()
        monkeypatch.setattr("midigpt.generate.Decoder", lambda _, rows: Scripted(tokenizer, script, 999, rows, size))

    follow(header + mark + body + wrong)
    takes = compose(untrained, tokenizer, language, Drawing(), takes=3)
    assert takes == ([header + mark + body] * 3 if is_readable else [])
    follow(body + wrong)
    prepared, document = Prepared(untrained, "float32"), f"{header}{mark}60+9|24\n60-|24\n"
    part, lengths = mark.removesuffix("@"), [NO_LENGTH] * 2
    keys = {part: range(48, 72)}
    for lines in go_on(prepared, tokenizer, language, Drawing(), document, {part: 60}, lengths, keys):
        assert (lines.text, lines.notes, lines.end) == (body, 2, 36)


def test_what_no_midi_file_can_hold_is_left_out(untrained: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    language = Language("characters", "track")
    tokenizer = train_tokenizer(["\n"], len(base_alphabet(language)) + 1, language)
    for length, takes in ((400, 1), (511, 0)):  # of 512, the last a MIDI file's longest
        note = chr(FIRST_NOTE + (60 << 13 | 9 << 9 | length))
        script = f"# program=0 tempo=100 meter=4/4 key=60\n{note}{chr(FIRST_TIME + 24)}\n"
        decoder = Scripted(tokenizer, script, 999, 1, tokenizer.get_vocab_size())
        monkeypatch.setattr("midigpt.generate.Decoder", lambda *_, its=decoder: its)
        assert compose(untrained, tokenizer, language, Drawing()) == [script] * takes


def test_lines_without_notes_come_to_an_end(untrained: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("midigpt.generate.TOKENS_A_NOTE", 0.1)
    language = Language("messages", "track")
    tokenizer = train_tokenizer(["60+9|12\n"], 60, language)
    decoder = Scripted(tokenizer, "1\n" * 9, 99, 1, tokenizer.get_vocab_size())
    grammar = Grammar(tokenizer, language, may_end=False, behind="")
    writer = Writer(decoder, tokenizer, grammar, Drawing())
    (lines,) = writer.write(placed(tokenizer, grammar, ""), grammar.start(1), [Length(notes=5)], read_header(""))
    assert 20 < lines.text.count("\n") <= 50 and lines.notes == 0


def test_wishes_are_met(untrained: GPT, learned: Tokenizer) -> None:
    wishes = {"program": "40", "tempo": "90", "meter": "3/4", "key": "70"}
    for names in (["program"], ["tempo", "key"], ["program", "tempo", "meter", "key"]):
        wished = {name: wishes[name] for name in names} | {"program": "40"}
        drawing, keys = Drawing(seed=3), range(60, 80)
        for text in compose(untrained, learned, TRACKS, drawing, wished, Length(notes=1), takes=3, keys=keys):
            assert wished.items() <= dict(field.split("=") for field in text.splitlines()[0].split()[1:]).items()
            assert set(decode([text]).tracks[0].pitch.tolist()) <= set(range(60, 80))


@pytest.mark.parametrize("notes", [40, 300], ids=["within the context", "beyond it"])
def test_a_document_in_another_key_goes_on_in_the_same_way(untrained: GPT, learned: Tokenizer, notes: int) -> None:
    sure = copy.deepcopy(untrained)  # of what it does, so that a key that is read would change it
    for weight in sure.parameters():
        weight.data *= 20 if weight.ndim == 2 else 1
    prepared = Prepared(sure)

    def lines(key: int) -> list[str]:
        document = f"# program=0 tempo=100 meter=4/4 key={key}\n" + "0+8|4+8|1/2\n2+8|1/2\n" * 10
        lengths, within = [Length(notes=notes)] * 2, range(key - 12, key + 13)
        lines = go_on(prepared, learned, TRACKS, Drawing(seed=9), document, {"": key}, lengths, within)
        return [its.text for its in lines]

    assert lines(60) == lines(61) == lines(67) == lines(48)


def test_broken_weights_are_told(learned: Tokenizer, untrained: GPT) -> None:
    broken = build_model(untrained.config).eval()
    next(broken.parameters()).data.fill_(float("nan"))
    with pytest.raises(UserError, match="weights are broken"):
        compose(broken, learned, TRACKS, Drawing())


# --- drawing ---------------------------------------------------------------------------------------------

PROBABILITIES = torch.tensor([0.4, 0.3, 0.2, 0.08, 0.02])
UNIFORM = (torch.arange(10_000) + 0.5) / 10_000


def frequencies(drawing: Drawing, allowed: list[bool] | None = None) -> list[float]:
    logits = PROBABILITIES.log().expand(len(UNIFORM), -1)
    mask = torch.tensor(allowed or [True] * 5).expand(len(UNIFORM), -1)
    return (draw(logits, mask, drawing, UNIFORM).bincount(minlength=5) / len(UNIFORM)).tolist()


@pytest.mark.parametrize(
    ("drawing", "expected"),
    [
        (Drawing(), [0.4, 0.3, 0.2, 0.08, 0.02]),
        (Drawing(temperature=0), [1, 0, 0, 0, 0]),
        (Drawing(temperature=0.5), [p * p / 0.2968 for p in (0.4, 0.3, 0.2, 0.08, 0.02)]),
        (Drawing(top_k=2), [4 / 7, 3 / 7, 0, 0, 0]),
        (Drawing(top_k=9), [0.4, 0.3, 0.2, 0.08, 0.02]),
        (Drawing(top_p=0.39), [1, 0, 0, 0, 0]),
        (Drawing(top_p=0.69), [4 / 7, 3 / 7, 0, 0, 0]),
        (Drawing(top_p=0.71), [4 / 9, 3 / 9, 2 / 9, 0, 0]),
        (Drawing(min_p=0.45), [4 / 9, 3 / 9, 2 / 9, 0, 0]),
        (Drawing(min_p=0.8), [1, 0, 0, 0, 0]),
    ],
)
def test_tokens_are_as_frequent_as_they_are_likely(drawing: Drawing, expected: list[float]) -> None:
    assert frequencies(drawing) == pytest.approx(expected, abs=2e-4)


def test_what_is_not_allowed_is_never_drawn_and_the_rest_scaled() -> None:
    assert frequencies(Drawing(), [False, True, False, True, True]) == pytest.approx([0, 0.75, 0, 0.2, 0.05], abs=2e-4)
    assert frequencies(Drawing(temperature=0), [False, True, True, True, True]) == [0, 1, 0, 0, 0]
    assert frequencies(Drawing(top_p=0.5), [False, True, False, True, True]) == [0, 1, 0, 0, 0]


@pytest.mark.parametrize(
    "numbers",
    [{"temperature": 1e-38}, {"temperature": -1}, {"top_k": 0}, {"top_p": 0}, {"min_p": 1.5}, {"seed": -1}],
)
def test_numbers_that_nothing_can_be_drawn_with_are_told(numbers: dict[str, float]) -> None:
    with pytest.raises(UserError, match="--" + next(iter(numbers)).replace("_", "-")):
        Drawing(**numbers)
    assert frequencies(Drawing(temperature=0.01, top_p=1e-30, min_p=1.0)) == [1, 0, 0, 0, 0]


def test_the_ends_of_chance_draw_allowed_tokens() -> None:
    ends = torch.tensor([0.0, 1 - 2**-24])
    allowed = torch.tensor([[False, True, True, False, False]] * 2)
    assert draw(torch.zeros(2, 5), allowed, Drawing(), ends).tolist() == [1, 2]
