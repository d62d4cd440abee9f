"""What is learned from the same tokens: nanoGPT's train.py at several learning rates, our trainer with half of them.

Both get the same tokens, tokenizer, window, batch and (within 1 %) number of parameters. Both are judged by one
evaluation, ours, in float32: every held-out document from its start, all tokens of lines. nanoGPT's best learning
rate is chosen on those documents, to its advantage; of ours the weights of the last step count. A run that is
finished is kept in its folder and not made again; one of other settings, or of other code, has another folder.
"""

import hashlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import nanogpt
import torch
from nanogpt import Shape
from torch import nn
from train_speed import our_settings

from midigpt import settings
from midigpt.checkpoint import find_checkpoint, load_checkpoint
from midigpt.config import load_preset
from midigpt.evaluate import Evaluation
from midigpt.files import UserError, read_json, write_json
from midigpt.model import build_model, model_config
from midigpt.sides import load_side
from midigpt.tokenizer import load_tokenizer

PROJECT = Path(__file__).resolve().parents[1]
PARAMETERS_MAY_DIFFER = 0.01
Judge = Callable[[nn.Module], dict[str, float]]


@dataclass(frozen=True)
class Plan:
    """The runs to compare."""

    checkout: Path  # of nanoGPT
    root: Path  # packed data
    work: Path  # where the runs are kept
    preset: str
    device: str
    steps: int  # of nanoGPT; ours makes half as many
    learning_rates: tuple[float, ...]  # of nanoGPT
    seeds: int


def preset_shape(name: str, vocab_size: int) -> Shape:
    """The shape and batch of configs/NAME.toml."""
    config = load_preset(settings.Config, name)
    model = config.model
    return Shape(vocab_size, model.block_size, model.n_layer, model.n_head, model.n_embd, config.batch_size)


def equal_hidden(shape: Shape, parameters: int) -> tuple[int, int]:
    """The width of our feed-forward layer, in steps of 8, that comes closest to a number of parameters; and ours.

    Raises UserError where that is more than 1 % off.
    """

    def count(n_hidden: int) -> int:
        with torch.device("meta"):
            return build_model(model_config(our_settings("qwen3", shape, n_hidden), shape.vocab_size)).parameter_count()

    base = count(8)
    per_width = (count(16) - base) / 8
    n_hidden = 8 + 8 * max(round((parameters - base) / per_width / 8), 0)
    ours = count(n_hidden)
    if abs(ours / parameters - 1) > PARAMETERS_MAY_DIFFER:
        raise UserError(f"no feed-forward layer gives ours {parameters} parameters; {n_hidden} gives {ours}")
    return n_hidden, ours


# --- runs ------------------------------------------------------------------------------------------------


def judge(root: Path, block_size: int) -> Judge:
    """The one evaluation, of whatever model: on the CPU, in float32."""
    val = load_side(root, "val")[0]
    if not val.notes:
        raise UserError(f"{root} holds no song out; nothing to compare on")
    evaluation = Evaluation(val, load_tokenizer(root)[0], block_size)

    def figures(model: nn.Module) -> dict[str, float]:
        found = evaluation(model, "cpu", nullcontext())
        return {"nats_per_token": found.nats_per_token, "bits_per_note": found.bits_per_note}

    return figures


def _hash(*things: object) -> str:
    return hashlib.sha256(json.dumps(things, default=str).encode()).hexdigest()[:10]


def _sources(paths: Iterable[Path]) -> str:
    return _hash(*(path.read_text(encoding="utf-8") for path in sorted(paths)))


