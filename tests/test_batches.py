"""Batches and the measure."""

import math
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

from midigpt.batches import Batches
from midigpt.bpe import START_ID
from midigpt.evaluate import Evaluation, evaluation_windows, token_nats, unigram_bits_per_note
from midigpt.model import GPT, ModelConfig, build_model
from midigpt.sides import line_tokens, load_side
from midigpt.tokenizer import tokenizer_path


@pytest.fixture(params=["time", "index"])
def model(request: pytest.FixtureRequest) -> GPT:
    torch.manual_seed(0)
    shape = {"n_layer": 1, "n_head": 2, "n_kv_head": 2, "n_embd": 16, "n_hidden": 32}
    model = build_model(ModelConfig(vocab_size=80, block_size=400, positions=request.param, **shape))
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(5)  # so that tokens differ in likelihood
    return model


def test_every_token_is_a_target_once_an_epoch(prepared: Path) -> None:
    side, _ = load_side(prepared, "train")
    batches = Batches(side, 3, 17, seed=1)
    length = len(side.tokens)
    turn = length // 51  # steps, in which each row reads on from window to window
    turns = [[batches(n * turn + step)[1].numpy() for step in range(turn)] for n in range(3)]
    stream = np.concatenate([np.stack(windows, axis=1).ravel() for windows in turns])
    assert torch.equal(batches(2)[1], Batches(side, 3, 17, seed=1)(2)[1])  # a function of the step alone
    first, second = np.append(batches(0)[0][0, 0], stream[: length - 1]), stream[length - 1 : 2 * length - 1]
    assert not np.array_equal(first, second)
    for epoch in (first, second):
        assert np.array_equal(np.sort(epoch), np.sort(side.tokens))
        assert np.array_equal(np.flatnonzero(epoch == START_ID)[:1], [0])


def test_the_rows_of_a_batch_are_of_several_songs(prepared: Path) -> None:
    side, _ = load_side(prepared, "train")
    of_document = np.repeat(np.arange(len(side.docs)), side.ends - side.docs[:, 0])
    everything = replace(side, tokens=of_document.astype(np.uint16))
    for step in range(10):
        inputs, _, _ = Batches(everything, 4, 16, seed=1)(step)
        assert len(inputs.unique()) >= 4  # where 64 tokens in a row are of one document or two


def test_the_measure_counts_every_line_token_once(prepared: Path) -> None:
    side, _ = load_side(prepared, "val")
    for block_size in (1, 8, 33, 10_000):
        counted = np.zeros(len(side.tokens), int)
        for start, end, first in evaluation_windows(side, block_size):
            assert end - start <= block_size + 1
            counted[max(first, start + 1) : end] += 1
        assert counted.max() == 1
        assert np.array_equal(side.tokens[counted == 1], line_tokens(side))


def test_each_document_is_read_from_its_start_and_its_header_is_given(prepared: Path, model: GPT) -> None:
    side, _ = load_side(prepared, "val")
    nats = token_nats(model, side, evaluation_windows(side, 400), "cpu", nullcontext())
    for (start, first), end in zip(side.docs, side.ends, strict=True):
        tokens = torch.from_numpy(side.tokens[start:end].astype(np.int64))
        positions = np.arange(end - start) if model.config.positions == "index" else side.positions[start:end]
        with torch.no_grad():
            logits = model(tokens[None, :-1], torch.from_numpy(positions.astype(np.int64))[None, :-1])[0]
        expected = F.cross_entropy(logits, tokens[1:], reduction="none")[first - start - 1 :].numpy()
        np.testing.assert_allclose(nats[first:end], expected, rtol=1e-4)
        assert not nats[start:first].any()


def test_a_window_that_begins_within_a_document_keeps_its_times(prepared: Path, model: GPT) -> None:
    side, _ = load_side(prepared, "val")
    start, end = side.docs[1, 0] + 40, side.docs[1, 0] + 80
    nats = token_nats(model, side, [(start, end, start + 20)], "cpu", nullcontext())
    tokens = torch.from_numpy(side.tokens[start:end].astype(np.int64))
    positions = torch.from_numpy(side.positions[start:end].astype(np.int64)) - side.positions[start]
    if model.config.positions == "index":
        positions = torch.arange(40)
    with torch.no_grad():
        logits = model(tokens[None, :-1], positions[None, :-1])[0]
    expected = F.cross_entropy(logits, tokens[1:], reduction="none")[19:].numpy()
    np.testing.assert_allclose(nats[start + 20 : end], expected, rtol=1e-4)


def test_bits_by_position_add_up(prepared: Path, model: GPT) -> None:
    side, _ = load_side(prepared, "val")
    evaluation = Evaluation(side, Tokenizer.from_file(str(tokenizer_path(prepared))), 400)
    figures = evaluation(model, "cpu", nullcontext())
    nats = token_nats(model, side, evaluation.windows, "cpu", nullcontext()).sum(dtype=np.float64)
    assert figures.bits_per_note == pytest.approx(nats / math.log(2) / side.notes)
    assert figures.nats_per_token == pytest.approx(nats / len(line_tokens(side)))
    assert list(figures.by_position) == ["0", "16"]  # each song has 40 notes
    songs = len(side.docs)
    notes = {"0": 16 * songs, "16": side.notes - 16 * songs}
    bits = sum(figures.by_position[name] * notes[name] for name in notes)
    assert bits == pytest.approx(figures.bits_per_note * side.notes)


def test_the_unigram_model_is_what_its_definition_says(prepared: Path) -> None:
    train, val = load_side(prepared, "train")[0], load_side(prepared, "val")[0]
    counts = np.bincount(line_tokens(train), minlength=80) + 1
    bits = -sum(math.log2(counts[token] / counts.sum()) for token in line_tokens(val))
    assert unigram_bits_per_note(train, val, 80) == pytest.approx(bits / val.notes)
