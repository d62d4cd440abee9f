"""Train a GPT on train/train.bin. The run is the folder train/runs/NAME/: latest/, best/, metrics.jsonl.

Ctrl-C saves and ends; the same command goes on where it stopped.

Example: python scripts/train.py --run waltzes --max-steps 3000 --model.n-layer 6
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path

from midigpt.files import UserError, parse_arguments


@dataclass(frozen=True)
class Shape:
    n_layer: int = 4
    """Layers."""
    n_head: int = 4
    """Attention heads a layer."""
    n_embd: int = 192
    """Width; a multiple of 2 * n_head."""
    block_size: int = 256
    """Tokens the model sees at once."""


@dataclass(frozen=True)
class Config:
    root: Path = Path()
    """The working folder."""
    run: str = "default"
    """Name of the run; one that exists is gone on with."""
    model: Shape = field(default_factory=Shape)
    """The model's shape."""
    max_steps: int = 2000
    """Optimizer steps of the whole run."""
    batch_size: int = 16
    """Windows of block_size tokens a step."""
    learning_rate: float = 2e-3
    """The highest, after the warm-up; from there it falls in a line to zero."""
    warmup_steps: int = 100
    """Steps in which the learning rate rises in a line."""
    weight_decay: float = 0.1
    """AdamW's, on matrices alone."""
    dropout: float = 0.1
    """Share of activations dropped in training; small corpora need more."""
    grad_clip: float = 1.0
    """The largest norm of the gradient."""
    eval_interval: int = 200
    """Steps between evaluations on the whole of val.bin, after each of which a checkpoint is saved."""
    log_interval: int = 20
    """Steps between lines of the log."""
    seed: int = 0
    """Of the first weights, the order of documents and dropout."""
    device: str | None = None
    """cuda, mps or cpu; by itself the fastest there is."""


config = parse_arguments(Config, __doc__)
shape = config.model
for name in ("max_steps", "batch_size", "eval_interval", "log_interval"):
    if getattr(config, name) < 1:
        raise UserError(f"--{name.replace('_', '-')} {getattr(config, name)} must be at least 1")
for name in ("n_layer", "n_head", "n_embd", "block_size"):
    if getattr(shape, name) < 1:
        raise UserError(f"--model.{name.replace('_', '-')} {getattr(shape, name)} must be at least 1")
if config.seed < 0 or not 0 <= config.dropout < 1:
    raise UserError("--seed must be 0 or more, --dropout from 0 to below 1")
if shape.n_embd % (2 * shape.n_head):
    raise UserError(f"--model.n-embd {shape.n_embd} is not a multiple of twice --model.n-head {shape.n_head}")

# Arguments are read; now what takes seconds to import.
import json
import math
import signal
import time
from contextlib import nullcontext

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from midigpt.checkpoint import (
    find_checkpoint,
    load_checkpoint,
    load_state,
    save_checkpoint,
)
from midigpt.files import make, write_text
from midigpt.model import ModelConfig, build_model, fast_bf16, pick_device
from midigpt.tokenizer import file_sha256, tokenizer_path
from midigpt.train_data import Batches, evaluation_windows, line_tokens, load_side

# --- data ------------------------------------------------------------------------------------------------

train, meta = load_side(config.root, "train")
val, _ = load_side(config.root, "val")
tokenizer_json = tokenizer_path(config.root)
if not tokenizer_json.exists() or file_sha256(tokenizer_json) != meta["tokenizer"]:
    raise UserError(
        f"train.bin was made with another tokenizer than {tokenizer_json};"
        f" make it again with: {make(config.root, 'train-bin')}"
    )
if not len(train.tokens):
    raise UserError(f"{config.root / 'train' / 'train.bin'} is empty; all songs are held out")
batch = Batches(train, config.batch_size, shape.block_size, config.seed)
windows = evaluation_windows(val, shape.block_size)

# --- model and optimizer ---------------------------------------------------------------------------------

device = config.device or pick_device()
if device.partition(":")[0] not in ("cpu", pick_device()):
    raise UserError(f"--device {device} is not to be had here; {pick_device()} is")
