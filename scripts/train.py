"""Train a GPT on train/train.bin. The run is the folder train/runs/NAME/: latest/, best/, takes/, metrics.jsonl.

Ctrl-C saves and ends; the same command goes on where it stopped. Examples:
  python scripts/train.py --config small --minutes 60
  torchrun --standalone --nproc-per-node 4 -- scripts/train.py --config base --epochs 8
  python scripts/train.py --init-from train/runs/default/best --epochs 10 --run mine
"""

import time
from dataclasses import asdict, replace
from typing import Any

from midigpt.config import as_table, as_words, parse_config
from midigpt.files import UserError, append_line, lock, read_json, write_text
from midigpt.settings import Config, check_name

BEGUN = time.perf_counter()

TRIAL_STEPS = 3  # to find the speed
SAVE_SECONDS = 300  # between savings of latest/, so that a power cut costs minutes
EXPLODED = 1.5  # nats per token above the best so far: a run that has gone wrong
TAKE_NOTES = {"track": 64, "song": 128}  # of the take at each evaluation, by the documents' layout

config = parse_config(Config, __doc__)

# Arguments are read; now what takes seconds to import.
import copy
import json
import math
import os
import signal
import sys
from contextlib import nullcontext
from importlib.metadata import version
from types import FrameType

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from midigpt.batches import Batches
from midigpt.checkpoint import find_checkpoint, load_checkpoint, load_state, save_checkpoint, training_band
from midigpt.devices import (
    autocast,
    device_name,
    find_device,
    fitting,
    keep_freed_memory,
    peak_flops,
)
from midigpt.evaluate import Evaluation, unigram_bits_per_note
from midigpt.generate import Drawing, Length, compose
from midigpt.language import decode, read_language
from midigpt.loggers import open_loggers
from midigpt.midi import write_midi
from midigpt.model import build_model, flops_per_token, model_config, set_dropout
from midigpt.optimizer import groups, make_optimizers, optimizer_state, restore_optimizer_state, update
from midigpt.plan import (
    Pace,
    averaging_weight,
    is_decaying,
    learning_rate_factor,
    regularisation,
    steps_between_evaluations,
    steps_that_fit,
)
from midigpt.sides import load_side
from midigpt.start import LENGTHS, check_same, check_size, complete, find_tokenizer

# --- data and configuration ------------------------------------------------------------------------------

rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))  # as torchrun sets them
is_first = rank == 0  # prints and saves
train, meta = load_side(config.root, "train")
language = read_language(meta["language"])
val = load_side(config.root, "val")[0]
check_name(config.run)
run_folder = config.root / "train" / "runs" / config.run
held = lock(run_folder / "lock", f"{run_folder} is being trained already") if is_first else None  # until the end
latest = find_checkpoint(run_folder / "latest")
then: dict[str, Any] = read_json(latest / "run.json") if latest else {}  # when that was saved
if then:
    then["config"]["model"].setdefault("positions", "index")  # a run that does not say counts tokens
if latest and config.init_from and str(config.init_from) != then["config"].get("init_from"):
    raise UserError(f"{run_folder} was not begun from {config.init_from}; begin a new run with --run NAME")
origin = load_checkpoint(config.init_from)[0] if config.init_from and not latest else None
config, why = complete(config, __doc__, latest, then, origin, train.epoch_tokens)
shape = config.model
check_size(config, len(train.tokens), world)
check_same(config, run_folder, then, meta)
tokenizer_json, tokenizer = find_tokenizer(config, latest, meta, max(s.tokens.max(initial=0) for s in (train, val)))

# --- device and processes --------------------------------------------------------------------------------

device = find_device(config.device)
on_cuda = device.startswith("cuda")
if world > 1:
    device = f"cuda:{os.environ['LOCAL_RANK']}" if on_cuda else device
    dist.init_process_group("nccl" if on_cuda else "gloo")
if on_cuda:
    torch.cuda.set_device(device)
torch.set_float32_matmul_precision("high")
precision = autocast(device)
keep_freed_memory()


def summed(*values: float) -> list[float]:
    """Each value summed over all processes, which meet here."""
    if world == 1:
        return [*values]
    together = torch.tensor(values, dtype=torch.float64, device=device if on_cuda else "cpu")
    dist.all_reduce(together)
    return together.tolist()


def say(line: str) -> None:
    if is_first:
        tqdm.write(line)


# --- model and optimizers --------------------------------------------------------------------------------

torch.manual_seed(config.seed)
model = build_model(model_config(shape, meta["vocab_size"])).to(device)
if origin:
    if origin.config != model.config:
        raise UserError(
            f"{config.init_from} has another shape than the flags ask for: {as_words(asdict(origin.config))}"
        )
    model.load_state_dict(origin.state_dict())
