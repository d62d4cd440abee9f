"""The model, in two shapes: exactly the Qwen3 dense one (the default) or exactly GPT-2's.

Parameters are named and laid out as in transformers' Qwen3ForCausalLM and GPT2LMHeadModel, so that a checkpoint
opens there as it is.

qwen3: RMSNorm before each block, rotary positions, normalised queries and keys, grouped heads, SwiGLU, no biases.
  Positions are an argument; they count musical time (midigpt/positions.py), or tokens.
gpt2: LayerNorm before each block, learned positions, GELU, biases.
In both the output matrix is tied to the input's.

Sources: Qwen3 technical report (arXiv 2505.09388); RMSNorm (arXiv 1910.07467); rotary positions (arXiv
2104.09864); grouped heads (arXiv 2305.13245); SwiGLU (arXiv 2002.05202); QK-norm (arXiv 2010.04245); GPT-2
(Radford et al. 2019, "Language Models are Unsupervised Multitask Learners").
"""

import math
from dataclasses import asdict, dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from midigpt.kernels import attend, compute_dtype, dropout, next_token_loss, rms_norm
from midigpt.settings import Counted, Shape

INIT_STD = 0.02  # of weights at the start, as in GPT-2
RMS_NORM_EPS = 1e-6
LAYER_NORM_EPS = 1e-5

Angles = tuple[Tensor, Tensor]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The model's shape."""

    type: Literal["qwen3", "gpt2"] = "qwen3"
    vocab_size: int
    block_size: int  # tokens it was trained to see at once
    n_layer: int
    n_head: int  # n_embd is a multiple of it; in qwen3, of twice of it
    n_kv_head: int  # heads of keys and values, each for n_head / n_kv_head of queries; in gpt2 as many as n_head
    n_embd: int
    n_hidden: int  # width of the feed-forward layer
    rope_theta: float = 10_000.0  # of qwen3
    positions: Counted = "time"  # what its positions count; in gpt2 always tokens

    def __post_init__(self) -> None:
        if self.type == "gpt2":
            object.__setattr__(self, "positions", "index")  # it has as many as it has learned

    @property
    def head_dim(self) -> int:
        return self.n_embd // self.n_head


def model_config(shape: Shape, vocab_size: int) -> ModelConfig:
    """The model that the settings of a run describe, with what they leave open."""
    # In qwen3 the feed-forward layer has three matrices, in gpt2 two.
    n_hidden = 4 * shape.n_embd if shape.type == "gpt2" else math.ceil(shape.n_embd * 8 / 3 / 32) * 32
    sizes = asdict(shape) | {"n_kv_head": shape.n_kv_head or shape.n_head, "n_hidden": shape.n_hidden or n_hidden}
    return ModelConfig(**sizes, vocab_size=vocab_size)


class Cache:
    """Keys and values of the tokens read so far, in tensors of fixed size."""

    def __init__(self, config: ModelConfig, batch_size: int, device: torch.device, dtype: torch.dtype) -> None:
        shape = config.n_layer, batch_size, config.n_kv_head, config.block_size, config.head_dim
        self.keys = torch.zeros(shape, device=device, dtype=dtype)  # (L, B, K, S, D)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.length = 0  # tokens in it

    def fill(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """Store the first T tokens' (B, K, T, D), or (1, K, T, D) for all rows alike."""
        self.keys[layer, :, :, : keys.shape[2]] = keys
        self.values[layer, :, :, : keys.shape[2]] = values


# --- qwen3 -----------------------------------------------------------------------------------------------


def rotary_angles(positions: Tensor, config: ModelConfig, dtype: torch.dtype) -> Angles:
    """Cosine and sine, each (B, T, 1, D), for positions of shape (B, T) or (1, T). The first half of sin is negated."""
    angle = positions[:, :, None, None] * rotary_frequencies(config, positions.device)  # (B, T, 1, D)
    return angle.cos().to(dtype), angle.sin().to(dtype)


def rotary_frequencies(config: ModelConfig, device: torch.device) -> Tensor:
    """Radians a position, (D,), of each pair (i, i + D / 2); negated for i."""
    frequency = config.rope_theta ** -(torch.arange(0, config.head_dim, 2, device=device) / config.head_dim)
    return torch.cat([-frequency, frequency])


def rotate(x: Tensor, angles: Angles) -> Tensor:
    """Turn each pair (i, i + D / 2) of x (B, T, H, D) by its angle."""
    cos, sin = angles
    left, right = x.chunk(2, dim=-1)
    return torch.addcmul(x * cos, torch.cat([right, left], dim=-1), sin)


class RMSNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, RMS_NORM_EPS)


