"""Reading many tokens and then one at a time gives what the model's own forward pass gives."""

from dataclasses import replace

import pytest
import torch

from midigpt.decoder import Decoder, Prepared, Weights
from midigpt.model import GPT, ModelConfig, build_model

CONFIG = ModelConfig(vocab_size=50, block_size=32, n_layer=2, n_head=4, n_kv_head=4, n_embd=64, n_hidden=96)
SHAPES = {
    "time": CONFIG,
    "grouped": replace(CONFIG, n_kv_head=2),
    "index": replace(CONFIG, positions="index"),
    "gpt2": replace(CONFIG, type="gpt2"),
}
FIXED = pytest.mark.parametrize("fixed_shapes", [False, True], ids=["as long as read", "fixed shapes"])


@pytest.fixture(params=SHAPES)
def model(request: pytest.FixtureRequest) -> GPT:
    torch.manual_seed(3)
    model = build_model(SHAPES[request.param]).eval()
    for weight in model.parameters():
        weight.data += torch.randn_like(weight) * (0.3 if weight.ndim == 1 else 0.15)  # biases and norms as well
    return model


def some_positions(tokens: torch.Tensor) -> torch.Tensor:
    """Of each document others: now a step, now a beat, now back to a beginning."""
    steps = torch.randint(0, 30, tokens.shape, generator=torch.Generator().manual_seed(8))
    positions = steps.cumsum(-1)
    positions[:, 9:] -= positions[:, 9:10]
    return positions


def logits_by_steps(decoder: Decoder, tokens: torch.Tensor, read: int) -> torch.Tensor:
    positions = some_positions(tokens)
    parts = [decoder.read(tokens[:, :read], positions[:, :read])]
    parts += [decoder.step(tokens[:, t], positions[:, t]) for t in range(read, tokens.shape[1])]
    return torch.stack(parts, dim=1)


def full_logits(model: GPT, tokens: torch.Tensor) -> torch.Tensor:
    is_index = model.config.positions == "index"
    with torch.inference_mode():
        return model(tokens, torch.arange(tokens.shape[1])[None] if is_index else some_positions(tokens))


@FIXED
@pytest.mark.parametrize("read", [1, 20])
def test_steps_give_the_logits_of_the_full_forward(model: GPT, fixed_shapes: bool, read: int) -> None:
    tokens = torch.randint(0, 50, (3, 32), generator=torch.Generator().manual_seed(0))
    steps = logits_by_steps(Decoder(Prepared(model, "float32"), 3, fixed_shapes), tokens, read)
    torch.testing.assert_close(steps, full_logits(model, tokens)[:, read - 1 :], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("weights", "limit"), [("bfloat16", 2e-3), ("int8", 5e-3)])
def test_smaller_weights_give_nearly_the_same_probabilities(model: GPT, weights: Weights, limit: float) -> None:
    tokens = torch.randint(0, 50, (4, 32), generator=torch.Generator().manual_seed(0))
    steps = logits_by_steps(Decoder(Prepared(model, weights), 4), tokens, 4).log_softmax(-1)
    exact = full_logits(model, tokens)[:, 3:].log_softmax(-1)
    assert exact.std() > 0.5  # not a model that knows nothing
    assert (exact.exp() * (exact - steps)).sum(-1).mean() < limit  # nats


@FIXED
def test_one_document_read_for_all_rows_is_each_ones(model: GPT, fixed_shapes: bool) -> None:
    tokens = torch.randint(0, 50, (1, 10))
    for_all, each = (Decoder(Prepared(model, "float32"), 3, fixed_shapes) for _ in range(2))
    positions = some_positions(tokens)
    one = each.read(tokens.expand(3, -1), positions.expand(3, -1))
    torch.testing.assert_close(for_all.read(tokens, positions), one)
    following, behind = torch.tensor([1, 2, 3]), torch.tensor([100, 124, 101])
    torch.testing.assert_close(for_all.step(following, behind), each.step(following, behind))


def test_what_was_read_before_is_forgotten(model: GPT) -> None:
    tokens = torch.randint(0, 50, (2, 12))
    decoder = Decoder(Prepared(model, "float32"), 2)
    logits_by_steps(decoder, torch.randint(0, 50, (2, 30)), 5)
    assert decoder.room == 2
    torch.testing.assert_close(
        logits_by_steps(decoder, tokens, 6), full_logits(model, tokens)[:, 5:], atol=1e-4, rtol=1e-4
    )
    assert decoder.room == 20


def test_a_span_of_the_cache_is_enough_up_to_its_end(model: GPT) -> None:
    tokens = torch.randint(0, 50, (2, 16))
    decoder = Decoder(Prepared(model, "float32"), 2, fixed_shapes=True)
    decoder.span = 16
    expected = full_logits(model, tokens)[:, 7:]
    torch.testing.assert_close(logits_by_steps(decoder, tokens, 8), expected, atol=1e-4, rtol=1e-4)
    decoder.span = 12
    assert not torch.allclose(logits_by_steps(decoder, tokens, 8)[:, -1], expected[:, -1], atol=1e-3)
