"""Training as a user runs it: it learns, ends when it is asked to, goes on exactly, and says what is wrong."""

import json
import os
import resource
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from midigpt.dataset import make_dataset
from midigpt.documents import Split
from midigpt.index import index_files
from midigpt.midi import read_midi, write_midi
from midigpt.sides import line_tokens, load_side
from midigpt.tokenizer import learn_tokenizer
from midigpt.train_data import make_train_bin
from tests.conftest import OF_TRACKS, PROJECT, SPLIT, TINY, make_songs, melody, ok, refusal, run_script

TRAIN = "scripts/train.py"


def metrics(root: Path, run: str = "default") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (root / "train" / "runs" / run / "metrics.jsonl").read_text().splitlines()]


def lasting(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What does not depend on the clock."""
    clock = "minutes", "tokens_per_second", "mfu"
    return [{name: value for name, value in record.items() if name not in clock} for record in records]


def weights(root: Path, run: str) -> bytes:
    return (root / "train" / "runs" / run / "latest" / "model.safetensors").read_bytes()


def start(*flags: str | Path, launcher: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    command = [sys.executable, *launcher, str(PROJECT / TRAIN), *map(str, flags)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def wait_for_lines(process: subprocess.Popen[str], root: Path, run: str, lines: int) -> None:
    file = root / "train" / "runs" / run / "metrics.jsonl"
    while not (file.exists() and file.read_text().count("\n") >= lines) and process.poll() is None:
        time.sleep(0.01)


# --- it learns -------------------------------------------------------------------------------------------


def test_training_learns_and_leaves_a_run(trained: Path) -> None:
    records = metrics(trained)
    assert records[-1]["step"] == 150
    assert records[-1]["train_loss"] < records[0]["train_loss"] - 0.5
    assert records[-1]["tokens"] == 150 * 4 * 32 and records[-1]["tokens_per_second"] > 0 and records[-1]["mfu"] > 0
    evaluated = [record for record in records if "val_loss" in record]
    assert [record["step"] for record in evaluated] == [75, 150]
    _, meta = load_side(trained, "val")
    tokens_per_note = len(line_tokens(load_side(trained, "val")[0])) / meta["val"]["notes"]
    last = evaluated[-1]
    for kind in ("", "average_"):
        bits = last[f"{kind}val_loss"] / np.log(2) * tokens_per_note
        assert last[f"{kind}val_bits_per_note"] == pytest.approx(bits)
    assert last["val_loss"] != last["average_val_loss"]
    run = trained / "train" / "runs" / "default"
    files = {"latest", "best", "metrics.jsonl", "takes", "lock", "tokenizer.json"}
    assert {path.name for path in run.iterdir()} == files
    best = json.loads((run / "best" / "run.json").read_text())
    least = min(min(record["val_loss"], record["average_val_loss"]) for record in evaluated)
    assert best["best"]["nats_per_token"] == least
    assert best["evaluation"]["step"] == best["step"]


def test_every_evaluation_leaves_a_take(trained: Path) -> None:
    run = trained / "train" / "runs" / "default"
    takes = [record["take"] for record in metrics(trained) if "val_loss" in record]
    assert takes == ["takes/step-000075.mid", "takes/step-000150.mid"]
    assert all(read_midi(run / take).notes >= 64 for take in takes)


def test_the_learning_rate_ends_at_nearly_nothing(trained: Path) -> None:
    rates = [record["learning_rate"] for record in metrics(trained)]
    assert max(rates) == 2e-2 and rates[-1] == pytest.approx(2e-2 / 75)


def test_windows_in_parts_give_the_same_steps(work: Path) -> None:
    flags = ("--root", work, *TINY, "--max-steps", "10", "--eval-interval", "10", "--dropout", "0")
    ok(run_script(TRAIN, *flags, "--run", "whole"))
    ok(run_script(TRAIN, *flags, "--run", "parts", "--micro-batch-size", "1", "--logger", "tensorboard"))
    assert any((work / "train" / "runs" / "parts" / "tensorboard").iterdir())
    losses = [[record["train_loss"] for record in metrics(work, run)] for run in ("whole", "parts")]
    assert losses[0] == pytest.approx(losses[1], abs=0.02)
    assert losses[0][-1] < losses[0][0]


# --- how long --------------------------------------------------------------------------------------------


def test_epochs_are_counted_in_tokens(work: Path) -> None:
    tokens = len(load_side(work, "train")[0].tokens)
    ok(run_script(TRAIN, "--root", work, *TINY, "--epochs", "0.5"))
    assert abs(metrics(work)[-1]["tokens"] - tokens / 2) < 4 * 32


def test_a_run_ends_inside_its_minutes_with_its_schedule_done(work: Path) -> None:
    before = time.monotonic()
    out = ok(run_script(TRAIN, "--root", work, *TINY, "--minutes", "0.3"))
    assert 6 < time.monotonic() - before < 0.3 * 60 + 5  # 5 for what comes before and after
    last = metrics(work)[-1]
    assert "finished" in out and "as many as fit into 0.3 minutes" in out
    assert last["learning_rate"] < 0.05 * max(record["learning_rate"] for record in metrics(work))
    assert "val_loss" in last
    again = ok(run_script(TRAIN, "--root", work, *TINY, "--minutes", "0.3"))
    assert f"step {last['step']} of {last['step']}, finished before" in again and metrics(work)[-1] == last


def test_the_shortest_of_the_lengths_counts(work: Path) -> None:
    assert "step 3 of 3, finished" in ok(
        run_script(TRAIN, "--root", work, *TINY, "--minutes", "9", "--epochs", "9", "--max-steps", "3")
    )


def test_a_preset_and_flags_after_it(work: Path) -> None:
    flags = ("--config", "small", "--max-steps", "1", "--model.n-layer", "1", "--model.block-size", "32")
    assert "(as --config small says)" in ok(run_script(TRAIN, "--root", work, *flags, "--batch-size", "2"))
    config = json.loads((work / "train" / "runs" / "default" / "best" / "config.json").read_text())
    assert (config["num_hidden_layers"], config["hidden_size"]) == (1, 384)


def test_without_a_preset_the_choice_is_explained(work: Path) -> None:
    out = ok(run_script(TRAIN, "--root", work, "--device", "cpu", "--max-steps", "1", "--model.block-size", "32"))
    assert "--config demo: on a CPU larger ones take many hours" in out


# --- going on --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_goes_on_exactly(work: Path, number: signal.Signals) -> None:
    flags = ("--root", work, *TINY, "--max-steps", "200", "--eval-interval", "100", "--dropout", "0.1")
    ok(run_script(TRAIN, *flags, "--run", "straight"))
    process = start(*flags, "--run", "halved")
    wait_for_lines(process, work, "halved", 3)
    process.send_signal(number)
    out, error = process.communicate()
    assert process.returncode == 0, error
    stopped = metrics(work, "halved")[-1]["step"]
    assert stopped < 200 and "stopped; the same command goes on" in out
    assert f"from step {stopped}" in ok(run_script(TRAIN, *flags, "--run", "halved"))
    assert weights(work, "straight") == weights(work, "halved")
    assert lasting(metrics(work, "halved"))[-1] == lasting(metrics(work, "straight"))[-1]


def test_two_processes_stop_and_go_on_exactly_and_learn_what_one_does(work: Path) -> None:
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--")
    flags = ("--root", work, *TINY, "--max-steps", "60", "--eval-interval", "30", "--dropout", "0.1")
    flags = (*flags, "--micro-batch-size", "1")
    for run in ("straight", "halved", "halved"):
        process = start(*flags, "--run", run, launcher=launcher)
        if run == "halved" and not (work / "train" / "runs" / "halved").exists():
            wait_for_lines(process, work, "halved", 3)
            process.send_signal(signal.SIGTERM)
        out, error = process.communicate()
        if process.returncode:  # torchrun's own, when it is stopped
            assert "SignalException" in error and "stopped; the same command goes on" in out, out + error
            assert metrics(work, "halved")[-1]["step"] < 60
    assert weights(work, "straight") == weights(work, "halved")
    assert lasting(metrics(work, "halved"))[-1] == lasting(metrics(work, "straight"))[-1]
    ok(run_script(TRAIN, *flags, "--run", "one"))
    two, one = (metrics(work, run) for run in ("straight", "one"))
    assert two[0]["train_loss"] == pytest.approx(one[0]["train_loss"], abs=0.02)
    assert two[-1]["val_loss"] == pytest.approx(one[-1]["val_loss"], abs=0.1)


def test_a_killed_run_goes_on_from_the_last_saving(work: Path) -> None:
    flags = ("--root", work, *TINY, "--max-steps", "100", "--eval-interval", "20")
    ok(run_script(TRAIN, *flags, "--run", "straight"))
    process = start(*flags, "--run", "killed")
    wait_for_lines(process, work, "killed", 15)
    process.kill()
    process.communicate()
    assert metrics(work, "killed")[-1]["step"] < 100
    assert "from step" in ok(run_script(TRAIN, *flags, "--run", "killed"))
    assert weights(work, "straight") == weights(work, "killed")
    assert lasting(metrics(work, "straight")) == lasting(metrics(work, "killed"))


def test_two_trainings_of_one_run_are_kept_apart(work: Path) -> None:
    flags = ("--root", work, *TINY, "--max-steps", "5000", "--eval-interval", "5000")
    process = start(*flags)
    wait_for_lines(process, work, "default", 1)
    error = refusal(run_script(TRAIN, *flags))
    process.kill()
    process.communicate()
    assert f"is being trained already (process {process.pid})" in error


def test_what_a_kill_leaves_of_the_metrics_is_mended(work: Path) -> None:
    flags = ("--root", work, *TINY, "--max-steps", "8", "--eval-interval", "4")
    ok(run_script(TRAIN, *flags))
    before = metrics(work)
    file = work / "train" / "runs" / "default" / "metrics.jsonl"
    with file.open("a") as out:
        out.write('{"step": 10, "train_loss": 1.0}\n{"step": 12, "tra')
    ok(run_script(TRAIN, *flags))
    assert metrics(work) == before
    shutil.rmtree(work / "train" / "runs" / "default" / "latest")  # as if killed before the first evaluation
    ok(run_script(TRAIN, *flags))
    assert [record["step"] for record in metrics(work)] == [record["step"] for record in before]


def test_a_run_goes_on_without_its_flags(work: Path) -> None:
    ok(run_script(TRAIN, "--root", work, *TINY, "--max-steps", "4"))
    assert "step 6 of 6, finished" in ok(run_script(TRAIN, "--root", work, "--max-steps", "6"))
    assert "step 6 of 6, finished" in ok(run_script(TRAIN, "--root", work))


def test_a_finished_run_is_left_as_it_is(trained: Path) -> None:
    latest = trained / "train" / "runs" / "default" / "latest" / "model.safetensors"
    before = latest.stat().st_mtime_ns
    assert "step 150 of 150, finished" in ok(run_script(TRAIN, "--root", trained, *TINY, "--max-steps", "150"))
    assert latest.stat().st_mtime_ns == before


def test_a_run_begins_from_another_ones_weights_and_tokenizer(trained: Path, tmp_path: Path) -> None:
    best = trained / "train" / "runs" / "default" / "best"
    make_songs(tmp_path / "raw_data", 12)
    index_files(tmp_path)
    make_dataset(tmp_path, OF_TRACKS)
    flags = ("--root", tmp_path, "--init-from", best)
    ok(run_script("scripts/train_bin.py", *flags, "--val-fraction", "0.2"))
    assert not (tmp_path / "cache" / "tokenizer.json").exists()
    out = ok(run_script(TRAIN, *flags, "--device", "cpu", "--max-steps", "2", "--batch-size", "4"))
    assert f"as {best} has it" in out
    # Once begun, it needs the other one no more.
    assert "step 3 of 3, finished" in ok(run_script(TRAIN, "--root", tmp_path, "--max-steps", "3"))
    tuned = tmp_path / "train" / "runs" / "default" / "best"
    assert (tuned / "tokenizer.json").read_bytes() == (best / "tokenizer.json").read_bytes()
    before = json.loads((best / "run.json").read_text())["best"]["nats_per_token"]
    assert metrics(tmp_path)[0]["train_loss"] < before + 0.5  # it has not begun anew
    assert "before training: " in out
    assert "has another shape" in refusal(run_script(TRAIN, *flags, "--run", "two", "--model.n-layer", "3"))


# --- what is wrong ---------------------------------------------------------------------------------------


def test_runs_that_do_not_fit_are_refused(trained: Path) -> None:
    flags = ("--root", trained, *TINY)
    assert "begun with another shape" in refusal(run_script(TRAIN, *flags, "--model.n-layer", "2"))
    assert "begun with another batch size" in refusal(run_script(TRAIN, *flags, "--batch-size", "2"))
    assert "begun with another seed" in refusal(run_script(TRAIN, *flags, "--seed", "2"))
    best = trained / "train" / "runs" / "default" / "best"
    assert "must be a plain name" in refusal(run_script(TRAIN, "--root", trained, "--run", "../other"))
    assert not (trained / "train" / "other").exists()
    assert "was not begun from" in refusal(run_script(TRAIN, *flags, "--init-from", best))
    assert "has made 150 steps already" in refusal(run_script(TRAIN, *flags, "--max-steps", "100"))


def test_other_songs_need_a_new_run(trained: Path, tmp_path: Path) -> None:
    work = Path(shutil.copytree(trained, tmp_path / "work"))
    write_midi(melody(1000), work / "raw_data" / "new.mid")
    index_files(work)
    make_dataset(work)
    make_train_bin(work, SPLIT)
    error = refusal(run_script(TRAIN, "--root", work, *TINY, "--max-steps", "200"))
    assert "begun with other songs; begin a new run with --run NAME" in error


def test_a_tokenizer_that_did_not_make_train_bin_is_refused(trained: Path, work: Path) -> None:
    learn_tokenizer(work, 60, SPLIT)
    error = refusal(run_script(TRAIN, "--root", work, *TINY))
    assert "another tokenizer" in error and "make train-bin" in error
    make_train_bin(work, SPLIT)
    best = trained / "train" / "runs" / "default" / "best"
    error = refusal(run_script(TRAIN, "--root", work, "--run", "tuned", "--init-from", best))
    assert "another tokenizer" in error and f'ARGS="--init-from {best}"' in error


def test_training_goes_without_held_out_songs(work: Path) -> None:
    learn_tokenizer(work, 60, Split(0.0, 0))
    assert "no song is held out" in ok(run_script("scripts/train_bin.py", "--root", work, "--val-fraction", "0"))
    assert "nothing tells how well it does" in ok(run_script(TRAIN, "--root", work, *TINY, "--max-steps", "4"))
    assert "val_loss" not in metrics(work)[-1]


def test_less_music_than_a_block_is_told(work: Path) -> None:
    error = refusal(run_script(TRAIN, "--root", work, *TINY, "--model.block-size", "100000"))
    assert "no more than one block of 100000" in error


def test_tokens_that_the_vocabulary_lacks_are_told(work: Path) -> None:
    meta = work / "train" / "meta.json"
    meta.write_text(meta.read_text().replace('"vocab_size": 80', '"vocab_size": 60'))
    error = refusal(run_script(TRAIN, "--root", work, *TINY))
    assert "than the 60 that" in error and "make train-bin" in error


@pytest.mark.parametrize("flags", [("--adam-learning-rate", "1e3"), ("--learning-rate", "1e30")])
def test_a_run_that_goes_wrong_ends_and_names_what_is_good(work: Path, flags: tuple[str, ...]) -> None:
    ok(run_script(TRAIN, "--root", work, *TINY, "--max-steps", "4"))
    latest = work / "train" / "runs" / "default" / "latest"
    before = (latest / "model.safetensors").read_bytes()
    error = refusal(run_script(TRAIN, "--root", work, *TINY, "--max-steps", "40", "--warmup-steps", "0", *flags))
    assert "the run has gone wrong" in error and f"the last good checkpoint is {latest}" in error
    assert (latest / "model.safetensors").read_bytes() == before


def test_a_full_disk_is_told_and_costs_nothing(work: Path) -> None:
    ok(run_script(TRAIN, "--root", work, *TINY, "--max-steps", "4"))
    before = weights(work, "default")

    def small_files() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (8000, 8000))

    command = [sys.executable, str(PROJECT / TRAIN), "--root", str(work), *TINY, "--max-steps", "6"]
    result = subprocess.run(command, capture_output=True, text=True, preexec_fn=small_files)
    assert "can't be saved" in refusal(result)
    assert weights(work, "default") == before
    assert "step 6 of 6, finished" in ok(run_script(TRAIN, "--root", work, *TINY, "--max-steps", "6"))


def test_too_little_memory_on_the_device_is_told(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr("midigpt.model.next_token_loss", no_room)
    monkeypatch.setattr(sys, "argv", ["train.py", "--root", str(work), *TINY, "--max-steps", "1"])
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    hook = sys.excepthook
    try:
        with pytest.raises(Exception, match=r"don't fit into the device's memory; try --micro-batch-size 2"):
            runpy.run_path(str(PROJECT / TRAIN))
    finally:
        for number, handler in zip((signal.SIGINT, signal.SIGTERM), before, strict=True):
            signal.signal(number, handler)
        sys.excepthook = hook


def test_the_whole_pipeline_on_real_files(corpus: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "raw_data").symlink_to(corpus("mini"))
    ok(run_script("scripts/index.py", "--root", tmp_path))
    assert "150 files in 150 documents" in ok(run_script("scripts/dataset.py", "--root", tmp_path))
    ok(run_script("scripts/tokenizer.py", "--root", tmp_path, "--vocab-size", "256"))
    ok(run_script("scripts/train_bin.py", "--root", tmp_path))
    shape = ("--model.n-layer", "2", "--model.n-head", "2", "--model.n-embd", "64", "--model.block-size", "64")
    out = ok(run_script(TRAIN, "--root", tmp_path, *shape, "--max-steps", "200", "--warmup-steps", "20"))
    assert float(out.rpartition("ratio ")[2].partition(")")[0]) < 1