class Dropout(nn.Module):
    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.share) if self.training else x


class Qwen3Attention(nn.Module):
    def __init__(self, config: ModelConfig, layer: int, dropout: float) -> None:
        super().__init__()
        self.config, self.layer, self.dropout = config, layer, dropout
        width, kv_width = config.n_head * config.head_dim, config.n_kv_head * config.head_dim
        self.q_proj = nn.Linear(config.n_embd, width, bias=False)
        self.k_proj = nn.Linear(config.n_embd, kv_width, bias=False)
        self.v_proj = nn.Linear(config.n_embd, kv_width, bias=False)
        self.o_proj = nn.Linear(width, config.n_embd, bias=False)
        self.q_norm = RMSNorm(config.head_dim)
        self.k_norm = RMSNorm(config.head_dim)

    def forward(self, x: Tensor, angles: Angles, cache: Cache | None) -> Tensor:
        heads = *x.shape[:2], -1, self.config.head_dim
        q = rotate(self.q_norm(self.q_proj(x).view(heads)), angles)  # (B, T, H, D)
        k = rotate(self.k_norm(self.k_proj(x).view(heads)), angles).transpose(1, 2)  # (B, K, T, D)
        v = self.v_proj(x).view(heads).transpose(1, 2)
        if cache is not None:
            cache.fill(self.layer, k, v)
        return self.o_proj(attend(q, k, v, self.dropout if self.training else 0.0))


class SwiGLU(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.n_embd, config.n_hidden, bias=False)
        self.up_proj = nn.Linear(config.n_embd, config.n_hidden, bias=False)
        self.down_proj = nn.Linear(config.n_hidden, config.n_embd, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Qwen3Layer(nn.Module):
    def __init__(self, config: ModelConfig, layer: int, dropout: float) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.n_embd)
        self.self_attn = Qwen3Attention(config, layer, dropout)
        self.post_attention_layernorm = RMSNorm(config.n_embd)
        self.mlp = SwiGLU(config)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, angles: Angles, cache: Cache | None) -> Tensor:
        x = x + self.dropout(self.self_attn(self.input_layernorm(x), angles, cache))
        return x + self.dropout(self.mlp(self.post_attention_layernorm(x)))


# --- gpt2 ------------------------------------------------------------------------------------------------


