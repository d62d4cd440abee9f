"""The model in both shapes: the same logits as transformers'."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from midigpt.language import TRACKS
from midigpt.model import GPT, ModelConfig, build_model, flops_per_token, model_config
from midigpt.settings import Shape

CONFIG = ModelConfig(
    vocab_size=len(TRACKS.alphabet) + 1, block_size=32, n_layer=2, n_head=4, n_kv_head=4, n_embd=32, n_hidden=64
)
SHAPES = {
    "qwen3": CONFIG,
    "grouped": replace(CONFIG, n_kv_head=2, rope_theta=5e4, positions="index"),
    "gpt2": replace(CONFIG, type="gpt2"),
}


@pytest.fixture(params=SHAPES)
def shape(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def model(shape: str) -> GPT:
    return random_model(SHAPES[shape])


def random_model(config: ModelConfig) -> GPT:
    """Of weights that all differ from what they begin with, biases and norms too."""
    torch.manual_seed(0)
    model = build_model(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.1 * torch.randn_like(weight)
    return model


def places(end: int, start: int = 0) -> Tensor:
    return torch.arange(start, end)[None]


def random_tokens(*shape: int) -> Tensor:
    return torch.randint(0, CONFIG.vocab_size, shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_a_training_step_compiles_without_a_graph_break(shape: str, dropout: float) -> None:
    model = build_model(SHAPES[shape], dropout)
    tokens = random_tokens(2, 8)
    torch.compiler.reset()  # or the shapes before count against a limit
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", torch.bfloat16):
        (compiled(tokens, places(8)).mean() + compiled(tokens, places(8), targets=tokens)).backward()
    assert all(weight.grad is not None for weight in model.parameters())


def test_training_in_bfloat16_gives_the_gradients_of_float32(shape: str) -> None:
    tokens, targets = random_tokens(2, 32), random_tokens(2, 33)[:, 1:]
    gradients = []
    for enabled in (False, True):
        model = random_model(SHAPES[shape]).train()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            model(tokens, places(32), targets=targets).backward()
        gradients.append(torch.cat([weight.grad.flatten() for weight in model.parameters()]))
    assert (gradients[1] - gradients[0]).norm() < 0.03 * gradients[0].norm()


def test_targets_give_the_loss(model: GPT) -> None:
    tokens, targets = random_tokens(2, 20), random_tokens(2, 21)[:, 1:].clone()
    targets[0, 5:] = -100  # not counted
    loss = model(tokens, places(20), targets=targets)
    logits = model(tokens, places(20))
    torch.testing.assert_close(loss, F.cross_entropy(logits.flatten(0, 1), targets.flatten()))
    assert loss.dtype == torch.float32


def test_dropout_acts_on_embedding_attention_and_what_each_block_adds(
    shape: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    dropped: list[tuple[int, ...]] = []

    def noted(x: Tensor, share: float) -> Tensor:
        assert share == 0.1
        dropped.append(tuple(x.shape))
        return x

    monkeypatch.setattr("midigpt.model.dropout", noted)
    monkeypatch.setattr("midigpt.kernels.dropout", noted)
    model = build_model(SHAPES[shape], dropout=0.1)
    model(random_tokens(3, 8), places(8))
    width, weights = (3, 8, 32), (12, 8, 8)
    assert dropped == [width, *[weights, width, width] * 2]
    dropped.clear()
    model.eval()(random_tokens(3, 8), places(8))
    assert not dropped


@torch.no_grad()
def test_weights_begin_as_those_of_gpt2(shape: str) -> None:
    model = build_model(replace(SHAPES[shape], n_layer=8, n_embd=128, n_hidden=256))
    for name, weight in model.named_parameters():
        if weight.ndim == 2:
            is_residual = name.endswith(("o_proj.weight", "down_proj.weight", "c_proj.weight"))
            assert weight.std().item() == pytest.approx(0.02 / 4 if is_residual else 0.02, rel=0.05), name
        else:
            assert torch.all(weight == (0 if name.endswith("bias") else 1)), name


def test_parameters_and_operations_are_counted_as_others_count_them() -> None:
    wide = {"n_layer": 12, "n_head": 12, "n_kv_head": 12, "n_embd": 768, "n_hidden": 3072, "block_size": 1024}
    gpt2 = ModelConfig(type="gpt2", vocab_size=50304, **wide)
    # What nanoGPT counts with biases, 123.69 M, and 1024 position embeddings.
    with torch.device("meta"):
        assert GPT(gpt2).parameter_count() == 123_689_472 + 1024 * 768
    assert flops_per_token(gpt2) == 6 * 123_689_472 + 12 * 12 * 768 * 1024
    grouped = ModelConfig(vocab_size=1000, **wide | {"n_kv_head": 3})
    matrices = 12 * (2 * 768 * 768 + 2 * 768 * 192 + 3 * 768 * 3072) + 1000 * 768
    norms = 12 * (2 * 768 + 2 * 64) + 768
    assert flops_per_token(grouped) == 6 * (matrices + norms) + 12 * 12 * 768 * 1024


@torch.no_grad()
def test_no_token_sees_a_later_one(model: GPT) -> None:
    tokens = random_tokens(1, 20)
    changed = tokens.clone()
    changed[0, 12:] = 5
    before, after = model(tokens, places(20)), model(changed, places(20))
    assert torch.equal(before[0, :12], after[0, :12]) and not torch.equal(before[0, 12:], after[0, 12:])


@torch.no_grad()
def test_positions_are_an_argument_and_may_differ_in_a_batch(model: GPT) -> None:
    tokens, stretched = random_tokens(2, 10), 3 * places(10)
    both = model(tokens, torch.cat([places(10), stretched]))
    torch.testing.assert_close(both[:1], model(tokens[:1], places(10)), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(both[1:], model(tokens[1:], stretched), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(model(tokens, stretched), model(tokens, places(10)), atol=1e-2)


@torch.no_grad()
@pytest.mark.parametrize("shape", ["qwen3", "grouped"], indirect=True)
def test_rotary_positions_count_only_by_their_distance(model: GPT) -> None:
    tokens = random_tokens(1, 10)
    moved = model(tokens, places(110, 100))
    torch.testing.assert_close(moved, model(tokens, places(10)), atol=1e-4, rtol=1e-4)


def test_settings_leave_sizes_to_the_model() -> None:
    shape = Shape(n_layer=3, n_head=4, n_embd=128)
    assert (config := model_config(shape, 4096)).n_hidden == 352  # 8 / 3 of 128, rounded up to a multiple of 32
    assert (config.n_kv_head, config.vocab_size, config.block_size) == (4, 4096, 256)
    assert model_config(replace(shape, type="gpt2"), 4096).n_hidden == 512
    given = model_config(replace(shape, n_hidden=368, n_kv_head=2), 4096)
    assert (given.n_hidden, given.n_kv_head) == (368, 2)