average = copy.deepcopy(model).requires_grad_(False).eval()  # of the weights, over the last steps
stepped: torch.nn.Module = torch.compile(model) if config.compile or (config.compile is None and on_cuda) else model
if world > 1:
    stepped = DistributedDataParallel(stepped, device_ids=[device] if on_cuda else None)

batch = Batches(train, config.batch_size, shape.block_size, config.seed, device, model.config.positions)
tokens_per_step = config.batch_size * shape.block_size
rows = config.batch_size // world  # of a batch, that this process takes
micro = min(config.micro_batch_size or rows, rows)
memory_advice = f"--micro-batch-size {max(micro // 2, 1)}, or a smaller --config"


def forward_backward(step: int) -> Tensor:
    """Add the gradient of a step's batch to the weights'; its loss in nats per token, of this process's rows."""
    x, y, positions = (part[rank * rows : (rank + 1) * rows] for part in batch(step))
    total = torch.zeros((), device=device)
    for first in range(0, rows, micro):
        last, some = first + micro >= rows, slice(first, first + micro)
        with nullcontext() if last or world == 1 else stepped.no_sync():
            with precision:
                loss = stepped(x[some], positions[some], targets=y[some]) * (micro / rows)
            loss.backward()
        total += loss.detach()
    return total


# --- how long, and what follows from it ------------------------------------------------------------------

evaluation = Evaluation(val, tokenizer, shape.block_size) if val.notes else None
tokens_to_evaluate = evaluation.tokens_read if evaluation else 0
wanted = [config.max_steps, config.epochs and math.ceil(config.epochs * train.epoch_tokens / tokens_per_step)]
most_steps = min((steps for steps in wanted if steps), default=sys.maxsize)
step_seconds = evaluation_seconds = 0.0
before: float = then.get("seconds", 0.0)  # that earlier starts of this run took


def seconds() -> float:
    """That the run has taken until now."""
    return before + time.perf_counter() - BEGUN


def planned(done: int, eval_interval: int) -> int:
    """The step at which the run is to end, as all processes agree."""
    if config.minutes is None:
        return most_steps
    seconds_left = config.minutes * 60 - seconds()
    fit = min(steps_that_fit(done, seconds_left, step_seconds, eval_interval, evaluation_seconds), most_steps)
    return int(summed(fit if is_first else 0)[0])


first_step: int = then.get("step", 0)
eval_interval: int = config.eval_interval or then.get("eval_interval", 0)
as_before = bool(then) and all(getattr(config, name) == then["config"].get(name) for name in LENGTHS)
if config.minutes is not None and not as_before:  # how fast is it? Gradients of this trial are thrown away
    with fitting(memory_advice):
        for _ in range(TRIAL_STEPS + 1):
            started = time.perf_counter()
            forward_backward(first_step).item()
            step_seconds = time.perf_counter() - started  # of the last; the first may compile
    evaluation_seconds = 2 / 3 * tokens_to_evaluate / tokens_per_step * step_seconds
    model.zero_grad(set_to_none=True)
max_steps = then["max_steps"] if as_before else planned(first_step, eval_interval or sys.maxsize)
if not eval_interval:
    eval_interval = steps_between_evaluations(max_steps, tokens_per_step, tokens_to_evaluate)
    max_steps = planned(first_step, eval_interval)
if first_step > max_steps:
    raise UserError(f"{run_folder} has made {first_step} steps already; ask for more, or for a new --run NAME")
epochs = max_steps * tokens_per_step / train.epoch_tokens
repeats = epochs / train.keys  # a piece in another key is another text
has_learned = config.init_from is not None
dropout, weight_decay = regularisation(repeats, max_steps, config.learning_rate, has_learned, train.keys)
dropout = dropout if config.dropout is None else config.dropout
weight_decay = weight_decay if config.weight_decay is None else config.weight_decay
config = replace(config, dropout=dropout, weight_decay=weight_decay)
set_dropout(model, dropout)
if stepped is not model:
    torch._dynamo.reset()  # the trial was compiled for another share
optimizers = make_optimizers(model, config.learning_rate, config.adam_learning_rate, weight_decay)

# --- go on with the run, or begin it ---------------------------------------------------------------------

metrics_file = run_folder / "metrics.jsonl"
best: dict[str, Any] | None = then.get("best")  # the record of the best evaluation
lowest: float = then.get("lowest_loss", math.inf)  # of training, over an interval of the log
if latest:
    model.load_state_dict(load_checkpoint(latest)[0].state_dict())
    state = load_state(latest)
    average.load_state_dict({name: state.pop(f"average.{name}") for name in average.state_dict()})
    restore_optimizer_state(model, optimizers, state)
unigram: float | None = then.get("unigram_bits_per_note")
if val.notes and unigram is None:
    unigram = unigram_bits_per_note(train, val, meta["vocab_size"])
