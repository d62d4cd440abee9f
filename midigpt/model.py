"""The model: a GPT of exactly the Qwen3 dense shape, so that a checkpoint opens in transformers as it is.

RMSNorm before each block, rotary positions, normalised queries and keys, SwiGLU, no biases, the output
matrix tied to the input's. Parameter names are those of transformers' Qwen3ForCausalLM.

Sources: Qwen3 technical report (arXiv 2505.09388); RMSNorm (arXiv 1910.07467); rotary positions (arXiv
2104.09864); SwiGLU (arXiv 2002.05202); QK-norm (arXiv 2010.04245).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

INIT_STD = 0.02  # of weights at the start, as in GPT-2
NORM_EPS = 1e-6


@dataclass(frozen=True)
class ModelConfig:
    """The model's shape."""

    vocab_size: int
    block_size: int  # tokens it was trained to see at once
    n_layer: int
    n_head: int
    n_embd: int
    n_hidden: int  # width of the feed-forward layer
    rope_theta: float = 10_000.0

    @property
    def head_dim(self) -> int:
        return self.n_embd // self.n_head


class Cache:
    """Keys and values of the tokens read so far, in tensors of fixed size."""

    def __init__(self, config: ModelConfig, batch_size: int, device: torch.device) -> None:
        shape = config.n_layer, batch_size, config.n_head, config.block_size, config.head_dim
        self.keys = torch.zeros(shape, device=device)  # (L, B, H, S, D)
        self.values = torch.zeros(shape, device=device)
        self.length = 0  # tokens in it

    def add(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store (B, H, T, D) behind what is there; all of the layer's, (B, H, length + T, D)."""
        end = self.length + keys.shape[2]
        self.keys[layer, :, :, self.length : end] = keys
        self.values[layer, :, :, self.length : end] = values
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]


def rotary_angles(positions: Tensor, config: ModelConfig) -> tuple[Tensor, Tensor]:
    """Cosine and sine, each (B, 1, T, D), for positions of shape (B, T) or (1, T)."""
    frequency = config.rope_theta ** -(torch.arange(0, config.head_dim, 2, device=positions.device) / config.head_dim)
    angle = positions[:, None, :, None] * frequency  # (B, 1, T, D / 2)
    angle = torch.cat([angle, angle], dim=-1)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (i, i + D / 2) of x (B, H, T, D) by its angle."""
    left, right = x.chunk(2, dim=-1)
    return (x * cos + torch.cat([-right, left], dim=-1) * sin).to(x.dtype)


class RMSNorm(nn.RMSNorm):
    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)  # one dtype: one fused kernel


class Attention(nn.Module):
    def __init__(self, config: ModelConfig, layer: int, dropout: float) -> None:
        super().__init__()
        self.config, self.layer, self.dropout = config, layer, dropout
        width = config.n_head * config.head_dim
        self.q_proj = nn.Linear(config.n_embd, width, bias=False)
        self.k_proj = nn.Linear(config.n_embd, width, bias=False)
        self.v_proj = nn.Linear(config.n_embd, width, bias=False)
        self.o_proj = nn.Linear(width, config.n_embd, bias=False)
        self.q_norm = RMSNorm(config.head_dim, NORM_EPS)
        self.k_norm = RMSNorm(config.head_dim, NORM_EPS)

    def forward(self, x: Tensor, angles: tuple[Tensor, Tensor], cache: Cache | None) -> Tensor:
        B, T, _ = x.shape
        heads = B, T, self.config.n_head, self.config.head_dim
        q = rotate(self.q_norm(self.q_proj(x).view(heads)).transpose(1, 2), *angles)  # (B, H, T, D)
        k = rotate(self.k_norm(self.k_proj(x).view(heads)).transpose(1, 2), *angles)
        v = self.v_proj(x).view(heads).transpose(1, 2)
        if cache is not None:
            k, v = cache.add(self.layer, k, v)
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=T > 1)
        return self.o_proj(y.transpose(1, 2).reshape(B, T, -1))


class FeedForward(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.n_embd, config.n_hidden, bias=False)
        self.up_proj = nn.Linear(config.n_embd, config.n_hidden, bias=False)
        self.down_proj = nn.Linear(config.n_hidden, config.n_embd, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, config: ModelConfig, layer: int, dropout: float) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.n_embd, NORM_EPS)
        self.self_attn = Attention(config, layer, dropout)
        self.post_attention_layernorm = RMSNorm(config.n_embd, NORM_EPS)
        self.mlp = FeedForward(config)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, angles: tuple[Tensor, Tensor], cache: Cache | None) -> Tensor:
        x = x + self.dropout(self.self_attn(self.input_layernorm(x), angles, cache))
        return x + self.dropout(self.mlp(self.post_attention_layernorm(x)))


class GPT(nn.Module):
    """Tokens to logits. Dropout, a matter of training alone, is no part of the shape."""

    def __init__(self, config: ModelConfig, dropout: float = 0.0) -> None:
        super().__init__()
        self.config = config
        self.model = nn.ModuleDict(
            {
                "embed_tokens": nn.Embedding(config.vocab_size, config.n_embd),
                "layers": nn.ModuleList(Layer(config, layer, dropout) for layer in range(config.n_layer)),
                "norm": RMSNorm(config.n_embd, NORM_EPS),
            }
        )
        self.dropout = nn.Dropout(dropout)
        for name, weight in self.named_parameters():
            if weight.ndim == 2:
                # What is added to the residual stream starts smaller the deeper the model is, as in GPT-2.
                is_residual = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(weight, std=INIT_STD / (2 * config.n_layer) ** 0.5 if is_residual else INIT_STD)

    def forward(self, tokens: Tensor, positions: Tensor | None = None, cache: Cache | None = None) -> Tensor:
        """Logits (B, T, V) of the token after each of tokens (B, T).

        `positions`, (B, T) or (1, T), are 0, 1, 2, ... where they are not given. With a cache, tokens follow
        those in it: many into an empty one, then one at a time.
        """
        start = cache.length if cache else 0
        T = tokens.shape[1]
        assert start == 0 or T == 1, "behind a filled cache the mask would be wrong"
        if positions is None:
            positions = torch.arange(start, start + T, device=tokens.device)[None]
        angles = rotary_angles(positions, self.config)
        x = self.dropout(self.model["embed_tokens"](tokens))  # (B, T, C)
        for layer in self.model["layers"]:
            x = layer(x, angles, cache)
        if cache:
            cache.length += T
        return F.linear(self.model["norm"](x), self.model["embed_tokens"].weight)

    def parameter_count(self) -> int:
        return sum(weight.numel() for weight in self.parameters())


def pick_device() -> str:
    """cuda, mps or cpu: the fastest there is."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def fast_bf16(device: str) -> bool:
    """Whether bfloat16 matrix products are faster than float32 there: any recent GPU, CPUs with the instructions."""
    if device.startswith("cuda"):
        return torch.cuda.is_bf16_supported()
    abilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()  # of torch 2.13 and later
    return device == "cpu" and (abilities.get("avx512_bf16", False) or abilities.get("amx_bf16", False))
