"""What is done in another way on a CPU gives what PyTorch's own operation gives, forward and back."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from midigpt import kernels
from midigpt.kernels import attend, dropout, next_token_loss, rms_norm

AUTOCAST = [pytest.param(False, id="float32"), pytest.param(True, id="bfloat16")]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def assert_same(ours: Callable[..., Tensor], theirs: Callable[..., Tensor], *x: Tensor, autocast: bool) -> None:
    """Values and gradients agree, under autocast to bfloat16 with what float32 gives."""
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = ours(*x)
    expected = theirs(*x)
    weights = random(*expected.shape, seed=9).detach()
    gradients = torch.autograd.grad((y.float() * weights).sum(), x)
    expected_gradients = torch.autograd.grad((expected * weights).sum(), x)
    share = 0.02 if autocast else 1e-5
    for one, other in zip((y, *gradients), (expected, *expected_gradients), strict=True):
        assert (one.float() - other).norm() <= share * other.norm()


@pytest.mark.parametrize("autocast", AUTOCAST)
def test_rms_norm(autocast: bool) -> None:
    def theirs(x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, (16,), weight, 1e-2)

    x, weight = random(3, 5, 16), random(16, seed=1)
    assert_same(lambda x, weight: rms_norm(x, weight, 1e-2), theirs, x, weight, autocast=autocast)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = rms_norm(x, weight, 1e-2)
    assert y.dtype == (torch.bfloat16 if autocast else torch.float32)
    torch.testing.assert_close(y.float(), theirs(x, weight), atol=2e-2 if autocast else 1e-6, rtol=1e-2)


@pytest.mark.parametrize("autocast", AUTOCAST)
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_attention(autocast: bool, kv_heads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In bfloat16 by products of matrices."""

    def ours(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend(*(x.bfloat16() if autocast else x for x in (q, k, v)), 0.0)

    def theirs(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k, v = (x.repeat_interleave(4 // kv_heads, dim=1) for x in (k, v))
        scores = (q.transpose(1, 2) @ k.mT / 8**0.5).masked_fill(torch.ones(9, 9).triu(1) > 0, -torch.inf)
        return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)

    q, k, v = random(2, 9, 4, 8), random(2, kv_heads, 9, 8, seed=1), random(2, kv_heads, 9, 8, seed=2)
    called = []
    products = kernels._attend_by_products
    monkeypatch.setattr(kernels, "_attend_by_products", lambda *a: called.append(0) or products(*a))
    assert_same(ours, theirs, q, k, v, autocast=autocast)
    assert bool(called) == autocast


def test_attention_forgets_weights_by_chance_and_keeps_the_mean() -> None:
    q, k, v = random(1, 40, 2, 8), random(1, 2, 40, 8, seed=1), random(1, 2, 40, 8, seed=2)
    torch.manual_seed(0)
    mean = torch.stack([attend(q, k, v, 0.3) for _ in range(400)]).mean(0)
    assert not torch.allclose(attend(q, k, v, 0.3), attend(q, k, v, 0.0), atol=0.1)
    torch.testing.assert_close(mean, attend(q, k, v, 0.0), atol=0.3, rtol=0)


@pytest.mark.parametrize("share", [0.1, 0.37])
def test_dropout(share: float) -> None:
    torch.manual_seed(0)
    x = torch.ones(300, 1001, requires_grad=True)
    y = dropout(x, share)
    assert (y == 0).float().mean().item() == pytest.approx(share, abs=0.005)
    assert y.mean().item() == pytest.approx(1, abs=0.01)
    kept = (y != 0).float()
    for axis in (0, 1):  # no row or column is better off
        assert (kept.mean(axis) - (1 - share)).abs().max() < 6 * (share * (1 - share) / kept.shape[axis]) ** 0.5
    assert torch.equal(torch.autograd.grad(y.sum(), x)[0], y)
    torch.manual_seed(0)
    assert torch.equal(dropout(x, share), y) and not torch.equal(dropout(x, share), y)
    assert torch.equal(dropout(x, 0.0), x)


@pytest.mark.parametrize("autocast", AUTOCAST)
def test_loss(autocast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "LOSS_ROWS", 7)
    x, weight = random(30, 16), random(50, 16, seed=1)
    targets = torch.randint(0, 50, (30,), generator=torch.Generator().manual_seed(2))
    targets[[0, 3, 28]] = -100

    def ours(x: Tensor, weight: Tensor) -> Tensor:
        loss = next_token_loss(x, weight, targets)
        assert loss.dtype == torch.float32
        return loss

    def theirs(x: Tensor, weight: Tensor) -> Tensor:
        return F.cross_entropy(x @ weight.T, targets)

    assert_same(ours, theirs, x, weight, autocast=autocast)
    with torch.no_grad():
        torch.testing.assert_close(ours(x, weight), theirs(x, weight))
