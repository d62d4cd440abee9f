"""Positions in musical time: of text, in train/*.positions.bin, and in batches."""

import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from midigpt.batches import Batches
from midigpt.bpe import START_ID, token_texts
from midigpt.config import as_table, parse_config
from midigpt.files import UserError
from midigpt.language import TRACKS, encode
from midigpt.midi import read_midi
from midigpt.model import GPT, model_config
from midigpt.normal import GRID
from midigpt.positions import POSITIONS_A_STEP, token_positions
from midigpt.settings import Config, Shape
from midigpt.sides import Side, load_side
from midigpt.start import check_same, complete
from midigpt.tokenizer import document_tokens, load_tokenizer
from midigpt.train_data import make_train_bin
from tests.conftest import SPLIT, midi_files


def positions_of(tokenizer: Tokenizer, text: str) -> list[int]:
    """As a sampler has them, of a document without its start token."""
    ids, times = document_tokens(tokenizer, TRACKS, text)
    texts = token_texts(tokenizer)
    assert "".join(texts[token] for token in ids) == text
    return token_positions(times, [texts[token] for token in ids])


def by_definition(texts: list[str]) -> list[int]:
    """Of a document's tokens behind the start token, from their texts alone."""
    found, now, place, line = [], Fraction(0), 0, ""
    for text in texts:
        found.append(int(now * GRID) * POSITIONS_A_STEP + place)
        line, place = line + text, place + 1
        if line.endswith("\n"):
            now += 0 if line.startswith("#") else Fraction(line.split("|")[-1])
            line, place = "", 0
    return found


# --- of text ---------------------------------------------------------------------------------------------


def test_a_token_stands_at_its_lines_time_and_then_at_its_place_in_the_line(tokenizer: Tokenizer) -> None:
    text = "# key=60\n1/2\n0+9|1/1\n2+9:1/4|1/8\n"  # a token for each character
    header, rest, first, second = range(9), range(4), range(48, 48 + 8), range(144, 144 + 12)
    assert positions_of(tokenizer, text) == [*header, *rest, *first, *second]


def test_a_start_token_is_a_line_of_its_own() -> None:
    texts = ["", "#", "\n", "0+9|", "1/1\n", "0+9|1/1\n", "", "#\n", "1/1\n"]
    times = [0, 0, 0, 0, 0, 24, 0, 0, 0]
    assert token_positions(times, texts) == [0, 0, 1, 0, 1, 96, 0, 0, 0]
    assert token_positions([], []) == []


def test_positions_are_onsets_in_real_music(corpus: Callable[[str], Path], tokenizer: Tokenizer) -> None:
    onsets = 0
    for file in midi_files(corpus("mini"))[::4]:
        for document in encode(read_midi(file)):
            found = positions_of(tokenizer, document.body)
            lines = document.body.splitlines()
            at = np.cumsum([0, *(len(line) + 1 for line in lines)])[:-1]
            heard = [found[place] for place, line in zip(at, lines, strict=True) if "|" in line]
            assert heard == (POSITIONS_A_STEP * np.unique(document.onset)).tolist()
            assert found == by_definition(list(document.body))
            onsets += len(heard)
    assert onsets > 5000


# --- in train/ -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["train", "val"])
def test_packed_positions_are_those_of_the_documents(prepared: Path, name: str) -> None:
    side, _ = load_side(prepared, name)
    assert (prepared / "train" / f"{name}.positions.bin").stat().st_size == 4 * len(side.tokens)
    tokenizer = load_tokenizer(prepared)[0]
    texts = token_texts(tokenizer)
    for (start, _), end in zip(side.docs, side.ends, strict=True):
        ids = side.tokens[start:end].tolist()
        expected = by_definition([texts[token] for token in ids[1:]])
        assert side.positions[start:end].tolist() == [0, *expected]
        assert positions_of(tokenizer, "".join(texts[token] for token in ids)) == expected
        assert expected[-1] > 20 * GRID


def test_positions_that_do_not_fit_are_told(work: Path) -> None:
    path = work / "train" / "val.positions.bin"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(UserError, match=r"not what meta\.json beside it describes; run: make train-bin"):
        load_side(work, "val")
    path.unlink()
    with pytest.raises(UserError, match=r"val\.positions\.bin does not exist yet; make it with: make train-bin"):
        load_side(work, "val")


def test_positions_of_another_measure_are_told(work: Path) -> None:
    path = work / "train" / "meta.json"
    path.write_text(path.read_text().replace(f'"positions_a_step": {POSITIONS_A_STEP}', '"positions_a_step": 9'))
    with pytest.raises(UserError, match="run: make train-bin"):
        load_side(work, "train")


