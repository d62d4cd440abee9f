"""What bench/train.py tells is what was measured; the peer is a stand-in with nanoGPT's interface."""

import pickle
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import nanogpt
import numpy as np
import pytest
import torch
import train_learning
import train_presets
import train_speed
from nanogpt import Shape
from train_learning import Plan

import midigpt.config
import midigpt.devices
import train
from midigpt.files import UserError, read_json
from midigpt.sides import load_side
from tests.conftest import ok, run_script

DEFAULT = Shape(vocab_size=80, block_size=256, n_layer=4, n_head=4, n_embd=128, batch_size=16)
TINY = Shape(vocab_size=80, block_size=16, n_layer=1, n_head=2, n_embd=16, batch_size=2)

MODEL = """
from dataclasses import dataclass
import torch
import torch.nn.functional as F

@dataclass
class GPTConfig:
    block_size: int
    vocab_size: int
    n_layer: int
    n_head: int
    n_embd: int
    dropout: float
    bias: bool

class GPT(torch.nn.Module):
    def __init__(self, config):
        super().__init__()
        self.lm_head = torch.nn.Embedding(config.vocab_size, config.vocab_size)
        torch.nn.init.zeros_(self.lm_head.weight)
        print("number of parameters")

    def forward(self, idx, targets=None):
        logits = self.lm_head(idx)
        if targets is None:
            return logits[:, [-1]], None
        return logits, F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    def configure_optimizers(self, weight_decay, learning_rate, betas, device_type):
        return torch.optim.SGD(self.parameters(), lr=learning_rate)
"""

