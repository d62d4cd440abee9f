"""The settings of a training run, each with its default, and which can't be."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from midigpt.files import UserError

Counted = Literal["time", "index"]  # by positions


@dataclass(frozen=True)
class Shape:
    type: Literal["qwen3", "gpt2"] = "qwen3"
    """Rotary positions, RMSNorm, SwiGLU; or what GPT-2 had."""
    n_layer: int = 3
    """Layers."""
    n_head: int = 4
    """Attention heads a layer."""
    n_kv_head: int | None = None
    """Heads of keys and values, shared by the others (qwen3); without it as many as n_head."""
    n_embd: int = 128
    """Width; a multiple of 2 * n_head."""
    n_hidden: int | None = None
    """Width of the feed-forward layers; without it, such that they have as many weights as with 4 * n_embd and GELU."""
    block_size: int = 256
    """Tokens the model sees at once."""
    positions: Counted = "time"
    """What rotary positions count: musical time, or tokens, as gpt2's learned ones always do."""


@dataclass(frozen=True)
class Config:
    config: str | None = None
    """A preset of configs/ or a .toml file; without it the size is chosen by the music and the device."""
    root: Path = Path()
    """The working folder."""
    run: str = "default"
    """Name of the run; one that exists is gone on with."""
    init_from: Path | None = None
    """A checkpoint folder to begin from, its tokenizer included."""
    model: Shape = field(default_factory=Shape)
    """The model's shape."""
    # How long: the shortest of what is given; without any, 60 epochs or 30 minutes.
    max_steps: int | None = None
    """Optimizer steps of the whole run."""
    epochs: float | None = None
    """How often all the music is learned from, each time in one of its keys."""
    minutes: float | None = None
    """Time the whole run may take; the schedule ends inside it."""
    # Learning
    batch_size: int = 8
    """Windows of block_size tokens a step, over all processes."""
    micro_batch_size: int | None = None
    """Windows at once in one process; fewer take less memory and give the same steps."""
    learning_rate: float = 2.5e-3
    """Muon's highest, of the matrices."""
    adam_learning_rate: float = 2e-2
    """AdamW's highest, of embeddings and norms."""
    warmup_steps: int = 50
    """Steps in which the learning rates rise in a line."""
    decay: float = 0.5
    """Share of the run, at its end, in which they fall in a line to zero."""
    weight_decay: float | None = None
    """Of matrices; without it, by how often the same text comes again."""
    dropout: float | None = None
    """Share of activations dropped in training; without it, by how often the same text comes again."""
    seed: int = 0
    """Of the first weights, the order of documents and dropout."""
    # What is seen of it
    eval_interval: int | None = None
    """Steps between evaluations on the whole of val.bin; without it, so many that they take a tenth of the time."""
    log_interval: int = 20
    """Steps between lines of the log."""
    logger: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Where metrics go besides metrics.jsonl."""
    # Machine
    device: str | None = None
    """cuda, mps or cpu; by itself the fastest there is."""
    compile: bool | None = None
    """Compile the training step; without it, on CUDA alone."""


def check_name(run: str) -> None:
    """Raise UserError for a name that a run can't have."""
    if Path(run).name != run:
        raise UserError(f"--run {run} must be a plain name: it becomes a folder in train/runs")


def validate(config: Config) -> None:
    """Raise UserError for numbers that can't be."""
    shape = config.model
    least = {"batch_size": 1, "micro_batch_size": 1, "max_steps": 1, "eval_interval": 1, "log_interval": 1, "seed": 0}
    for name, lowest in least.items():
        if (value := getattr(config, name)) is not None and value < lowest:
            raise UserError(f"--{name.replace('_', '-')} {value} must be at least {lowest}")
    for name in ("n_layer", "n_head", "n_kv_head", "n_embd", "n_hidden", "block_size"):
        if (value := getattr(shape, name)) is not None and value < 1:
            raise UserError(f"--model.{name.replace('_', '-')} {value} must be at least 1")
    for name in ("epochs", "minutes", "decay", "learning_rate", "adam_learning_rate"):
        if (value := getattr(config, name)) is not None and not value > 0:
            raise UserError(f"--{name.replace('_', '-')} {value} must be more than 0")
    if config.warmup_steps < 0 or (config.weight_decay is not None and not 0 <= config.weight_decay < math.inf):
        raise UserError("--warmup-steps and --weight-decay must be at least 0")
    if config.minutes == math.inf or config.epochs == math.inf:
        raise UserError("--minutes and --epochs must be finite")
    if shape.type == "gpt2" and shape.n_kv_head not in (None, shape.n_head):
        raise UserError("--model.n-kv-head: gpt2 has as many heads of keys and values as of queries; leave it out")
    if config.decay > 1:
        raise UserError(f"--decay {config.decay} must be at most 1")
    if config.dropout is not None and not 0 <= config.dropout < 1:
        raise UserError(f"--dropout {config.dropout} must be from 0 to below 1")
    check_name(config.run)
    if shape.n_embd % (2 * shape.n_head):
        raise UserError(f"--model.n-embd {shape.n_embd} is not a multiple of twice --model.n-head {shape.n_head}")
    if shape.n_head % (shape.n_kv_head or shape.n_head):
        raise UserError(f"--model.n-head {shape.n_head} is not a multiple of --model.n-kv-head {shape.n_kv_head}")
