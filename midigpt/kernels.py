"""Parts of the model that PyTorch does well on a GPU and slowly on a CPU: there they are done in other ways.

Each gives, up to rounding, what the operation of PyTorch gives that stands for it on other devices.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORED = -100  # a target that isn't one, as in F.cross_entropy
LOSS_ROWS = 1024  # of logits at a time
LONGEST_PRODUCTS = 512  # tokens; from there on the fused kernel of attention is faster on a CPU in any case


def compute_dtype(x: Tensor) -> torch.dtype:
    """What matrix products are made in: autocast's type where it is on."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


# --- dropout ---------------------------------------------------------------------------------------------


def dropout(x: Tensor, share: float) -> Tensor:
    """Each number is zero by chance, this share of them; the others are scaled to keep the mean.

    A CPU spends its time on drawing: 16 bits are enough for a number.
    """
    if not share or x.device.type != "cpu":
        return F.dropout(x, share)
    dropped = round(share * 2**16)
    random = torch.randint(-(2**63), 2**63 - 1, (-(-x.numel() // 4),))
    kept = random.view(torch.int16)[: x.numel()].view(x.shape) >= dropped - 2**15
    return x * torch.where(kept, x.new_tensor(2**16 / (2**16 - dropped)), x.new_tensor(0.0))


# --- attention -------------------------------------------------------------------------------------------


def attend(q: Tensor, k: Tensor, v: Tensor, dropout_share: float) -> Tensor:
    """Causal attention (B, T, H * D) of queries (B, T, H, D) to keys and values (B, K, T, D)."""
    B, T, H, D = q.shape
    q, k, v = q.transpose(1, 2), _repeat_heads(k, H), _repeat_heads(v, H)
    by_products = dropout_share or (q.dtype == torch.bfloat16 and T <= LONGEST_PRODUCTS)
    if q.device.type == "cpu" and q.requires_grad and by_products:
        y = _attend_by_products(q, k, v, dropout_share)
    else:
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout_share, is_causal=True)
    return y.transpose(1, 2).reshape(B, T, H * D)


def _attend_by_products(q: Tensor, k: Tensor, v: Tensor, dropout_share: float) -> Tensor:
    """The same, all of (B, H, T, D), by plain matrix products.

    On a CPU, to go back through: the fused kernel has no dropout there, and in bfloat16 its way back takes two to
    six times as long as this one.
    """
    B, H, T, D = q.shape
    q, k, v = (x.reshape(B * H, T, D) for x in (q, k, v))
    later = torch.full((T, T), -torch.inf, dtype=q.dtype).triu(1)
    weights = torch.baddbmm(later, q, k.mT, alpha=D**-0.5).softmax(-1)  # (B * H, T, T)
    return (dropout(weights, dropout_share) @ v).view(B, H, T, D)


def _repeat_heads(x: Tensor, heads: int) -> Tensor:
    """Each of the heads of keys or values (B, K, S, D) as often as it has queries: (B, heads, S, D)."""
    return x if x.shape[1] == heads else x.repeat_interleave(heads // x.shape[1], dim=1)


# --- norm ------------------------------------------------------------------------------------------------


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x (..., D) over its root mean square, times weight (D,); in the type of matrix products."""
    dtype = compute_dtype(x)
    if x.device.type == "cpu" and torch.is_grad_enabled():
        return _RMSNorm.apply(x, weight, eps, dtype)
    return F.rms_norm(x, weight.shape, weight.to(x.dtype), eps).to(dtype)  # one type: one fused kernel


class _RMSNorm(torch.autograd.Function):
    """F.rms_norm, which on a CPU is nine operations forward and twice as many back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        scale = (length.square() / x.shape[-1] + eps).rsqrt()
        normed = (x * scale).to(dtype)
        ctx.save_for_backward(normed, scale, weight)
        ctx.dtype = x.dtype
        return normed * weight.to(dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        normed, scale, weight = ctx.saved_tensors
        weight = weight.to(grad.dtype)
        by_weight = (grad * normed).flatten(0, -2)
        along = (by_weight @ weight).view(scale.shape) / -weight.numel()
        by_x = torch.addcmul(grad * weight, normed, along).mul_(scale.to(grad.dtype))
        return by_x.to(ctx.dtype), by_weight.sum(0, dtype=torch.float32), None, None


# --- loss ------------------------------------------------------------------------------------------------


def next_token_loss(x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Mean nats of the targets (N,), but those that are IGNORED, under the logits x (N, C) times weight (V, C).

    The softmax is in float32 whatever the products are made in.
    """
    if x.device.type == "cpu" and torch.is_grad_enabled():
        return _NextTokenLoss.apply(x, weight, targets, compute_dtype(x))
    return F.cross_entropy(F.linear(x, weight).float(), targets, ignore_index=IGNORED)


class _NextTokenLoss(torch.autograd.Function):
    """Loss and gradients in one go, over some rows at a time, so that all logits are never there at once."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype) -> Tensor:
        inputs, matrix = x.to(dtype), weight.to(dtype)
        share = (targets != IGNORED).float()
        share /= share.sum()  # of each target in the mean
        loss = torch.zeros((), device=x.device)
        by_x, by_weight = [], torch.zeros_like(weight)
        for rows, targets_of_rows, share_of_rows in zip(
            inputs.split(LOSS_ROWS), targets.split(LOSS_ROWS), share.split(LOSS_ROWS), strict=True
        ):
            target, part = targets_of_rows.clamp(min=0)[:, None], share_of_rows[:, None]
            logs = F.linear(rows, matrix).float().log_softmax(-1)  # (rows, V)
            loss -= (logs.gather(1, target) * part).sum()
            by_logits = logs.exp_().mul_(part).scatter_add_(1, target, -part).to(dtype)
            by_x.append(by_logits @ matrix)
            by_weight += by_logits.mT @ rows
        ctx.save_for_backward(torch.cat(by_x).to(x.dtype), by_weight)
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        by_x, by_weight = ctx.saved_tensors
        return by_x * grad, by_weight * grad, None, None