nothing_known = math.log(meta["vocab_size"])  # nats per token if all tokens were alike
if is_first:
    # Lines of steps that a kill has lost go, as they will be written again; so does a line it has cut short.
    old_lines = metrics_file.read_text().splitlines(keepends=True) if metrics_file.exists() else []
    kept = [line for line in old_lines if line.endswith("\n") and json.loads(line)["step"] <= first_step]
    write_text(metrics_file, "".join(kept))
    # A tokenizer learned anew while this runs is none of it.
    if tokenizer_json != run_folder / "tokenizer.json":
        write_text(run_folder / "tokenizer.json", tokenizer_json.read_text(encoding="utf-8"))
loggers = open_loggers(config.logger, run_folder, config.run, as_table(config), first_step) if is_first else []


def save(name: str, weights: str, evaluated: dict[str, Any] | None) -> None:
    """Save the run as it is; latest/ with what it needs to go on."""
    run = {
        "midigpt": version("midigpt"),
        "language": meta["language"],
        "step": done,
        "max_steps": max_steps,
        "tokens_seen": done * tokens_per_step,
        "epochs": done * tokens_per_step / train.epoch_tokens,
        "weights": weights,
        "evaluation": evaluated,
        "unigram_bits_per_note": unigram,
        "data": meta,
        "config": {name: value for name, value in as_table(config).items() if name != "root"},
        # for going on
        "best": best,
        "lowest_loss": lowest,
        "eval_interval": eval_interval,
        "seconds": seconds(),
    }
    state = None
    if name == "latest":
        state = optimizer_state(model, optimizers)
        state |= {f"average.{weight}": tensor for weight, tensor in average.state_dict().items()}
    save_checkpoint(
        run_folder / name, average if weights == "average" else model, run_folder / "tokenizer.json", run, state
    )


def fail_if_gone_wrong(loss: float, limit: float) -> None:
    if not loss < limit:
        safe = "nothing was saved yet" if saved_at is None else f"the last good checkpoint is {run_folder / 'latest'}"
        raise UserError(
            f"the loss is {loss:.3f} nats per token at step {done}, {lowest:.3f} at its best: the run has gone wrong;"
            f" {safe}; begin a new --run with a smaller --learning-rate"
        )


def write_take() -> str | None:
    """A take of the averaged weights, as a file of the run; None where that fails or can't be read."""
    path = run_folder / "takes" / f"step-{done:06d}.mid"
    try:
        with fitting("nothing: the run goes on without takes"):
            drawing, length = Drawing(seed=config.seed + done), Length(notes=TAKE_NOTES[language.layout])
            marks = training_band({"data": meta, "config": as_table(config)}, done)
            documents = compose(average, tokenizer, language, drawing, length=length, marks=marks)
    except UserError:
        return None
    if not documents:
        return None
    path.parent.mkdir(exist_ok=True)
    write_midi(decode(documents, language), path)
    return str(path.relative_to(run_folder))


# --- the loop --------------------------------------------------------------------------------------------

stop = False


def ask_to_stop(number: int, frame: FrameType | None) -> None:
    global stop
    if stop and number == signal.SIGINT:
        raise KeyboardInterrupt
    stop = True


signal.signal(signal.SIGINT, ask_to_stop)
signal.signal(signal.SIGTERM, ask_to_stop)

peak, peak_source = peak_flops(device)
flops = flops_per_token(model.config)
say(f"train: {shape.type} with {model.parameter_count() / 1e6:.2f} M parameters ({why}) on {device_name(device)}")
in_keys = f" in each of {train.keys} keys" if train.keys > 1 else ""
say(
    f"  {train.epoch_tokens:,} tokens{in_keys}; {max_steps} steps of {tokens_per_step:,} tokens, {epochs:.1f} epochs"
    + (f", as many as fit into {config.minutes:g} minutes" if max_steps < most_steps else "")
    + (f"; from step {first_step}" if first_step else "")
)
say(f"  MFU is of {peak * world / 1e12:.1f} TFLOP/s, {peak_source}; a token takes {flops / 1e6:.1f} MFLOP")

logged = time.perf_counter()
saved_at = logged if latest else None
losses: list[Tensor] = []  # since the last line of the log
is_settled = False  # the first interval may compile, and says little of the speed
step_pace, evaluation_pace = Pace(), Pace()
done = first_step
if origin and evaluation:  # what training has to beat
    found = evaluation(model, device, precision)
    best = {"step": 0, "weights": "raw", **asdict(found)}
    say(f"  before training: {found.bits_per_note:.3f} bits per note on the held-out songs")
    if is_first:
        save("best", "raw", None)