def test_a_line_without_a_time_is_told(work: Path) -> None:
    (work / "data" / "song07_1.txt").write_text("# tempo=90\n0+10|1/1\n0+10|1\n")
    with pytest.raises(UserError, match=r"'0\+10\|1' does not say how long it takes"):
        make_train_bin(work, SPLIT)


# --- in batches ------------------------------------------------------------------------------------------


def known_documents(side: Side) -> dict[tuple[int, ...], list[int]]:
    """The positions of each document, by its tokens."""
    pairs = zip(side.docs[:, 0].tolist(), side.ends.tolist(), strict=True)
    return {tuple(side.tokens[a:b].tolist()): side.positions[a:b].tolist() for a, b in pairs}


def test_a_batchs_positions_belong_to_its_tokens(prepared: Path) -> None:
    side, _ = load_side(prepared, "train")
    batches = Batches(side, 3, 17, seed=1)
    turn = len(side.tokens) // 51  # steps, in which each row reads on from window to window
    steps = [batches(step) for step in range(3 * turn)]
    for inputs, targets, positions in steps:
        assert inputs.shape == targets.shape == positions.shape == (3, 17) and positions.dtype == torch.int64
    turns = [steps[n * turn : (n + 1) * turn] for n in range(3)]
    tokens, positions = (
        torch.cat([torch.stack([step[part] for step in some], dim=1).flatten() for some in turns]).tolist()
        for part in (0, 2)
    )
    starts = [place for place, token in enumerate(tokens) if token == START_ID]
    known = known_documents(side)
    for start, end in pairwise(starts):
        assert positions[start:end] == known[tuple(tokens[start:end])]
    assert len(starts) > 2 * len(side.docs)
    assert all(torch.equal(*both) for both in zip(batches(4), Batches(side, 3, 17, seed=1)(4), strict=True))


def test_large_positions_stay_what_they_are(prepared: Path) -> None:
    side, _ = load_side(prepared, "train")
    late = Side(side.tokens, side.positions + np.uint32(2**31), side.docs, side.notes)
    assert torch.equal(Batches(late, 2, 8, 0)(3)[2], Batches(side, 2, 8, 0)(3)[2] + 2**31)


def test_positions_may_count_tokens(prepared: Path) -> None:
    side, _ = load_side(prepared, "train")
    by_time, by_index = Batches(side, 2, 8, 0)(3), Batches(side, 2, 8, 0, positions="index")(3)
    assert torch.equal(by_index[0], by_time[0]) and torch.equal(by_index[1], by_time[1])
    assert by_index[2].tolist() == [list(range(8))] * 2 and by_index[2].dtype == torch.int64


# --- in a run --------------------------------------------------------------------------------------------


def test_gpt2_counts_tokens() -> None:
    shape = Shape(type="gpt2")
    assert model_config(shape, 80).positions == "index"
    assert model_config(replace(shape, type="qwen3"), 80).positions == "time"


def test_a_run_goes_on_counting_as_it_began(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sides = {"train": {}, "val": {}, "tokenizer": ""}
    for kind in ("time", "index"):
        begun = as_table(Config(model=Shape(positions=kind), epochs=1.0))
        then = {"config": json.loads(json.dumps(begun, default=str)), "data": sides}
        for flags, is_same in (([], True), (["--model.positions", kind], True), (["--model.type", "gpt2"], False)):
            monkeypatch.setattr("sys.argv", ["train.py", *flags])
            config, _ = complete(parse_config(Config, ""), "", tmp_path, then, None, 10_000)
            assert config.model.positions == ("index" if "gpt2" in flags else kind)
            with nullcontext() if is_same else pytest.raises(UserError, match="another shape"):
                check_same(config, tmp_path, then, sides)
        monkeypatch.setattr("sys.argv", ["train.py", "--model.positions", "index" if kind == "time" else "time"])
        config, _ = complete(parse_config(Config, ""), "", tmp_path, then, None, 10_000)
        with pytest.raises(UserError, match="another shape"):
            check_same(config, tmp_path, then, sides)


def test_a_run_counts_as_the_model_it_begins_from(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sys.argv", ["train.py", "--init-from", str(tmp_path)])
    for kind in ("time", "index"):
        origin = GPT(model_config(Shape(positions=kind), 80))
        config, _ = complete(parse_config(Config, ""), "", None, {}, origin, 10_000)
        assert config.model.positions == kind