def once(work: Path, name: str, settings: dict[str, Any], run: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """The result of a run: as it was kept, or of a run now, in a folder that is named for its settings."""
    folder = work / f"{name}-{_hash(settings)}"
    if (folder / "result.json").exists():
        return dict(read_json(folder / "result.json"))
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was interrupted
    begun = time.perf_counter()
    result = run(folder)
    result = {"run": name, **result, "minutes": (time.perf_counter() - begun) / 60, "settings": settings}
    write_json(folder / "result.json", result)
    return result


def nanogpt_run(plan: Plan, shape: Shape, evaluate: Judge, learning_rate: float, seed: int) -> dict[str, Any]:
    """Train nanoGPT once and evaluate what it ends with."""
    arguments = nanogpt.flags(shape, plan.steps, learning_rate, plan.device)

    def run(folder: Path) -> dict[str, Any]:
        nanogpt.prepare(plan.checkout, folder, plan.root, shape.vocab_size, seed)
        model = nanogpt.load(plan.checkout, nanogpt.train(folder, arguments), shape)
        return {"seed": seed, "learning_rate": learning_rate, **evaluate(model)}

    settings = {
        "arguments": arguments,
        "seed": seed,
        "data": read_json(plan.root / "train" / "meta.json"),
        "code": _sources(plan.checkout / name for name in ("train.py", "model.py")),
    }
    return once(plan.work, f"nanogpt-{learning_rate:g}-{seed}", settings, run)


def our_run(plan: Plan, evaluate: Judge, n_hidden: int, steps: int, seed: int) -> dict[str, Any]:
    """Train ours once, as a user does, and evaluate what it ends with."""
    arguments = ["--config", plan.preset, "--model.n-hidden", str(n_hidden), "--max-steps", str(steps)]
    arguments += ["--eval-interval", str(steps), "--seed", str(seed), "--device", plan.device]

    def run(folder: Path) -> dict[str, Any]:
        link_root(plan.root, folder)
        command = [sys.executable, str(PROJECT / "scripts" / "train.py"), "--root", str(folder), *arguments]
        with (folder / "log.txt").open("w") as log:
            code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT).returncode
        checkpoint = find_checkpoint(folder / "train" / "runs" / "default" / "latest")
        if code or checkpoint is None:
            raise UserError(f"the trainer failed with exit code {code}; see {folder / 'log.txt'}")
        return {"seed": seed, "steps": steps, **evaluate(load_checkpoint(checkpoint)[0])}

    code = ["scripts/train.py", f"configs/{plan.preset}.toml", *map(str, PROJECT.glob("midigpt/*.py"))]
    settings = {
        "arguments": arguments,
        "data": read_json(plan.root / "train" / "meta.json"),
        "code": _sources(PROJECT / name for name in code),
    }
    return once(plan.work, f"midigpt-{steps}-{seed}", settings, run)


def link_root(root: Path, folder: Path) -> None:
    """A working folder with the packed data of another and none of its runs."""
    (folder / "train").mkdir(parents=True)
    (folder / "cache").mkdir()
    for path in (*root.glob("cache/tokenizer*.json"), *root.glob("train/*")):
        if path.is_file():
            (folder / path.relative_to(root)).symlink_to(path.resolve())


# --- the verdict -----------------------------------------------------------------------------------------


def summary(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Mean and standard deviation over the seeds."""
    nats, bits = ([row[key] for row in rows] for key in ("nats_per_token", "bits_per_note"))
    spread = stdev(nats) if len(nats) > 1 else 0.0
    return {"nats_per_token": mean(nats), "spread": spread, "bits_per_note": mean(bits)}


def verdict(peers: dict[float, dict[str, float]], ours: dict[str, float]) -> dict[str, Any]:
    """nanoGPT's best learning rate, whether it lies inside those tried, and whether ours is at or below it."""
    best = min(peers, key=lambda rate: peers[rate]["nats_per_token"])
    return {
        "best_learning_rate": best,
        "is_inside": min(peers) < best < max(peers),
        "difference": ours["nats_per_token"] - peers[best]["nats_per_token"],
        "holds": ours["nats_per_token"] <= peers[best]["nats_per_token"],
    }


def compare(plan: Plan, equal_tokens: bool, report: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """All runs, each told to `report` when it is done, and the verdict."""
    shape = preset_shape(plan.preset, load_side(plan.root, "val")[1]["vocab_size"])
    their_parameters = nanogpt.count_parameters(plan.checkout, shape)
    n_hidden, our_parameters = equal_hidden(shape, their_parameters)
    evaluate = judge(plan.root, shape.block_size)

    seeds = range(plan.seeds)

    def reported(row: dict[str, Any]) -> dict[str, Any]:
        report(row)
        return row

    peers = {
        rate: [reported(nanogpt_run(plan, shape, evaluate, rate, nanogpt.FIRST_SEED + n)) for n in seeds]
        for rate in plan.learning_rates
    }
    lengths = [plan.steps // 2, *([plan.steps] if equal_tokens else [])]
    ours = {steps: [reported(our_run(plan, evaluate, n_hidden, steps, seed)) for seed in seeds] for steps in lengths}
    means = {rate: summary(rows) for rate, rows in peers.items()}
    return {
        "shape": asdict(shape),
        "parameters": {"nanoGPT": their_parameters, "midigpt": our_parameters},
        "tokens": {"nanoGPT": plan.steps * shape.tokens_per_step, "midigpt": lengths[0] * shape.tokens_per_step},
        "runs": [row for rows in (*peers.values(), *ours.values()) for row in rows],
        "nanoGPT": {str(rate): row for rate, row in means.items()},
        "midigpt": {str(steps): summary(rows) for steps, rows in ours.items()},
        "verdict": verdict(means, summary(ours[lengths[0]])),
    }
