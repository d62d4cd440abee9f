"""Muon for the matrices inside the layers, AdamW for everything else.

Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) takes the momentum of a matrix's gradient and makes it
nearly orthogonal before it is applied, so that rare directions learn as fast as frequent ones.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from midigpt.devices import fast_bf16

# Of the quintic Newton-Schulz iteration: the published ones, chosen for a steep slope at zero.
COEFFICIENTS = 3.4445, -4.7750, 2.0315
ITERATIONS = 5
EPS = 1e-7
UPDATE_RMS = 0.2  # of an update at a learning rate of 1, as AdamW's: Liu et al. 2025, arXiv 2502.16982
GRAD_CLIP = 1.0  # the largest norm of the gradient
ADAM_BETAS = 0.9, 0.99  # nanoGPT's for small batches


def orthogonalize(matrices: Tensor, dtype: torch.dtype) -> Tensor:
    """Matrices (..., M, N) with all singular values moved to about 1 (0.7 to 1.2), in `dtype`."""
    a, b, c = COEFFICIENTS
    x = matrices.to(dtype)
    is_tall = x.shape[-2] > x.shape[-1]
    if is_tall:  # the products below are of the smaller side
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + EPS)  # so that no singular value is above 1
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if is_tall else x


class Muon(torch.optim.Optimizer):
    """Matrices (M, N) of one shape are orthogonalised in one batch.

    An update has the root mean square UPDATE_RMS times the learning rate, whatever the shape.
    """

    def __init__(self, params: Iterable[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for weight in group["params"]:
                if weight.grad is not None:
                    by_shape[weight.shape].append(weight)
            for shape, weights in by_shape.items():
                self._step(group, max(shape), weights)

    def _step(self, group: dict[str, Any], longest: int, weights: list[Tensor]) -> None:
        for weight in weights:
            if not self.state[weight]:
                self.state[weight]["momentum"] = torch.zeros_like(weight)
        gradients = [weight.grad for weight in weights]
        momenta = [self.state[weight]["momentum"] for weight in weights]
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        ahead = torch._foreach_lerp(gradients, momenta, group["momentum"])  # Nesterov's
        dtype = torch.bfloat16 if fast_bf16(str(weights[0].device)) else torch.float32
        updates = orthogonalize(torch.stack(ahead), dtype).to(weights[0].dtype).unbind()
        torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(weights, updates, alpha=-group["lr"] * UPDATE_RMS * longest**0.5)


def make_optimizers(
    model: nn.Module, learning_rate: float, adam_learning_rate: float, weight_decay: float
) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers; AdamW for embeddings, norms and biases.

    Only matrices decay. Each group remembers its highest learning rate as "peak", for a schedule to scale.
    """
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    weights = list(model.parameters())
    matrices = [weight for weight in weights if weight.ndim == 2 and id(weight) not in embeddings]
    tables = [weight for weight in weights if weight.ndim == 2 and id(weight) in embeddings]
    vectors = [weight for weight in weights if weight.ndim < 2]
    adam_groups = [{"params": tables, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizers = [
        Muon(matrices, learning_rate, weight_decay=weight_decay),
        torch.optim.AdamW(adam_groups, adam_learning_rate, betas=ADAM_BETAS, fused=True),
    ]
    for group in groups(optimizers):
        group["peak"] = group["lr"]
    return optimizers


def update(
    model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], average: nn.Module, averaging: float
) -> None:
    """Apply the gradient and forget it; the weights of `average` move towards the new ones by a share `averaging`."""
    torch.nn.utils.clip_grad_norm_(model.parameters(), GRAD_CLIP)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    with torch.no_grad():
        torch._foreach_lerp_([*average.parameters()], [*model.parameters()], averaging)


def groups(optimizers: Sequence[torch.optim.Optimizer]) -> list[dict[str, Any]]:
    return [group for optimizer in optimizers for group in optimizer.param_groups]


def optimizer_state(model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """All that the optimizers remember, as tensors named KIND.PARAMETER."""
    names = {weight: name for name, weight in model.named_parameters()}
    return {
        f"{kind}.{names[weight]}": tensor
        for optimizer in optimizers
        for weight, state in optimizer.state.items()
        for kind, tensor in state.items()
    }


def restore_optimizer_state(
    model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], tensors: dict[str, Tensor]
) -> None:
    """Undo optimizer_state."""
    owner = {
        weight: optimizer for optimizer in optimizers for group in optimizer.param_groups for weight in group["params"]
    }
    weights = dict(model.named_parameters())
    for name, tensor in tensors.items():
        kind, _, parameter = name.partition(".")
        weight = weights[parameter]
        # fused AdamW counts its steps on the device of the weight
        owner[weight].state[weight][kind] = tensor.to(weight.device)
