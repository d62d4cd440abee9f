"""nanoGPT as the peer of bench/train.py and sample.py: its model, train step, train.py on our tokens, bench.py.

Everything is read from a checkout of https://github.com/karpathy/nanoGPT that is on this machine already; nothing
is written there. What it is run with is said where it is run.
"""

import importlib.util
import io
import os
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor, nn

from midigpt.files import UserError
from midigpt.model import GPT, ModelConfig
from midigpt.tokenizer import Tokens

FIRST_SEED = 1337  # train.py's own
_SEED_LINE = f"torch.manual_seed({FIRST_SEED} + seed_offset)"
BETA2 = 0.99  # of its small configurations, "a bit bigger because number of tokens per iter is small"


@dataclass(frozen=True)
class Shape:
    """What its model and ours have in common, and what a step reads."""

    vocab_size: int
    block_size: int
    n_layer: int
    n_head: int
    n_embd: int
    batch_size: int  # windows of block_size tokens

    @property
    def tokens_per_step(self) -> int:
        return self.batch_size * self.block_size

    @property
    def positions(self) -> str:
        """What those of its model count."""
        return "index"


def check(checkout: Path) -> None:
    """Raises UserError where the folder is no nanoGPT, or one whose train.py sets its seed otherwise."""
    needed = ("train.py", "model.py", "configurator.py", "bench.py")
    missing = [name for name in needed if not (checkout / name).exists()]
    if missing:
        raise UserError(f"{checkout} is no checkout of nanoGPT: {', '.join(missing)} missing")
    if (checkout / "train.py").read_text().count(_SEED_LINE) != 1:
        raise UserError(f"{checkout / 'train.py'} has no line {_SEED_LINE}; another version of nanoGPT?")


