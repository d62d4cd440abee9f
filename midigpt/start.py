"""Where a training run starts: its settings made complete, its tokenizer, and whether all that belongs together."""

import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from midigpt.config import as_table, as_words, from_table, load_preset, parse_config
from midigpt.devices import pick_device
from midigpt.files import UserError, make
from midigpt.model import GPT
from midigpt.plan import choose_preset
from midigpt.settings import Config, validate
from midigpt.tokenizer import file_sha256, tokenizer_path

EPOCHS, MINUTES = 60.0, 30.0  # where no length is given
LENGTHS = {"max_steps", "epochs", "minutes"}


def complete(
    config: Config,
    description: str | None,
    latest: Path | None,
    then: dict[str, Any],
    origin: GPT | None,
    tokens: int,
) -> tuple[Config, str]:
    """The settings of a run, and why those that the command line leaves open are what they are.

    They are as --config says; as the run was begun (`latest`, its checkpoint, whose run.json is `then`); as the model
    has them that it begins from; or chosen for so many training tokens. Raises UserError for settings that can't be.
    """
    if config.config:
        why = f"as --config {config.config} says"
    else:
        if latest:
            default, why = from_table(Config, then["config"], str(latest)), "as it was begun"
        elif origin:
            table = {name: value for name, value in asdict(origin.config).items() if name in asdict(config.model)}
            default, why = from_table(Config, {"model": table}, ""), f"as {config.init_from} has it"
        else:
            preset, reason = choose_preset(tokens, (config.device or pick_device()).partition(":")[0])
            default, why = load_preset(Config, preset), f"--config {preset}: {reason}"
        config = parse_config(Config, description, replace(default, root=config.root, run=config.run))
    validate(config)
    if config.model.type == "gpt2":
        config = replace(config, model=replace(config.model, positions="index"))
    flags = [argument.replace("-", "_") for argument in sys.argv[1:]]
    if given := {name for name in LENGTHS if any(flag.startswith(f"__{name}") for flag in flags)}:
        rest: dict[str, Any] = dict.fromkeys(LENGTHS - given)
        config = replace(config, **rest)
    elif not any(getattr(config, name) for name in LENGTHS):
        config = replace(config, epochs=EPOCHS, minutes=MINUTES)
    return config, why


def check_size(config: Config, tokens: int, processes: int) -> None:
    """Raises UserError where there are too few training tokens, or a batch can't be shared out."""
    if tokens <= config.model.block_size:
        raise UserError(
            f"{config.root / 'train' / 'train.bin'} has {tokens} tokens, no more than one block of"
            f" {config.model.block_size}; add music, or train on shorter blocks: --model.block-size"
        )
    if config.batch_size % (processes * (config.micro_batch_size or 1)):
        raise UserError(
            f"--batch-size {config.batch_size} is not a multiple of {processes} processes times --micro-batch-size"
            f" {config.micro_batch_size or 1}"
        )


def check_same(config: Config, run_folder: Path, then: dict[str, Any], meta: dict[str, Any]) -> None:
    """Raises UserError where a run would go on with something else than it was begun with."""
    if not then:
        return
    parts = {  # what must stay as it was, in the words of a refusal
        "another tokenizer": lambda run: run["data"]["tokenizer"],
        "other keys of the songs": lambda run: run["data"]["train"].get("keys", 1),
        "other songs": lambda run: [{**run["data"][side], "keys": 1} for side in ("train", "val")],
        f"another shape ({as_words(then['config']['model'])})": lambda run: run["config"]["model"],
        f"another batch size than {config.batch_size}": lambda run: run["config"]["batch_size"],
        f"another seed than {config.seed}": lambda run: run["config"]["seed"],
    }
    now = {"data": meta, "config": as_table(config)}
    for difference, part in parts.items():
        if part(then) != part(now):
            raise UserError(f"{run_folder} was begun with {difference}; begin a new run with --run NAME")


def find_tokenizer(
    config: Config, latest: Path | None, meta: dict[str, Any], largest: int
) -> tuple[Path, Tokenizer]:
    """The tokenizer of a run: its own, that of the model it begins from, or the working folder's.

    Raises UserError where there is none, or the tokens, up to `largest`, are not its.
    """
    source = latest or config.init_from
    path = source / "tokenizer.json" if source else tokenizer_path(config.root)
    if not path.exists():
        raise UserError(
            f"{path} does not exist; name the --init-from whose tokenizer made train.bin, or learn a tokenizer"
            f" of your own: {make(config.root, 'tokenizer', 'train-bin')}"
        )
    if file_sha256(path) != meta["tokenizer"]:
        flags = f' ARGS="--init-from {config.init_from}"' if config.init_from else ""
        raise UserError(
            f"train.bin was made with another tokenizer than {path};"
            f" make it again with: {make(config.root, 'train-bin')}{flags}"
        )
    tokenizer = Tokenizer.from_file(str(path))
    if tokenizer.get_vocab_size() != meta["vocab_size"] or largest >= meta["vocab_size"]:
        raise UserError(
            f"train.bin or val.bin holds other tokens than the {meta['vocab_size']} that train/meta.json names;"
            f" make them again with: {make(config.root, 'train-bin')}"
        )
    return path, tokenizer
