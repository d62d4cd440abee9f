"""What each preset takes to start: memory, and seconds until the first step is done; run as a user runs it."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from train_learning import PROJECT, link_root

# Runs a command from a process that holds next to nothing, for a process begins its account of memory with what the
# one that started it held. Prints the exit code, the most MiB, and the seconds until a file was written to (looked
# at every 10 ms) and in all.
_MEASURED = """
import json, os, subprocess, sys, time
watched, command = sys.argv[1], sys.argv[2:]
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


def measured(command: list[str], watched: Path = Path()) -> dict[str, Any]:
    """Run a command and measure it; what it complains of goes to the terminal."""
    done = subprocess.run([sys.executable, "-c", _MEASURED, str(watched), *command], stdout=subprocess.PIPE, text=True)
    code, memory, written, seconds = json.loads(done.stdout)
    return {"exit_code": code, "memory_mib": memory, "first_step_seconds": written, "seconds": seconds}


def import_seconds(times: int = 3) -> float:
    """How long a process takes that imports torch and ends; the fastest of a few."""
    return min(float(measured([sys.executable, "-c", "import torch"])["seconds"]) for _ in range(times))


def start_preset(root: Path, name: str, device: str, *flags: str) -> dict[str, Any]:
    """Three steps of a preset, each logged, with the evaluation at the end; in a folder of its own that goes again."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "work")
        link_root(root, folder)
        command = [sys.executable, str(PROJECT / "scripts" / "train.py"), "--root", str(folder), "--config", name]
        command += ["--max-steps", "3", "--log-interval", "1", "--device", device, *flags]
        return {"preset": name, **measured(command, folder / "train" / "runs" / "default" / "metrics.jsonl")}


def presets() -> list[str]:
    return sorted(path.stem for path in (PROJECT / "configs").glob("*.toml"))