def _module(checkout: Path) -> ModuleType:
    """Its model.py, under a name of its own."""
    spec = importlib.util.spec_from_file_location("nanogpt_model", checkout / "model.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def build(checkout: Path, shape: Shape | ModelConfig, bias: bool = False) -> nn.Module:
    """Its model as train.py makes it, without dropout; what it prints meanwhile is dropped."""
    module = _module(checkout)
    sizes = {name: getattr(shape, name) for name in ("vocab_size", "block_size", "n_layer", "n_head", "n_embd")}
    with redirect_stdout(io.StringIO()):
        model: nn.Module = module.GPT(module.GPTConfig(**sizes, dropout=0.0, bias=bias))
    return model


def with_weights(checkout: Path, ours: GPT) -> nn.Module:
    """Its model of GPT-2's shape, biases included, with the weights of ours."""
    model = build(checkout, ours.config, bias=True)
    weights = {
        name: value.t() if name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")) else value
        for name, value in ours.state_dict().items()
    }
    model.load_state_dict(weights | {"lm_head.weight": weights["transformer.wte.weight"]})
    return model.eval()


def count_parameters(checkout: Path, shape: Shape) -> int:
    """All of them, position embeddings too (which its own count leaves out)."""
    with torch.device("meta"):
        return sum(weight.numel() for weight in build(checkout, shape).parameters())


# --- its train step --------------------------------------------------------------------------------------


def train_step(checkout: Path, shape: Shape, tokens: Tokens, learning_rate: float = 1e-3) -> Callable[[], None]:
    """One step of its train.py on the CPU, line by line: float32, for its autocast is a nullcontext there.

    Random crops of the tokens, read while the loss is at hand; loss, backward, gradient clipped to 1, its own
    optimizer, gradients dropped. Of one iteration only the learning rate's schedule and the printing are missing.
    """
    model = build(checkout, shape)
    with redirect_stdout(io.StringIO()):
        optimizer = model.configure_optimizers(0.1, learning_rate, (0.9, BETA2), "cpu")

    def get_batch() -> tuple[Tensor, Tensor]:
        ix = torch.randint(len(tokens) - shape.block_size, (shape.batch_size,))
        x = torch.stack([torch.from_numpy(tokens[i : i + shape.block_size].astype(np.int64)) for i in ix])
        y = torch.stack([torch.from_numpy(tokens[i + 1 : i + 1 + shape.block_size].astype(np.int64)) for i in ix])
        return x, y

    following = get_batch()

    def step() -> None:
        nonlocal following
        _, loss = model(*following)
        following = get_batch()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()  # log_interval is 1

    return step


# --- its train.py ----------------------------------------------------------------------------------------


def prepare(checkout: Path, folder: Path, root: Path, vocab_size: int, seed: int) -> None:
    """A folder to run train.py in, as it wants it: its files, and our tokens as data/tokens/{train,val}.bin.

    The copy differs from the checkout in one number, the seed, for which train.py has no flag.
    """
    folder.mkdir(parents=True)
    for name in ("model.py", "configurator.py"):
        shutil.copyfile(checkout / name, folder / name)
    source = (checkout / "train.py").read_text()
    (folder / "train.py").write_text(source.replace(_SEED_LINE, _SEED_LINE.replace(str(FIRST_SEED), str(seed))))
    data = folder / "data" / "tokens"
    data.mkdir(parents=True)
    for name in ("train.bin", "val.bin"):
        (data / name).symlink_to((root / "train" / name).resolve())  # uint16 without a header, as its own are
    with (data / "meta.pkl").open("wb") as out:
        pickle.dump({"vocab_size": vocab_size}, out)


def flags(shape: Shape, steps: int, learning_rate: float, device: str) -> list[str]:
    """Its configuration for small models (config/train_shakespeare_char.py) with our shape, batch and steps.

    Cosine to a tenth of the learning rate at the last step, after a warm-up of 100 steps; no dropout, as for all
    its shorter runs. It evaluates and saves at the last step only.
    """
    on_gpu = device.startswith("cuda")
    values = {
        "dataset": "tokens",
        "device": device,
        "dtype": "bfloat16" if on_gpu else "float32",
        "compile": on_gpu,
        "gradient_accumulation_steps": 1,
        "batch_size": shape.batch_size,
        "block_size": shape.block_size,
        "n_layer": shape.n_layer,
        "n_head": shape.n_head,
        "n_embd": shape.n_embd,
        "dropout": 0.0,
        "learning_rate": learning_rate,
        "min_lr": learning_rate / 10,
        "warmup_iters": min(100, steps // 5),
        "max_iters": steps,
        "lr_decay_iters": steps,
        "weight_decay": 0.1,
        "beta2": BETA2,
        "eval_interval": steps,
        "eval_iters": 1,
        "log_interval": 10,
    }
    return [f"--{name}={value}" for name, value in values.items()]


def train(folder: Path, arguments: list[str]) -> Path:
    """Run train.py in a folder made by `prepare`; gives its checkpoint. What it prints goes to log.txt."""
    command = [sys.executable, "train.py", *arguments]
    with (folder / "log.txt").open("w") as log:
        code = subprocess.run(command, cwd=folder, stdout=log, stderr=subprocess.STDOUT).returncode
    checkpoint = folder / "out" / "ckpt.pt"
    if code or not checkpoint.exists():
        raise UserError(f"nanoGPT's train.py failed with exit code {code}; see {folder / 'log.txt'}")
    return checkpoint


class Trained(nn.Module):
    """Its model as our evaluation calls a model: tokens (B, T) and positions, which it knows, to logits (B, T, V)."""

    def __init__(self, model: nn.Module, config: Shape) -> None:
        super().__init__()
        self.model, self.config = model, config

    def forward(self, tokens: Tensor, positions: Tensor) -> Tensor:
        logits: Tensor = self.model(tokens, tokens)[0]  # without targets it gives those of the last token only
        return logits


def load(checkout: Path, checkpoint: Path, shape: Shape) -> Trained:
    """Its trained model. Compiled ones have longer names."""
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)["model"]
    model = build(checkout, shape)
    model.load_state_dict({name.removeprefix("_orig_mod."): tensor for name, tensor in state.items()})
    return Trained(model, shape)


# --- its bench.py ----------------------------------------------------------------------------------------


def seconds_per_step(output: str) -> float:
    """Out of what bench.py prints last. Raises UserError where it is not there."""
    found = re.findall(r"time per iteration: ([\d.]+)ms", output)
    if not found:
        raise UserError(f"nanoGPT's bench.py has printed no time; its last lines: {output[-500:]}")
    return float(found[-1]) / 1000


def bench(checkout: Path, batch_size: int) -> float:
    """Seconds a step of its bench.py on this GPU: GPT-2 124 M, block 1024, vocabulary 50304, bfloat16, compiled.

    On its fixed random tokens, which cost it nothing to load. It doesn't clip gradients, and runs 20 steps.
    """
    command = [sys.executable, "bench.py", "--real_data=False", f"--batch_size={batch_size}"]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True)
    return seconds_per_step(done.stdout + done.stderr)
