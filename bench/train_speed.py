"""How fast a training step is: nanoGPT's and ours on the CPU, in turns; GPT-2 of 124 M parameters on a GPU.

Every contestant lives in a process of its own, so that no setting, cache or memory of one reaches another.
"""

import copy
import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, Literal

import nanogpt
import numpy as np
import torch
from nanogpt import Shape

from midigpt import settings
from midigpt.batches import Batches
from midigpt.devices import autocast, fast_bf16, keep_freed_memory
from midigpt.model import build_model, flops_per_token, model_config
from midigpt.optimizer import make_optimizers, update
from midigpt.positions import POSITIONS_DTYPE
from midigpt.sides import Side, load_side
from midigpt.tokenizer import DTYPE

ModelType = Literal["qwen3", "gpt2"]
Contestant = Literal["nanoGPT", "qwen3", "gpt2"]
SMALL_GPT2 = Shape(vocab_size=0, block_size=256, n_layer=6, n_head=6, n_embd=384, batch_size=12)
GPT2 = Shape(vocab_size=50304, block_size=1024, n_layer=12, n_head=12, n_embd=768, batch_size=12)


@dataclass(frozen=True)
class Step:
    """A contestant, ready to run."""

    run: Callable[[int], None]  # takes the number of the step
    parameters: int
    flops_per_token: float  # forward and backward


# --- ours ------------------------------------------------------------------------------------------------


def our_settings(kind: ModelType, shape: Shape, n_hidden: int | None = None) -> settings.Shape:
    """The same shape in our trainer's settings."""
    sizes = {name: getattr(shape, name) for name in ("n_layer", "n_head", "n_embd", "block_size")}
    return settings.Shape(type=kind, **sizes, n_hidden=n_hidden)


def our_step(kind: ModelType, shape: Shape, side: Side, device: str) -> Step:
    """The train step of scripts/train.py, without the schedule of the learning rate and the log.

    Loader, model, loss, gradient, clipping, both optimizers and the averaged weights; compiled on a GPU.
    """
    torch.set_float32_matmul_precision("high")
    keep_freed_memory()
    config = settings.Config()
    model = build_model(model_config(our_settings(kind, shape), shape.vocab_size)).to(device)
    average = copy.deepcopy(model).requires_grad_(False)
    stepped = torch.compile(model) if device.startswith("cuda") else model
    optimizers = make_optimizers(model, config.learning_rate, config.adam_learning_rate, weight_decay=0.1)
    precision = autocast(device)
    batch = Batches(side, shape.batch_size, shape.block_size, 0, device, model.config.positions)

    def step(number: int) -> None:
        x, y, positions = batch(number)
        with precision:
            loss = stepped(x, positions, targets=y)
        loss.backward()
        update(model, optimizers, average, averaging=0.01)

    return Step(step, model.parameter_count(), flops_per_token(model.config))


# --- on the CPU, in turns --------------------------------------------------------------------------------

_step: Step  # of the process at hand


def _prepare(contestant: Contestant, checkout: Path, root: Path, shape: Shape) -> int:
    """Make this process a contestant; gives its number of parameters."""
    global _step
    torch.manual_seed(0)
    side, _ = load_side(root, "train")
    if contestant == "nanoGPT":
        run = nanogpt.train_step(checkout, shape, side.tokens)
        _step = Step(lambda _: run(), nanogpt.count_parameters(checkout, shape), 0.0)
    else:
        _step = our_step(contestant, shape, side, "cpu")
    return _step.parameters


def _run(first: int, steps: int) -> float:
    """The seconds of some steps."""
    start = time.perf_counter()
    for number in range(first, first + steps):
        _step.run(number)
    return time.perf_counter() - start


def compare_on_cpu(
    checkout: Path,
    root: Path,
    rounds: int,
    steps: int = 3,
    shape: Shape = SMALL_GPT2,
    ours: tuple[ModelType, ...] = ("gpt2", "qwen3"),
) -> dict[str, Any]:
    """Tokens per second of nanoGPT's train step and of ours, in rounds of `steps` steps each, one after another.

    The shape is that of nanoGPT's config/train_shakespeare_char.py without its dropout, the batch that of its
    README's command for a CPU; the vocabulary is that of the data. The ratio is that of the medians.
    """
    shape = replace(shape, vocab_size=load_side(root, "train")[1]["vocab_size"])
    names: tuple[Contestant, ...] = ("nanoGPT", *ours)
    pools = {name: _process() for name in names}
    try:
        parameters = {name: pool.submit(_prepare, name, checkout, root, shape) for name, pool in pools.items()}
        rows: dict[str, dict[str, Any]] = {name: {"parameters": n.result()} for name, n in parameters.items()}
        speeds: dict[str, list[float]] = {name: [] for name in pools}
        for number in range(rounds + 1):
            for name, pool in pools.items():
                seconds = pool.submit(_run, number * steps, steps).result()
                if number:  # the first round warms up
                    speeds[name].append(steps * shape.tokens_per_step / seconds)
    finally:
        for pool in pools.values():
            pool.shutdown()
    for row, rounds_ in zip(rows.values(), speeds.values(), strict=True):
        row |= {"tokens_per_second": median(rounds_), "rounds": rounds_}
        row["ratio"] = row["tokens_per_second"] / median(speeds["nanoGPT"])
    return {"shape": asdict(shape), "steps_per_round": steps, "bf16": fast_bf16("cpu"), "rows": rows}