# Takes what configurator.py would make of the command line; its "training" counts which token follows which.
TRAIN = """
import os, pickle, sys
import numpy as np
import torch
from model import GPT, GPTConfig

values = dict(flag.removeprefix("--").split("=") for flag in sys.argv[1:])
seed_offset = 0
torch.manual_seed(1337 + seed_offset)
with open("data/tokens/meta.pkl", "rb") as f:
    vocab_size = pickle.load(f)["vocab_size"]
tokens = np.memmap("data/tokens/train.bin", dtype=np.uint16, mode="r").astype(int)
counts = torch.full((vocab_size, vocab_size), 0.1)
counts.index_put_((torch.tensor(tokens[:-1]), torch.tensor(tokens[1:])), torch.tensor(1.0), accumulate=True)
logits = torch.log(counts / counts.sum(1, keepdim=True))
if values["learning_rate"] == "0.5":
    logits = logits * 0
os.makedirs("out")
torch.save({"model": {"_orig_mod.lm_head.weight": logits}, "config": values}, "out/ckpt.pt")
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    folder = tmp_path / "nanoGPT"
    folder.mkdir()
    for name, text in {"train.py": TRAIN, "model.py": MODEL, "configurator.py": "", "bench.py": ""}.items():
        (folder / name).write_text(text)
    return folder


def plan(checkout: Path, root: Path, work: Path, rates: tuple[float, ...] = (0.1,)) -> Plan:
    return Plan(checkout, root, work, "demo", "cpu", 20, rates, 1)


# --- the peer --------------------------------------------------------------------------------------------


def test_a_folder_that_is_no_nanogpt_is_told(checkout: Path) -> None:
    nanogpt.check(checkout)
    (checkout / "train.py").write_text(TRAIN.replace("1337", "42"))
    with pytest.raises(UserError, match="seed_offset"):
        nanogpt.check(checkout)
    (checkout / "model.py").unlink()
    with pytest.raises(UserError, match=r"model\.py missing"):
        nanogpt.check(checkout)


def test_its_folder_holds_our_tokens_and_its_own_code_but_for_the_seed(
    checkout: Path, prepared: Path, tmp_path: Path
) -> None:
    nanogpt.prepare(checkout, tmp_path / "run", prepared, 80, seed=7)
    data = tmp_path / "run" / "data" / "tokens"
    for name in ("train", "val"):
        tokens = np.memmap(data / f"{name}.bin", dtype=np.uint16, mode="r")
        assert np.array_equal(tokens, load_side(prepared, name)[0].tokens)
    assert pickle.loads((data / "meta.pkl").read_bytes()) == {"vocab_size": 80}
    changed = set((tmp_path / "run" / "train.py").read_text().splitlines()) ^ set(TRAIN.splitlines())
    assert changed == {"torch.manual_seed(1337 + seed_offset)", "torch.manual_seed(7 + seed_offset)"}
    assert (tmp_path / "run" / "model.py").read_text() == MODEL


def test_its_step_learns(checkout: Path) -> None:
    tokens = np.tile(np.arange(8), 50).astype(np.uint16)
    built: list[Any] = []
    build = nanogpt.build
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nanogpt, "build", lambda *args: built.append(build(*args)) or built[0])
        step = nanogpt.train_step(checkout, TINY, tokens, learning_rate=1.0)
    for _ in range(100):
        step()
    assert built[0].lm_head.weight[:8].argmax(1).tolist() == [1, 2, 3, 4, 5, 6, 7, 0]


def test_the_time_that_its_bench_prints_is_found() -> None:
    output = "19/20 loss: 8.1\ntime per iteration: 61.5000ms, MFU: 71.20%\n"
    assert nanogpt.seconds_per_step(output) == pytest.approx(0.0615)
    with pytest.raises(UserError, match="no CUDA"):
        nanogpt.seconds_per_step("no CUDA")


# --- learning --------------------------------------------------------------------------------------------


def test_a_run_is_evaluated_as_it_ended_and_made_once(checkout: Path, prepared: Path, tmp_path: Path) -> None:
    shape = replace(TINY, vocab_size=load_side(prepared, "val")[1]["vocab_size"])
    judge = train_learning.judge(prepared, shape.block_size)
    runs = plan(checkout, prepared, tmp_path / "work")
    first = train_learning.nanogpt_run(runs, shape, judge, 0.1, seed=1337)
    assert first["nats_per_token"] < 0.8 * np.log(shape.vocab_size)
    again = train_learning.nanogpt_run(runs, shape, judge, 0.1, seed=1337)
    assert again == first
    knows_nothing = train_learning.nanogpt_run(runs, shape, judge, 0.5, seed=1337)
    assert knows_nothing["nats_per_token"] == pytest.approx(np.log(shape.vocab_size), rel=1e-5)
    (checkout / "train.py").write_text(TRAIN + "raise SystemExit(3)\n")
    with pytest.raises(UserError, match=r"exit code 3; see .*log\.txt"):
        train_learning.nanogpt_run(runs, shape, judge, 0.1, seed=1337)


def test_our_feed_forward_makes_up_for_its_positions() -> None:
    shape = replace(DEFAULT, vocab_size=4096)
    n_hidden, ours = train_learning.equal_hidden(shape, 1_344_640)  # nanoGPT's
    assert abs(ours / 1_344_640 - 1) < 0.003
    assert train_learning.equal_hidden(shape, ours) == (n_hidden, ours)
    with pytest.raises(UserError, match="no feed-forward"):
        train_learning.equal_hidden(shape, 300_000)


def test_the_verdict_is_on_the_best_learning_rate() -> None:
    rates = {1e-3: {"nats_per_token": 5.0}, 3e-3: {"nats_per_token": 4.0}, 1e-2: {"nats_per_token": 4.5}}
    found = train_learning.verdict(rates, {"nats_per_token": 4.1})
    assert (found["best_learning_rate"], found["is_inside"], found["holds"]) == (3e-3, True, False)
    assert found["difference"] == pytest.approx(0.1)
    assert train_learning.verdict(rates, {"nats_per_token": 4.0})["holds"]
    assert not train_learning.verdict({**rates, 1e-2: {"nats_per_token": 3.0}}, {"nats_per_token": 4.1})["is_inside"]
    rows = [{"nats_per_token": nats, "bits_per_note": 2 * nats} for nats in (4.0, 5.0, 6.0)]
    assert train_learning.summary(rows) == {"nats_per_token": 5.0, "spread": 1.0, "bits_per_note": 10.0}


# --- speed -----------------------------------------------------------------------------------------------


def test_both_run_in_turn_on_the_cpu(checkout: Path, prepared: Path) -> None:
    found = train_speed.compare_on_cpu(checkout, prepared, rounds=3, steps=1, shape=TINY, ours=("gpt2",))
    assert list(found["rows"]) == ["nanoGPT", "gpt2"]
    for row in found["rows"].values():
        assert len(row["rounds"]) == 3
        assert row["tokens_per_second"] == sorted(row["rounds"])[1]
    speeds = [row["tokens_per_second"] for row in found["rows"].values()]
    assert found["rows"]["gpt2"]["ratio"] == pytest.approx(speeds[1] / speeds[0])
    assert found["shape"]["vocab_size"] == load_side(prepared, "train")[1]["vocab_size"]


@pytest.fixture
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """No process is started for a row."""
    monkeypatch.setattr(train_speed, "_process", lambda: ThreadPoolExecutor(1))


@pytest.mark.usefixtures("one_process")
def test_the_search_for_the_best_batch_ends_where_memory_does(monkeypatch: pytest.MonkeyPatch) -> None:
    our_step = train_speed.our_step

    def in_small_memory(kind: str, shape: Shape, *rest: Any) -> train_speed.Step:
        if shape.batch_size > 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        return our_step(kind, shape, *rest)

    monkeypatch.setattr(train_speed, "our_step", in_small_memory)
    rows = train_speed.best_batch("gpt2", TINY, (2, 4, 8, 16), device="cpu", steps=2, warm_up=1)
    assert [row["batch_size"] for row in rows] == [2, 4, 8]
    assert [row.get("out_of_memory", False) for row in rows] == [False, False, True]
    best = train_speed.fastest(rows)
    assert best["tokens_per_second"] == max(row["tokens_per_second"] for row in rows[:2])
    # 6 N + 12 L C T, N without the 16 x 16 weights of positions
    per_token = 6 * (best["parameters"] - 256) + 12 * TINY.n_layer * TINY.n_embd * TINY.block_size
    assert best["flops_per_second"] / best["tokens_per_second"] == pytest.approx(per_token)
    monkeypatch.setattr(train_speed, "our_step", lambda *_: (_ for _ in ()).throw(RuntimeError("a mistake")))
    with pytest.raises(RuntimeError, match="a mistake"):
        train_speed.best_batch("qwen3", TINY, (2,), device="cpu")


def test_the_ratio_on_a_gpu_is_ours_at_best_to_theirs_at_twelve(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([0.12, 0.06, 0.5, 0.4])  # of bench.py: twice at 12, twice at our best batch

    def rows(kind: str, shape: Shape, batches: tuple[int, ...]) -> list[dict[str, Any]]:
        speeds = {12: 300_000.0, 48: 409_600.0}
        return [{"batch_size": size, "tokens_per_second": speeds.get(size, 1.0)} for size in batches]

    monkeypatch.setattr(train_speed, "best_batch", rows)
    monkeypatch.setattr(nanogpt, "bench", lambda checkout, batch_size: next(seconds))
    found = train_speed.compare_on_gpu(Path(), TINY)
    assert found["nanogpt"] == [
        {"batch_size": 12, "tokens_per_second": pytest.approx(12 * 1024 / 0.06)},
        {"batch_size": 48, "tokens_per_second": pytest.approx(48 * 1024 / 0.4)},
    ]
    assert found["ratio"] == pytest.approx(2.0)


# --- presets, and the command ----------------------------------------------------------------------------


def test_memory_and_the_first_writing_are_measured(tmp_path: Path) -> None:
    written = tmp_path / "metrics.jsonl"
    written.touch()  # as the trainer does before its first step
    work = "import sys, time; x = bytearray(200 * 2**20); time.sleep(0.3); "
    work += "open(sys.argv[1], 'w').write('step'); time.sleep(0.5); sys.exit(3)"
    found = train_presets.measured([sys.executable, "-c", work, str(written)], written)
    assert found["exit_code"] == 3
    assert 200 < found["memory_mib"] < 260
    assert 0.3 < found["first_step_seconds"] < found["seconds"] - 0.4


def test_memory_has_an_end() -> None:
    found = train_presets.measured([sys.executable, "-c", "bytearray(2**30)"], limit=2**29)
    assert found["exit_code"] == 1
    assert "MemoryError" in found["error"]


def test_a_preset_that_does_not_fit_is_tried_with_less(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("large", "wrong"):
        (tmp_path / f"{name}.toml").write_text("batch_size = 40\n[model]\nn_embd = 64")
    for module in (midigpt.config, train_presets):
        monkeypatch.setattr(module, "PRESETS", tmp_path)
    assert train_presets.presets() == ["large", "wrong"]
    assert train_learning.preset_shape("large", 80) == replace(
        DEFAULT, vocab_size=80, n_layer=3, n_embd=64, batch_size=40
    )

    def start(root: Path, name: str, device: str, batch_size: int) -> dict[str, Any]:
        error = "can't allocate memory: you tried" if name == "large" and batch_size > 2 else "a mistake"
        code = int(name == "wrong" or batch_size > 2)
        return {"preset": name, "batch_size": batch_size, "exit_code": code, "error": error if code else ""}

    rows = train_presets.start_presets(tmp_path, train_presets.presets(), "cpu", start)
    tried = [(row["preset"], row["batch_size"], row["exit_code"]) for row in rows]
    assert tried == [("large", 40, 1), ("large", 10, 1), ("large", 2, 0), ("wrong", 40, 1)]


def test_the_table_of_a_gpu(
    checkout: Path, prepared: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def row(batch_size: int, speed: float) -> dict[str, Any]:
        flops = 1e9 * speed  # a thousand million for a token
        row = {"batch_size": batch_size, "tokens_per_second": speed, "flops_per_second": flops}
        return {**row, "compile_seconds": 31.4, "memory_gib": 20.0}

    full = {"batch_size": 48, "out_of_memory": True}
    small = {**row(16, 1e5), "memory_gib": None}
    result = {"gpt2": [row(12, 494_500.0), full], "small": [small], "ratio": 1.25}
    result["nanogpt"] = [{"batch_size": 12, "tokens_per_second": 395_600.0}]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "A card")
    monkeypatch.setattr(midigpt.devices, "peak_flops", lambda device: (989e12, "it is said"))
    monkeypatch.setattr(train_learning, "preset_shape", lambda name, vocab_size: TINY)
    monkeypatch.setattr(train_speed, "compare_on_gpu", lambda nanogpt, small: result)
    train.gpu(train.Args(checkout, prepared))
    printed = capsys.readouterr().out.splitlines()
    assert "| nanoGPT's bench.py | 12 | 395,600 | 40.0% |  |  |" in printed
    assert "| midigpt, gpt2 | 12 | 494,500 | 50.0% | 31.4 | 20.0 |" in printed
    assert "| midigpt, gpt2 | 48 | out of memory |  |  |  |" in printed
    assert "| midigpt, small | 16 | 100,000 | 10.1% | 31.4 |  |" in printed
    assert "1.25 times" in printed[-2]


def test_the_table_of_learning(
    checkout: Path, prepared: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both trained by stand-ins; what is compared, printed and concluded is real."""
    nats = iter([5.0, 5.2, 4.0, 4.2, 4.6, 4.8, 4.1, 3.9, 3.5, 3.7])

    def run(*settings: Any) -> dict[str, Any]:
        loss = next(nats)
        return {"run": f"run {settings[-2:]}", "nats_per_token": loss, "bits_per_note": 2 * loss, "minutes": 0.1}

    monkeypatch.setattr(train_learning, "preset_shape", lambda name, vocab_size: replace(TINY, vocab_size=vocab_size))
    monkeypatch.setattr(nanogpt, "count_parameters", lambda checkout, shape: 3904)
    monkeypatch.setattr(train_learning, "nanogpt_run", run)
    monkeypatch.setattr(train_learning, "our_run", run)
    args = train.Args(checkout, prepared, steps=40, learning_rates=(0.1, 0.2, 0.3), seeds=2, equal_tokens=True)
    result = train.learning(args)
    printed = capsys.readouterr().out
    for run_, settings in enumerate(["(0.1, 1337)", "(0.1, 1338)"]):
        assert f"run {settings}: {result['runs'][run_]['nats_per_token']:.4f}" in printed
    assert "run (20, 0): 4.1000" in printed  # half the steps
    assert "run (40, 1): 3.7000" in printed
    assert "| nanoGPT, learning rate 0.2 | 4.1000 | 0.1414 | 8.200 |" in printed
    assert "| midigpt, 20 steps | 4.0000 | 0.1414 | 8.000 |" in printed
    assert "| midigpt, 40 steps | 3.6000 | 0.1414 | 7.200 |" in printed
    assert "best learning rate is 0.2, inside those tried" in printed
    assert "-0.1000 nats per token from it: at or below" in printed
    assert result["tokens"] == {"nanoGPT": 40 * 32, "midigpt": 20 * 32}


def test_the_command_writes_what_it_measured(checkout: Path, prepared: Path, tmp_path: Path) -> None:
    flags = ("--nanogpt", checkout, "--root", prepared, "--json", tmp_path / "figures.json")
    output = ok(run_script("bench/train.py", *flags, "--only", "gpu"))
    if not torch.cuda.is_available():
        assert "No CUDA device" in output
        assert read_json(tmp_path / "figures.json")["gpu"] is None