on_cuda = device.startswith("cuda")
torch.manual_seed(config.seed)
torch.set_float32_matmul_precision("high")
model_config = ModelConfig(
    vocab_size=meta["vocab_size"],
    block_size=shape.block_size,
    n_layer=shape.n_layer,
    n_head=shape.n_head,
    n_kv_head=shape.n_head,
    n_embd=shape.n_embd,
    n_hidden=math.ceil(shape.n_embd * 8 / 3 / 32) * 32,  # as many weights as a plain feed-forward of 4 * n_embd
)
model = build_model(model_config, config.dropout).to(device)
optimizer = torch.optim.AdamW(
    [
        {"params": [p for p in model.parameters() if p.ndim == 2], "weight_decay": config.weight_decay},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ],
    lr=config.learning_rate,
    betas=(0.9, 0.99),  # nanoGPT's for small batches
    fused=True,
)
autocast = torch.autocast(device.split(":")[0], torch.bfloat16) if fast_bf16(device) else nullcontext()

# --- go on with a run, or begin one ----------------------------------------------------------------------

run_folder = config.root / "train" / "runs" / config.run
metrics_file = run_folder / "metrics.jsonl"
# What must stay as it was for a run to go on, in the words of a refusal.
fixed = {
    "another tokenizer": meta["tokenizer"],
    "other songs": [meta["train"], meta["val"]],
    f"another shape than {' '.join(f'{name}={value}' for name, value in asdict(shape).items())}": asdict(shape),
    f"another batch size than {config.batch_size}": config.batch_size,
    f"another seed than {config.seed}": config.seed,
}
first_step = 0
best: dict[str, float] | None = None  # the record of the best evaluation
latest = find_checkpoint(run_folder / "latest")
if latest:
    saved, tokenizer, state = load_checkpoint(latest)
    for (difference, now), then in zip(fixed.items(), state["fixed"], strict=True):
        if now != then:
            raise UserError(f"{run_folder} was begun with {difference}; begin a new run with --run NAME")
    if state["step"] > config.max_steps:
        raise UserError(f"{run_folder} has made {state['step']} steps already; ask for more, or for a new --run NAME")
    model.load_state_dict(saved.state_dict())
    tensors = load_state(latest)
    torch.set_rng_state(tensors.pop("random_state"))
    weights = dict(model.named_parameters())
    for tensor_name, tensor in tensors.items():
        kind, parameter = tensor_name.split(".", 1)
        optimizer.state[weights[parameter]][kind] = tensor.to(device)
    first_step, best = state["step"], state["best"]
# Lines of steps that a kill has lost go, as they will be written again; so does a line it has cut short.
old_lines = metrics_file.read_text().splitlines(keepends=True) if metrics_file.exists() else []
kept = [line for line in old_lines if line.endswith("\n") and json.loads(line)["step"] <= first_step]
write_text(metrics_file, "".join(kept))

# --- evaluation ------------------------------------------------------------------------------------------


def nats_of_unigram() -> float:
    """Code length of val's lines under the frequencies of train's: what any model must beat."""
    frequency = np.bincount(line_tokens(train), minlength=meta["vocab_size"]) + 1.0
    return float(-np.log(frequency / frequency.sum())[line_tokens(val)].sum())


@torch.no_grad()
def nats_of_model() -> float:
    """Code length of val's lines under the model, every document read from its start."""
    model.eval()
    total = torch.zeros((), dtype=torch.float64)
    for first in range(0, len(windows), config.batch_size):
        rows = windows[first : first + config.batch_size]
        longest = max(end - start for start, end, _ in rows) - 1
        x = torch.zeros(len(rows), longest, dtype=torch.long)
        y = torch.full((len(rows), longest), -100)  # -100: not counted
        for row, (start, end, counted) in enumerate(rows):
            tokens = torch.from_numpy(val.tokens[start:end].astype(np.int64))
            x[row, : end - start - 1] = tokens[:-1]
            skip = max(counted - start - 1, 0)
            y[row, skip : end - start - 1] = tokens[1 + skip :]
        with autocast:
            logits = model(x.to(device), torch.arange(longest, device=device)[None])
        total += F.cross_entropy(logits.flatten(0, 1).float(), y.to(device).flatten(), reduction="sum").double().cpu()
    model.train()
    return float(total)


val_tokens = len(line_tokens(val))
unigram_bits = nats_of_unigram() / math.log(2) / val.notes if val.notes else math.nan