def _process() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))


# --- on a GPU --------------------------------------------------------------------------------------------


def random_side(vocab_size: int, tokens: int) -> Side:
    """Tokens drawn evenly, in documents of a thousand: as much work for the loader as music is."""
    rng = np.random.default_rng(0)
    begins = np.arange(0, tokens, 1000)
    docs = np.stack([begins, begins + 2], axis=1)
    where = (np.arange(tokens) % 1000).astype(POSITIONS_DTYPE)
    return Side(rng.integers(0, vocab_size, tokens).astype(DTYPE), where, docs, tokens)


def measure(kind: ModelType, shape: Shape, device: str, steps: int, warm_up: int) -> dict[str, Any]:
    """One row: the speed of our step, the seconds that the first steps took longer (compiling), the most memory.

    A batch that the memory can't hold gives a row that says so.
    """
    on_gpu = device.startswith("cuda")

    def clock() -> float:
        if on_gpu:
            torch.cuda.synchronize()
        return time.perf_counter()

    row: dict[str, Any] = {"type": kind, **asdict(shape)}
    try:
        step = our_step(kind, shape, random_side(shape.vocab_size, max(10**6, 2 * shape.tokens_per_step)), device)
        begun = clock()
        for number in range(warm_up):
            step.run(number)
        warm = clock()
        for number in range(warm_up, warm_up + steps):
            step.run(number)
        seconds = (clock() - warm) / steps
    except RuntimeError as error:
        if "out of memory" not in str(error).lower():
            raise
        return row | {"out_of_memory": True}
    row |= {"parameters": step.parameters, "tokens_per_second": shape.tokens_per_step / seconds}
    row |= {"flops_per_second": row["tokens_per_second"] * step.flops_per_token}
    row |= {"compile_seconds": warm - begun - warm_up * seconds}
    return row | {"memory_gib": torch.cuda.max_memory_allocated() / 2**30 if on_gpu else None}


def best_batch(
    kind: ModelType, shape: Shape, batches: tuple[int, ...], device: str = "cuda", steps: int = 30, warm_up: int = 10
) -> list[dict[str, Any]]:
    """A row for each batch size, from the smallest on until one doesn't fit; each in a process of its own."""
    rows: list[dict[str, Any]] = []
    for batch_size in batches:
        with _process() as pool:
            future = pool.submit(measure, kind, replace(shape, batch_size=batch_size), device, steps, warm_up)
            rows.append(future.result())
        if "out_of_memory" in rows[-1]:
            break
    return rows


def fastest(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return max(rows, key=lambda row: row.get("tokens_per_second", 0.0))


def compare_on_gpu(checkout: Path, small: Shape) -> dict[str, Any]:
    """GPT-2 124 M beside nanoGPT's bench.py, at its batch of 12 and at our best; then the shape `small`, ours alone.

    bench.py runs before and after ours, and the faster of the two counts.
    """
    peers = {GPT2.batch_size: [nanogpt.bench(checkout, GPT2.batch_size)]}
    ours = best_batch("gpt2", GPT2, (12, 16, 24, 32, 48, 64, 96, 128))
    best = fastest(ours)["batch_size"]
    peers[GPT2.batch_size].append(nanogpt.bench(checkout, GPT2.batch_size))
    if best != GPT2.batch_size:
        peers[best] = [nanogpt.bench(checkout, best) for _ in range(2)]
    speeds = {size: size * GPT2.block_size / min(seconds) for size, seconds in peers.items()}
    return {
        "nanogpt": [{"batch_size": size, "tokens_per_second": speed} for size, speed in speeds.items()],
        "gpt2": ours,
        "small": best_batch("qwen3", small, (16, 32, 64, 128, 256)),
        "ratio": fastest(ours)["tokens_per_second"] / speeds[GPT2.batch_size],
    }
