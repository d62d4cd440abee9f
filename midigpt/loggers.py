"""Where metrics go besides metrics.jsonl: TensorBoard, Weights & Biases."""

import json
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from midigpt.files import UserError, install, write_text

PROJECT = "midigpt"  # in Weights & Biases


class Logger(NamedTuple):
    log: Callable[[dict[str, Any]], None]  # a record of metrics.jsonl, with its step
    close: Callable[[], None]


def open_loggers(
    names: tuple[str, ...], run_folder: Path, run_name: str, config: dict[str, Any], step: int = 0
) -> list[Logger]:
    """The loggers of a run that has made `step` steps; a resumed run goes on in the same curves.

    They get the scalars of a record; of a table in it each entry, as name/key. Raises UserError where a package is
    missing or the service refuses.
    """
    return [OPENERS[name](run_folder, run_name, config, step) for name in dict.fromkeys(names)]


def _scalars(record: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Names and values; the step, being the axis, and what is no number are left out."""
    for name, value in record.items():
        if isinstance(value, dict):
            yield from _scalars(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and prefix + name != "step":
            yield prefix + name, value


def _open_tensorboard(run_folder: Path, run_name: str, config: dict[str, Any], step: int) -> Logger:
    """Event files in run_folder/tensorboard."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError(f"--logger tensorboard needs a package more; install it with: {install('log')}") from None
    # Steps that a kill has lost will come again; TensorBoard drops the first ones.
    writer = SummaryWriter(run_folder / "tensorboard", purge_step=step + 1, flush_secs=10)

    def log(record: dict[str, Any]) -> None:
        for name, value in _scalars(record):
            writer.add_scalar(name, value, record["step"])

    return Logger(log, writer.close)


def _open_wandb(run_folder: Path, run_name: str, config: dict[str, Any], step: int) -> Logger:
    """A run of the service; run_folder/wandb keeps its id and, with WANDB_MODE=offline, what can be synced later.

    Steps that a kill has lost and that come again are dropped by wandb: it has had them.
    """
    try:
        import wandb
    except ImportError:
        raise UserError(f"--logger wandb needs a package more; install it with: {install('log')}") from None
    id_file = run_folder / "wandb" / "midigpt-run-id"
    if not step or not id_file.exists():
        write_text(id_file, secrets.token_hex(8))
    try:
        run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=run_name,
            id=id_file.read_text(),
            resume="allow",
            dir=run_folder,
            config=json.loads(json.dumps(config, default=str)),
            settings=wandb.Settings(console="off", quiet=True),
        )
    except wandb.Error as error:
        reason = str(error).rstrip(".")
        raise UserError(f"wandb: {reason}; log in with .venv/bin/wandb login, or set WANDB_MODE=offline") from None
    return Logger(lambda record: run.log(dict(_scalars(record)), step=record["step"]), run.finish)


OPENERS = {"tensorboard": _open_tensorboard, "wandb": _open_wandb}
