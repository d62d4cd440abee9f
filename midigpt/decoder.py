"""The model as a sampler runs it: many tokens are read at once, then one at a time with keys and values kept.

Reading is the model's own forward pass. A step repeats its arithmetic on weights prepared for products with few
rows, which take as long as their weights take to come from memory: bfloat16 on a GPU, eight bits on a CPU (one
scale a row, as in LLM.int8(), arXiv 2208.07339, without its outliers).
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from midigpt.devices import autocast, fast_bf16
from midigpt.model import GPT, RMS_NORM_EPS, Angles, Cache, Conv1D, RMSNorm, rotary_frequencies, rotate

Weights = Literal["float32", "bfloat16", "int8"]
Operation = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class _Layer:
    """What a step does in one layer, each from (B, in) to (B, out)."""

    before_attention: Operation
    qkv: Operation
    q_norm: Operation
    k_norm: Operation
    out: Operation
    before_mlp: Operation
    mlp: Operation


class Prepared:
    """A model with its weights as a step wants them. Preparing takes as long as writing some hundred tokens."""

    def __init__(self, model: GPT, weights: Weights | None = None) -> None:
        self.model = model
        self.device = next(model.parameters()).device
        self.weights = weights or best_weights(self.device.type)
        self.dtype = torch.float32 if self.weights == "float32" else torch.bfloat16
        config = model.config
        pack = partial(_pack, weights=self.weights, dtype=self.dtype)
        if config.type == "gpt2":
            self.embedding = model.transformer["wte"].weight.detach().to(self.dtype)
            self.place = model.transformer["wpe"].weight.detach().to(self.dtype)
            self.layers = [_gpt2_layer(layer, pack) for layer in model.transformer["h"]]
            self.norm = pack(model.transformer["ln_f"])
            self.head = pack(model.transformer["wte"])
        else:
            self.embedding = model.model["embed_tokens"].weight.detach().to(self.dtype)
            self.frequencies = rotary_frequencies(config, self.device)
            self.layers = [_qwen3_layer(layer, pack) for layer in model.model["layers"]]
            self.norm = pack(model.model["norm"])
            self.head = pack(model.model["embed_tokens"])


class Decoder:
    """A batch of documents as a model has read them, all of one length.

    Of positions a model that counts tokens takes no notice: it is at home in the cache's order.
    With `fixed_shapes` a step reads the first `span` tokens of the cache with a mask, knows its place from a
    tensor, and never waits for the device: so it can be captured as a CUDA graph.
    """

    def __init__(self, prepared: Prepared, batch_size: int, fixed_shapes: bool | None = None) -> None:
        self.prepared, self.batch_size = prepared, batch_size
        self.model, self.device = prepared.model, prepared.device
        self.fixed_shapes = self.device.type == "cuda" if fixed_shapes is None else fixed_shapes
        config = self.model.config
        self.span = config.block_size
        self.cache = Cache(config, batch_size, self.device, prepared.dtype)
        self.index = torch.zeros(1, dtype=torch.long, device=self.device)  # of the next token, in the cache

    @property
    def room(self) -> int:
        """Tokens that can still be read."""
        return self.model.config.block_size - self.cache.length

    @torch.inference_mode()
    def read(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Logits (B, V) behind documents (B, T), or one (1, T) for all, which are read from the beginning.

        `positions`, of the same shape, are those of midigpt/positions.py.
        """
        T = tokens.shape[1]
        if self.model.config.positions == "index":
            positions = torch.arange(T, device=self.device)[None]
        with nullcontext() if self.prepared.weights == "float32" else autocast(str(self.device)):
            logits = self.model(tokens, positions, self.cache)[:, -1]
        self.index.fill_(T)
        return logits.float().expand(self.batch_size, -1)

    @torch.inference_mode()
    def step(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Logits (B, V) behind one more token of each document, (B,), at these positions, (B,)."""
        model, angles, mask = self.prepared, None, None
        if self.model.config.positions == "index":
            positions = self.index
        x = F.embedding(tokens, model.embedding)  # (B, C)
        if self.model.config.type == "gpt2":
            x = x + F.embedding(positions, model.place)
        else:
            angle = (positions[:, None] * model.frequencies)[:, None]  # (B, 1, D)
            angles = angle.cos().to(model.dtype), angle.sin().to(model.dtype)
        if self.fixed_shapes:
            mask = (torch.arange(self.span, device=self.device) <= self.index)[None, None, None]
        for number, layer in enumerate(model.layers):
            qkv = layer.qkv(layer.before_attention(x))
            x = x + layer.out(self._attend(number, layer, qkv, angles, mask))
            x = x + layer.mlp(layer.before_mlp(x))
        self.cache.length += 1
        self.index += 1
        return model.head(model.norm(x)).float()

    def _attend(self, number: int, layer: _Layer, qkv: Tensor, angles: Angles | None, mask: Tensor | None) -> Tensor:
        """Attention (B, C) of one token's queries to the keys and values kept and its own."""
        config, B = self.model.config, self.batch_size
        heads, kv_heads, D = config.n_head, config.n_kv_head, config.head_dim
        q, k, v = qkv.view(B, heads + 2 * kv_heads, D).split([heads, kv_heads, kv_heads], dim=1)
        if angles:
            q, k = rotate(layer.q_norm(q), angles), rotate(layer.k_norm(k), angles)
        keys, values = self.cache.keys[number], self.cache.values[number]  # (B, K, S, D)
        q = q.reshape(B, kv_heads, heads // kv_heads, D)  # those that share keys as if they were tokens
        if mask is not None:
            keys.index_copy_(2, self.index, k[:, :, None])
            values.index_copy_(2, self.index, v[:, :, None])
            y = F.scaled_dot_product_attention(q, keys[:, :, : self.span], values[:, :, : self.span], attn_mask=mask)
        else:
            end = self.cache.length + 1
            keys[:, :, end - 1], values[:, :, end - 1] = k, v
            y = F.scaled_dot_product_attention(q, keys[:, :, :end], values[:, :, :end])
        return y.reshape(B, heads * D)


def best_weights(device: str) -> Weights:
    """The fastest on a kind of device that were measured (bench/sample.py)."""
    if device == "cpu" and hasattr(torch, "_weight_int8pack_mm"):
        return "int8"
    return "bfloat16" if fast_bf16(device) else "float32"


def _gpt2_layer(layer: nn.Module, pack: Callable[..., Operation]) -> _Layer:
    up, down = pack(layer.mlp.c_fc), pack(layer.mlp.c_proj)
    return _Layer(
        before_attention=pack(layer.ln_1),
        qkv=pack(layer.attn.c_attn),
        q_norm=nn.Identity(),
        k_norm=nn.Identity(),
        out=pack(layer.attn.c_proj),
        before_mlp=pack(layer.ln_2),
        mlp=lambda x: down(F.gelu(up(x), approximate="tanh")),
    )


def _qwen3_layer(layer: nn.Module, pack: Callable[..., Operation]) -> _Layer:
    attention, mlp = layer.self_attn, layer.mlp
    gate_up, down = pack(mlp.gate_proj, mlp.up_proj), pack(mlp.down_proj)

    def swiglu(x: Tensor) -> Tensor:
        gate, up = gate_up(x).chunk(2, dim=-1)
        return down(F.silu(gate) * up)

    return _Layer(
        before_attention=pack(layer.input_layernorm),
        qkv=pack(attention.q_proj, attention.k_proj, attention.v_proj),
        q_norm=pack(attention.q_norm),
        k_norm=pack(attention.k_norm),
        out=pack(attention.o_proj),
        before_mlp=pack(layer.post_attention_layernorm),
        mlp=swiglu,
    )


def _pack(*modules: nn.Module, weights: Weights, dtype: torch.dtype) -> Operation:
    """What a norm does, or linear layers do side by side, with weights of the kind wanted."""
    module = modules[0]
    if isinstance(module, RMSNorm):
        scale = module.weight.to(dtype)
        return lambda x: F.rms_norm(x, scale.shape, scale, RMS_NORM_EPS)
    if isinstance(module, nn.LayerNorm):
        scale, shift = module.weight.to(dtype), module.bias.to(dtype)
        return lambda x: F.layer_norm(x, scale.shape, scale, shift, module.eps)
    rows = [m.weight.detach().t() if isinstance(m, Conv1D) else m.weight.detach() for m in modules]
    matrix = torch.cat(rows).float()  # (out, in)
    bias = getattr(module, "bias", None)
    bias = None if bias is None else bias.detach().to(dtype)
    if weights != "int8":
        matrix = matrix.to(dtype).contiguous()
        return lambda x: F.linear(x, matrix, bias)
    largest = matrix.abs().amax(dim=1).clamp(min=1e-12)  # (out,)
    bytes_, scale = (matrix * (127 / largest)[:, None]).round().to(torch.int8), (largest / 127).to(dtype)

    def product(x: Tensor) -> Tensor:
        y = torch._weight_int8pack_mm(x, bytes_, scale)
        return y if bias is None else y + bias

    return product