class Conv1D(nn.Module):
    """A linear layer whose weights are (in, out), as GPT-2 has them."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_in, n_out))
        self.bias = nn.Parameter(torch.zeros(n_out))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.t(), self.bias)


class GPT2Attention(nn.Module):
    def __init__(self, config: ModelConfig, layer: int, dropout: float) -> None:
        super().__init__()
        self.config, self.layer, self.dropout = config, layer, dropout
        self.c_attn = Conv1D(config.n_embd, 3 * config.n_embd)
        self.c_proj = Conv1D(config.n_embd, config.n_embd)

    def forward(self, x: Tensor, cache: Cache | None) -> Tensor:
        heads = *x.shape[:2], self.config.n_head, self.config.head_dim
        q, k, v = (part.view(heads) for part in self.c_attn(x).chunk(3, dim=-1))  # (B, T, H, D)
        k, v = k.transpose(1, 2), v.transpose(1, 2)
        if cache is not None:
            cache.fill(self.layer, k, v)
        return self.c_proj(attend(q, k, v, self.dropout if self.training else 0.0))


class MLP(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.c_fc = Conv1D(config.n_embd, config.n_hidden)
        self.c_proj = Conv1D(config.n_hidden, config.n_embd)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))


class GPT2Layer(nn.Module):
    def __init__(self, config: ModelConfig, layer: int, dropout: float) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, LAYER_NORM_EPS)
        self.attn = GPT2Attention(config, layer, dropout)
        self.ln_2 = nn.LayerNorm(config.n_embd, LAYER_NORM_EPS)
        self.mlp = MLP(config)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, cache: Cache | None) -> Tensor:
        x = x + self.dropout(self.attn(self.ln_1(x), cache))
        return x + self.dropout(self.mlp(self.ln_2(x)))


# --- both ------------------------------------------------------------------------------------------------


def _embedding(rows: int, width: int) -> nn.Embedding:
    """An embedding of no values yet: drawing them on the meta device would load a compiler first, for a second."""
    return nn.Embedding.from_pretrained(torch.empty(rows, width), freeze=False)


class GPT(nn.Module):
    """Tokens to logits. Dropout, a matter of training alone, is no part of the shape."""

    def __init__(self, config: ModelConfig, dropout: float = 0.0) -> None:
        super().__init__()
        self.config = config
        self.dropout = Dropout(dropout)
        embedding = _embedding(config.vocab_size, config.n_embd)
        if config.type == "gpt2":
            self.transformer = nn.ModuleDict(
                {
                    "wte": embedding,
                    "wpe": _embedding(config.block_size, config.n_embd),
                    "h": nn.ModuleList(GPT2Layer(config, layer, dropout) for layer in range(config.n_layer)),
                    "ln_f": nn.LayerNorm(config.n_embd, LAYER_NORM_EPS),
                }
            )
        else:
            self.model = nn.ModuleDict(
                {
                    "embed_tokens": embedding,
                    "layers": nn.ModuleList(Qwen3Layer(config, layer, dropout) for layer in range(config.n_layer)),
                    "norm": RMSNorm(config.n_embd),
                }
            )

    def forward(
        self, tokens: Tensor, positions: Tensor, cache: Cache | None = None, targets: Tensor | None = None
    ) -> Tensor:
        """Logits (B, T, V) of the token after each of tokens (B, T) at positions (B, T) or (1, T).

        gpt2 knows positions below block_size alone. With a cache, their keys and values are kept there, and only the
        last token's logits are given, (B, 1, V). With targets (B, T), their mean loss in nats instead, those of -100
        not counted.
        """
        if self.config.type == "gpt2":
            embedding, norm = self.transformer["wte"], self.transformer["ln_f"]
            x = self.dropout(embedding(tokens) + self.transformer["wpe"](positions))  # (B, T, C)
            for layer in self.transformer["h"]:
                x = layer(x, cache)
        else:
            embedding, norm = self.model["embed_tokens"], self.model["norm"]
            x = self.dropout(embedding(tokens))  # (B, T, C)
            angles = rotary_angles(positions, self.config, compute_dtype(x))
            for layer in self.model["layers"]:
                x = layer(x, angles, cache)
        if cache is not None:
            cache.length = tokens.shape[1]
            x = x[:, -1:]
        if targets is not None:
            return next_token_loss(norm(x).flatten(0, 1), embedding.weight, targets.flatten())
        return F.linear(norm(x), embedding.weight)

    def parameter_count(self) -> int:
        return sum(weight.numel() for weight in self.parameters())


def build_model(config: ModelConfig, dropout: float = 0.0) -> GPT:
    """A model with the random weights that training begins with, drawn as GPT-2's."""
    model = GPT(config, dropout)
    for name, weight in model.named_parameters():
        if weight.ndim == 2:
            # What is added to the residual stream starts smaller the deeper the model is.
            is_residual = name.endswith(("o_proj.weight", "down_proj.weight", "c_proj.weight"))
            nn.init.normal_(weight, std=INIT_STD / (2 * config.n_layer) ** 0.5 if is_residual else INIT_STD)
    return model


def flops_per_token(config: ModelConfig) -> float:
    """Operations of a training step, forward and backward, for a token of a full block.

    6 N + 12 L C T as in PaLM's appendix B (arXiv 2204.02311): N parameters without position embeddings, L layers
    C wide, T tokens a block.
    """
    with torch.device("meta"):
        parameters = GPT(config).parameter_count()
    if config.type == "gpt2":
        parameters -= config.block_size * config.n_embd
    return 6.0 * parameters + 12.0 * config.n_layer * config.n_embd * config.block_size


def set_dropout(model: nn.Module, share: float) -> None:
    """Drop this share of activations in training."""
    for module in model.modules():
        if isinstance(module, Dropout):
            module.share = share
        elif isinstance(module, Qwen3Attention | GPT2Attention):
            module.dropout = share
