"""The whole way from MIDI files to new music, on about 100 Bach chorales, in minutes on two CPU cores.

The chorales come with the music21 package and are converted to MIDI here; nothing is downloaded.

Example: python scripts/demo.py --root demo
"""

import os
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from midigpt import workers
from midigpt.files import UserError, parse_arguments, replacing

CHORALES = 100
HELD_OUT = "--val-fraction 0.15 --seed 1"
PIPELINE = (
    "scripts/index.py",
    "scripts/dataset.py --layout song --encoding anchored",
    f"scripts/tokenizer.py --vocab-size 256 {HELD_OUT}",
    f"scripts/train_bin.py {HELD_OUT}",
    "scripts/train.py --config demo --epochs 45",
    "sample.py --temperature 0.9 --bars 8 --png --wav",
)


@dataclass(frozen=True)
class Args:
    root: Path = Path("demo")
    """The working folder; made if it is not there."""


def main(args: Args) -> None:
    start = time.perf_counter()
    get_chorales(args.root / "raw_data" / "chorales")
    project = Path(__file__).parents[1]
    python = os.path.relpath(sys.executable)
    before = set((args.root / "out").glob("*.mid"))
    for step in PIPELINE:
        script, *flags = step.split()
        print(f"\n$ {python} {step} --root {shlex.quote(str(args.root))}", flush=True)
        command = [sys.executable, str(project / script), *flags, "--root", str(args.root)]
        process = subprocess.Popen(command)
        try:
            failed = process.wait()
        except KeyboardInterrupt:  # the step has it too: it saves and ends
            process.wait()
            raise
        if failed:
            raise UserError(f"the step above failed: {step}")
    (take,) = set((args.root / "out").glob("*.mid")) - before
    print(f"demo: done in {(time.perf_counter() - start) / 60:.1f} min. Open these:")
    for suffix in (".mid", ".wav", ".png"):
        print(f"  {take.with_suffix(suffix)}")


def get_chorales(folder: Path) -> None:
    """Convert the first CHORALES four-part pieces of music21's Bach to MIDI files, unless they are there."""
    if len(list(folder.glob("*.mid"))) >= CHORALES:
        return
    try:
        from music21 import corpus
    except ImportError:
        raise UserError("music21 is missing; install it with: pip install -e '.[demo]'") from None
    folder.mkdir(parents=True, exist_ok=True)
    pieces = sorted({path for path in corpus.getComposer("bach") if path.suffix in (".mxl", ".xml", ".krn")})
    made: list[Path] = []
    bar = tqdm(desc="chorales", total=CHORALES, disable=None)
    for first in range(0, len(pieces), 20):
        tasks = [(path, folder / f"{path.stem}.mid") for path in pieces[first : first + 20]]
        results = dict(workers.run(convert, tasks, os.cpu_count() or 1))
        made += [target for source, target in tasks if results[source, target] is True]
        bar.update(min(len(made), CHORALES) - bar.n)
        if len(made) >= CHORALES:
            break
    bar.close()
    for extra in made[CHORALES:]:
        extra.unlink()
    print(f"demo: {len(made[:CHORALES])} Bach chorales in {folder}, from the corpus of the music21 package")


def convert(task: tuple[Path, Path]) -> bool:
    """Convert a piece if it is in four parts and its metadata name no CCARH; whether it was."""
    from music21 import corpus

    source, target = task
    score = corpus.parse(source)
    claims = " ".join(str(value) for _, value in score.metadata.all())
    if len(score.parts) != 4 or "CCARH" in claims or "Center for Computer Assisted Research" in claims:
        return False
    with replacing(target) as temporary:
        score.write("midi", temporary)
    return True


if __name__ == "__main__":
    main(parse_arguments(Args, __doc__))
