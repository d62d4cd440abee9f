"""What each preset takes to start: memory, and seconds until the first step is done; run as a user runs it."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from train_learning import PROJECT, link_root, preset_shape

from midigpt.config import PRESETS

# Runs a command from a process that holds next to nothing, for a process begins its account of memory with what the
# one that started it held; with an end to its memory, if it is to have one. Prints the exit code, the most MiB, and
# the seconds until a file was written to (looked at every 10 ms) and in all.
_MEASURED = """
import json, os, resource, subprocess, sys, time
watched, limit, command = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
if limit:
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
begun = time.perf_counter()
process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
written = None
while True:
    pid, status, usage = os.wait4(process.pid, os.WNOHANG)
    if written is None and os.path.exists(watched) and os.path.getsize(watched):
        written = time.perf_counter() - begun
    if pid:
        break
    time.sleep(0.01)
unit = 2**20 if sys.platform == "darwin" else 2**10
print(json.dumps([os.waitstatus_to_exitcode(status), usage.ru_maxrss / unit, written, time.perf_counter() - begun]))
"""


def measured(command: list[str], watched: Path = Path(), limit: int = 0) -> dict[str, Any]:
    """Run a command and measure it. `limit` is in bytes, 0 for none."""
    measure = [sys.executable, "-c", _MEASURED, str(watched), str(limit)]
    done = subprocess.run([*measure, *command], capture_output=True, text=True)
    code, memory, written, seconds = json.loads(done.stdout)
    figures = {"exit_code": code, "memory_mib": memory, "first_step_seconds": written, "seconds": seconds}
    return {**figures, "error": done.stderr[-1000:] if code else ""}


def import_seconds(times: int = 3) -> float:
    """How long a process takes that imports torch and ends; the fastest of a few."""
    return min(float(measured([sys.executable, "-c", "import torch"])["seconds"]) for _ in range(times))


def start_preset(root: Path, name: str, device: str, batch_size: int) -> dict[str, Any]:
    """Three steps of a preset, each logged, with the evaluation at the end; in a folder of its own that goes again.

    On the CPU it gets three quarters of the memory at most, so that nothing else on this machine has to go.
    """
    limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * 3 // 4 if device == "cpu" else 0
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "work")
        link_root(root, folder)
        command = [sys.executable, str(PROJECT / "scripts" / "train.py"), "--root", str(folder), "--config", name]
        command += ["--max-steps", "3", "--log-interval", "1", "--device", device, "--batch-size", str(batch_size)]
        found = measured(command, folder / "train" / "runs" / "default" / "metrics.jsonl", limit)
    return {"preset": name, "batch_size": batch_size, **found}


def start_presets(
    root: Path, names: Iterable[str], device: str, start: Callable[..., dict[str, Any]] = start_preset
) -> list[dict[str, Any]]:
    """A row for each preset; one whose batch this machine can't hold gets another with a quarter of it."""
    rows = []
    for name in names:
        batch_size = preset_shape(name, vocab_size=0).batch_size
        rows.append(start(root, name, device, batch_size))
        while rows[-1]["exit_code"] and "memory" in rows[-1]["error"].lower() and batch_size > 1:
            batch_size = max(batch_size // 4, 1)
            rows.append(start(root, name, device, batch_size))
    return rows


def presets() -> list[str]:
    return sorted(path.stem for path in PRESETS.glob("*.toml"))