bar = tqdm(desc="train", total=max_steps, initial=first_step, unit="step", disable=None if is_first else True)
while done < max_steps:
    factor = learning_rate_factor(done, max_steps, config.warmup_steps, config.decay)
    for group in groups(optimizers):
        group["lr"] = group["peak"] * factor
    torch.manual_seed(np.random.SeedSequence([config.seed, done, rank]).generate_state(1)[0])  # dropout's
    with fitting(memory_advice):
        losses.append(forward_backward(done))
        update(model, optimizers, average, averaging_weight(done, max_steps))
    done += 1
    bar.update()

    evaluates = done % eval_interval == 0 or done == max_steps
    meets = evaluates or done % config.log_interval == 0 or (stop and world == 1)
    if not meets:
        continue
    # Here all processes meet, and this one waits for its device.
    so_far = torch.stack(losses)
    loss_sum, worst_sum, stops = summed(so_far.mean().item(), so_far.max().item(), stop)
    train_loss, worst, stopping = loss_sum / world, worst_sum / world, stops > 0
    now = time.perf_counter()
    fail_if_gone_wrong(train_loss, max(lowest + EXPLODED, nothing_known))
    fail_if_gone_wrong(worst, max(lowest, nothing_known) + EXPLODED)
    if not torch.stack(torch._foreach_norm([*model.parameters()])).isfinite().all():
        fail_if_gone_wrong(math.nan, math.inf)
    lowest = min(lowest, train_loss)
    since = (now - logged) / len(losses)
    step_seconds = step_pace.add(since) if is_settled else since
    speed = tokens_per_step / since
    if config.minutes is not None and is_settled:
        more_or_less = planned(done, eval_interval)
        # Once the learning rate falls, a run may become shorter, but not longer.
        max_steps = min(max_steps, more_or_less) if is_decaying(done, max_steps, config.decay) else more_or_less
        evaluates = evaluates or done >= max_steps
        bar.total = max_steps
    left = (max_steps - done) * (step_seconds + evaluation_seconds / eval_interval)
    record: dict[str, Any] = {
        "step": done,
        "tokens": done * tokens_per_step,
        "minutes": seconds() / 60,
        "train_loss": train_loss,
        "learning_rate": config.learning_rate * factor,
        "tokens_per_second": speed,
        "mfu": speed * flops / (peak * world),
    }
    line = (
        f"step {done:6d}  loss {train_loss:.4f}  {speed:,.0f} tokens/s  MFU {record['mfu']:.0%}"
        f"  {left / 60:.1f} min left"
    )
    losses.clear()
    is_best = False
    if evaluates and evaluation:
        started = time.perf_counter()
        with fitting(memory_advice):
            raw, averaged = evaluation(model, device, precision), evaluation(average, device, precision)
        fail_if_gone_wrong(raw.nats_per_token, 2 * nothing_known)
        record |= {
            "val_loss": raw.nats_per_token,
            "val_bits_per_note": raw.bits_per_note,
            "average_val_loss": averaged.nats_per_token,
            "average_val_bits_per_note": averaged.bits_per_note,
        }
        better = averaged if averaged.nats_per_token < raw.nats_per_token else raw
        record["bits_per_note_by_position"] = better.by_position
        if is_first and (take := write_take()):
            record["take"] = take
        evaluation_seconds = evaluation_pace.add(time.perf_counter() - started)
        line += f"  held out: {raw.bits_per_note:.3f} bits per note, averaged weights {averaged.bits_per_note:.3f}"
        is_best = best is None or better.bits_per_note < best["bits_per_note"]
        if is_best:
            best = {"step": done, "weights": "average" if better is averaged else "raw", **asdict(better)}
    if is_first:
        append_line(metrics_file, json.dumps(record))
        for logger in loggers:
            logger.log(record)
        if is_best and best:
            save("best", best["weights"], record)
        if evaluates or stopping or saved_at is None or now - saved_at > SAVE_SECONDS:
            save("latest", "raw", record if evaluates else None)
            saved_at = now
    say(line)
    logged = time.perf_counter()
    is_settled = True
    if stopping:
        break
bar.close()
for logger in loggers:
    logger.close()

ending = "finished" + (" before; --epochs, --minutes or --max-steps make it longer" if done == first_step else "")
ending = ending if done >= max_steps else "stopped; the same command goes on"
if not evaluation:
    result = "no song is held out, so nothing tells how well it does"
elif best is None:
    result = "not evaluated yet"
else:
    bits = best["bits_per_note"]
    result = (
        f"best {bits:.3f} bits per note at step {best['step']} on {meta['val']['songs']} held-out songs"
        f" (unigram model {unigram:.3f}, ratio {bits / unigram:.3f})"
    )
say(f"train: step {done} of {max_steps}, {ending}; {result}; {seconds() / 60:.1f} min; in {run_folder}")
if world > 1:
    dist.barrier()  # who goes while the first still saves may be aborted
    dist.destroy_process_group()