# --- the loop --------------------------------------------------------------------------------------------


def learning_rate(step: int) -> float:
    """Up in a line, then down in a line to zero at max_steps (Bergsma et al. 2025, arXiv 2502.15938)."""
    warm = min((step + 1) / max(config.warmup_steps, 1), 1.0)
    return config.learning_rate * min(warm, (config.max_steps - step) / config.max_steps)


def to_device(array: np.ndarray) -> Tensor:
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if on_cuda else tensor.to(device)


stop = False


def ask_to_stop(number: int, frame: object) -> None:
    global stop
    if stop:
        raise KeyboardInterrupt
    stop = True
    tqdm.write("stopping after this step; once more to stop at once, without saving")


signal.signal(signal.SIGINT, ask_to_stop)
signal.signal(signal.SIGTERM, ask_to_stop)

print(
    f"train: {model.parameter_count() / 1e6:.2f} M parameters on {device}, {len(train.tokens)} tokens,"
    f" {config.max_steps * config.batch_size * shape.block_size / len(train.tokens):.1f} epochs"
    + (f", from step {first_step}" if first_step else ""),
    flush=True,
)
begun = logged = time.perf_counter()
losses: list[Tensor] = []
positions = torch.arange(shape.block_size, device=device)[None]
done = first_step
bar = tqdm(
    range(first_step, config.max_steps), "train", config.max_steps, initial=first_step, disable=None, unit="step"
)
for step in bar:
    x, y = (to_device(array) for array in batch(step))
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(step)
    with autocast:
        loss = F.cross_entropy(model(x, positions).flatten(0, 1).float(), y.flatten())
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip)
    optimizer.step()
    losses.append(loss.detach())

    done = step + 1
    stopping = stop  # a signal from here on is for the next step
    evaluates = done % config.eval_interval == 0 or done == config.max_steps
    saves = evaluates or stopping
    if done % config.log_interval and not saves:
        continue
    now = time.perf_counter()
    train_loss = torch.stack(losses).mean().item()
    if not math.isfinite(train_loss):
        raise UserError(f"the loss is {train_loss} at step {done}; go on with a smaller --learning-rate in a new --run")
    speed = len(losses) * config.batch_size * shape.block_size / (now - logged)
    left = (config.max_steps - done) * (now - begun) / (done - first_step)
    line = f"step {done:6d}  train {train_loss:.4f} nats per token  {speed:,.0f} tokens/s  {left / 60:.1f} min left"
    record: dict[str, float] = {"step": done, "train_loss": train_loss}
    losses.clear()
    if evaluates and val_tokens:
        nats = nats_of_model()
        val_loss, bits_per_note = nats / val_tokens, nats / math.log(2) / val.notes
        record |= {"val_loss": val_loss, "val_bits_per_note": bits_per_note}
        line += f"  val {val_loss:.4f} nats per token, {bits_per_note:.3f} bits per note"
        if best is None or val_loss < best["val_loss"]:
            best = record
    with metrics_file.open("a") as out:
        out.write(json.dumps(record) + "\n")
    if saves:
        run = {"step": done, "best": best, "fixed": [*fixed.values()]}
        if best is record:
            save_checkpoint(run_folder / "best", model, tokenizer_json, run)
        tensors = {"random_state": torch.get_rng_state()}
        for parameter, weight in model.named_parameters():
            tensors |= {f"{kind}.{parameter}": tensor for kind, tensor in optimizer.state[weight].items()}
        save_checkpoint(run_folder / "latest", model, tokenizer_json, run, tensors)
    tqdm.write(line)
    logged = time.perf_counter()
    if stopping:
        break

minutes = (time.perf_counter() - begun) / 60
ending = "finished" if done >= config.max_steps else "stopped; the same command goes on"
if not val_tokens:
    result = "no song is held out, so nothing tells how well it does"
elif best is None:
    result = "not evaluated yet"
else:
    bits = best["val_bits_per_note"]
    result = (
        f"best {bits:.3f} bits per note at step {best['step']:.0f} on {meta['val']['songs']} held-out songs"
        f" (unigram model {unigram_bits:.3f}, ratio {bits / unigram_bits:.3f})"
    )
print(f"train: step {done} of {config.max_steps}, {ending}; {result}; {minutes:.1f} min; in {run_folder}")
