"""How the pipeline grows with the number of files: seconds, memory and disk for 1,000, 10,000 and 50,000 of them.

The files are copies of those in some folders, each moved by up to 11 keys and with another clock (so that its
rhythm falls otherwise onto the grid): no two are the same, yet they are as long and as odd as real ones. Each
step runs as a user runs it; "again" is the same step with nothing to do.

Example: python bench/grow.py rockpop pop909 --scratch /tmp/grow
"""

import json
import random
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import symusic
import tyro

PROJECT = Path(__file__).resolve().parents[1]

# Runs a script as if by itself, and tells at the end what it and its largest worker took at most.
_MEASURED = """
import json, resource, runpy, sys
out, sys.argv = sys.argv[1], sys.argv[2:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    json.dump([resource.getrusage(w).ru_maxrss // 1024 for w in who], open(out, "w"))
"""


@dataclass(frozen=True)
class Args:
    folders: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Where to take MIDI files from."""
    scratch: Path
    """A folder to work in, on the disk that is to be tried; emptied at the end."""
    files: tuple[int, ...] = (1000, 10_000, 50_000)
    """How many files."""
    shards: bool = False
    """Put the documents into shards."""


def make_files(sources: list[Path], raw_data: Path, count: int) -> None:
    """`count` files in folders of a thousand; the first are always the same."""
    raw_data.mkdir(parents=True)
    rng = random.Random(0)
    for number in range(count):
        score = symusic.Score(sources[rng.randrange(len(sources))])
        with suppress(ValueError):  # it would leave the keyboard
            score.shift_pitch(rng.randint(-11, 11), inplace=True)
        score.ticks_per_quarter = round(score.ticks_per_quarter * rng.uniform(0.9, 1.1))
        folder = raw_data / f"{number // 1000:03}"
        folder.mkdir(exist_ok=True)
        score.dump_midi(folder / f"{number:06}.mid")


def step(script: str, *flags: str | Path) -> dict[str, Any]:
    """Run a script of the project; gives its seconds, and MiB of itself and of its largest worker."""
    out = Path(flags[1]) / "usage.json"
    command = [sys.executable, "-c", _MEASURED, str(out), str(PROJECT / script), *map(str, flags)]
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - start
    memory, workers = json.loads(out.read_text())
    return {"seconds": seconds, "memory": memory, "workers": workers}


def main(args: Args) -> None:
    sources = sorted(path for folder in args.folders for path in folder.rglob("*.mid"))
    dataset = ("--dedupe", "off", "--workers", "2", *(["--shards"] if args.shards else []))
    steps: tuple[tuple[str, str, tuple[str, ...]], ...] = (
        ("index", "scripts/index.py", ()),
        ("index again", "scripts/index.py", ()),
        ("dataset", "scripts/dataset.py", dataset),
        ("dataset again", "scripts/dataset.py", dataset),
        ("tokenizer", "scripts/tokenizer.py", ()),
        ("train-bin", "scripts/train_bin.py", ()),
    )
    print(f"{'files':>7}  {'step':14} {'seconds':>8} {'ms/file':>8} {'MiB':>6} {'MiB of a worker':>16}")
    for count in args.files:
        root = args.scratch / str(count)
        make_files(sources, root / "raw_data", count)
        for name, script, flags in steps:
            used = step(script, "--root", root, *flags)
            per_file = 1000 * used["seconds"] / count
            workers = used["workers"] if name in ("dataset", "train-bin") else ""
            print(f"{count:7}  {name:14} {used['seconds']:8.1f} {per_file:8.2f} {used['memory']:6} {workers:>16}")
        index = (root / "cache" / "index.sqlite").stat().st_size
        documents = list((root / "data").iterdir())
        size = sum(path.stat().st_size for path in documents)
        print(
            f"{count:7}  index.sqlite {index / 2**20:.1f} MiB, {index / count:.0f} bytes a file;"
            f" data/ {len(documents)} files, {size / 2**20:.0f} MiB of text"
        )
        shutil.rmtree(root)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
