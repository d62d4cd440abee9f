"""Metrics in TensorBoard and Weights & Biases: what is written is what was measured, also after a resumption."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from midigpt.files import UserError
from midigpt.loggers import open_loggers


def record(step: int, train_loss: float) -> dict[str, Any]:
    """As in metrics.jsonl, after an evaluation."""
    return {
        "step": step,
        "tokens": 100 * step,
        "train_loss": train_loss,
        "bits_per_note_by_position": {"0": 13.5, "16": 9.25},
        "take": "takes/step-000001.mid",
        "mfu": None,
    }


def log(name: str, run_folder: Path, losses: dict[int, float], step: int = 0) -> None:
    for logger in open_loggers((name, name), run_folder, "waltzes", {"root": Path("music"), "seed": 4321}, step):
        for at, loss in losses.items():
            logger.log(record(at, loss))
        logger.close()


def test_tensorboard_has_every_step_once_after_a_resumption(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log("tensorboard", tmp_path, {1: 5.0, 2: 4.0, 3: 30.0, 4: 40.0})
    log("tensorboard", tmp_path, {3: 3.0, 4: 2.0, 5: 1.0}, step=2)  # a kill had lost steps 3 and 4
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    names = {"tokens", "train_loss", "bits_per_note_by_position/0", "bits_per_note_by_position/16"}
    assert set(events.Tags()["scalars"]) == names
    assert [(event.step, event.value) for event in events.Scalars("train_loss")] == [(n, 6.0 - n) for n in range(1, 6)]
    assert {event.value for event in events.Scalars("bits_per_note_by_position/16")} == {9.25}


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """wandb without network, account, or traces in the home folder."""
    wandb = pytest.importorskip("wandb", reason="needs wandb: pip install -e '.[log]'")
    monkeypatch.setenv("WANDB_MODE", "offline")
    for folder in ("CONFIG", "CACHE", "DATA"):
        monkeypatch.setenv(f"WANDB_{folder}_DIR", str(tmp_path / folder))
    yield
    wandb.teardown()


def test_wandb_goes_on_with_its_run(offline: None, tmp_path: Path) -> None:
    run_folder = tmp_path / "run"
    files: list[Path] = []
    for step in (0, 2, 0):  # begun, gone on with, begun anew
        log("wandb", run_folder, {step + 1: 2.0, step + 2: 3.0625}, step)
        (new,) = set((run_folder / "wandb").glob("offline-run-*/run-*.wandb")) - set(files)
        files.append(new)
    for file in files:
        deadline = time.monotonic() + 30
        while b"3.0625" not in file.read_bytes() and time.monotonic() < deadline:
            time.sleep(0.05)  # another process writes it
        written = file.read_bytes()
        for text in (b"waltzes", b"music", b"4321", b"train_loss", b"3.0625", b"bits_per_note_by_position/16"):
            assert text in written
        assert b"takes/" not in written and b"mfu" not in written
    ids = [file.stem for file in files]
    assert ids[0] == ids[1] != ids[2]


@pytest.mark.parametrize(("name", "module"), [("tensorboard", "torch.utils.tensorboard"), ("wandb", "wandb")])
def test_a_missing_package_is_named(name: str, module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=rf"--logger {name} .*pip install .*'\.\[log\]'"):
        open_loggers((name,), tmp_path, "waltzes", {})
    assert not [*tmp_path.iterdir()]


def test_a_refusal_of_wandb_is_a_sentence(offline: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    def init(**_: Any) -> None:
        raise wandb.errors.CommError("It timed out.")

    monkeypatch.setattr(wandb, "init", init)
    with pytest.raises(UserError, match=r"wandb: It timed out; log in .* WANDB_MODE=offline"):
        open_loggers(("wandb",), tmp_path, "waltzes", {})


def test_without_loggers_nothing_slow_is_imported(tmp_path: Path) -> None:
    assert open_loggers((), tmp_path, "waltzes", {}) == []
    code = "import sys, midigpt.loggers; sys.exit('torch' in sys.modules or 'wandb' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
