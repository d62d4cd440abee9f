"""How much two workers lose to one another: `dataset` with two of them, beside two runs in one process each.

The same files once as one folder with two workers, once as two halves side by side, each converted by a process
that knows nothing of the other. Wall seconds with the start of everything; 1.00 would be no loss.

Example: python bench/workers.py rockpop --scratch /tmp
"""

import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"


@dataclass(frozen=True)
class Args:
    folder: Annotated[Path, tyro.conf.Positional]
    """A folder of MIDI files."""
    scratch: Path = Path(tempfile.gettempdir())
    """Where to work."""
    rounds: int = 3
    """How often; the best of each counts."""


def prepare(root: Path, paths: list[Path]) -> list[str]:
    """A working folder with links to these files, indexed; gives the command that converts them."""
    (root / "raw_data").mkdir(parents=True)
    for number, path in enumerate(paths):
        (root / "raw_data" / f"{number}.mid").symlink_to(path.resolve())
    run([[sys.executable, str(SCRIPTS / "index.py"), "--root", str(root)]])
    return [sys.executable, str(SCRIPTS / "dataset.py"), "--root", str(root)]


def run(commands: list[list[str]]) -> float:
    """The seconds of commands side by side."""
    start = time.perf_counter()
    processes = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for command in commands]
    if any([process.wait() for process in processes]):
        raise SystemExit("a run failed")
    return time.perf_counter() - start


def main(args: Args) -> None:
    paths = sorted(args.folder.rglob("*.mid"))
    together, apart = [], []
    with tempfile.TemporaryDirectory(dir=args.scratch) as scratch:
        for number in range(args.rounds):
            root = Path(scratch, str(number))
            halves = [prepare(root / str(half), paths[half::2]) for half in (0, 1)]
            apart.append(run([[*command, "--executor", "serial"] for command in halves]))
            together.append(run([[*prepare(root / "all", paths), "--workers", "2"]]))
    print(f"{len(paths)} files: two processes apart {min(apart):.2f} s, two workers {min(together):.2f} s", end="")
    print(f"; {min(apart) / min(together):.2f} of the speed")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
