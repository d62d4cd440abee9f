"""What several tests share: real MIDI files where there are some, and small songs made here."""

import os
import random
import shutil
import sqlite3
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # one of several processes, each for a core; torch reads this once
    os.environ["OMP_NUM_THREADS"] = "1"

from tokenizers import Tokenizer

from midigpt.bpe import train_tokenizer
from midigpt.dataset import Options, make_dataset
from midigpt.documents import Split
from midigpt.index import index_files
from midigpt.language import TRACKS
from midigpt.midi import write_midi
from midigpt.score import Score, track_from_notes
from midigpt.tokenizer import learn_tokenizer
from midigpt.train_data import make_train_bin

PROJECT = Path(__file__).parents[1]
SPLIT = Split(0.2, 0)
OF_TRACKS = Options(layout="track", encoding="interval")
TINY = ("--model.n-layer", "1", "--model.n-head", "2", "--model.n-embd", "16", "--model.block-size", "32")
TINY += ("--batch-size", "4", "--log-interval", "2", "--device", "cpu")
LAYOUTS = pytest.mark.parametrize("layout", [(), ("--shards", "--shard-files", "20")], ids=["files", "shards"])


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """corpus("mini") is a folder of real MIDI files; skips where MIDIGPT_CORPUS names no folder of archives."""
    unpacked: dict[str, Path] = {}

    def unpack(name: str) -> Path:
        folder = os.environ.get("MIDIGPT_CORPUS")
        if not folder:
            pytest.skip("needs real MIDI files: set MIDIGPT_CORPUS to a folder with mini.tar.gz, hostile.tar.gz, ...")
        if name not in unpacked:
            unpacked[name] = tmp_path_factory.mktemp(name)
            with tarfile.open(Path(folder) / f"{name}.tar.gz") as archive:
                archive.extractall(unpacked[name], filter="data")
        return unpacked[name]

    return unpack


def midi_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".mid", ".midi", ".kar", ".rmi"))


def melody(seed: int, notes: int = 40, is_drum: bool = False, program: int = 0) -> Score:
    """A small tune of stepwise motion that a model can learn a little from."""
    rng = random.Random(seed)
    rows, now, pitch = [], 0, 60 + rng.randrange(12)
    for _ in range(notes):
        duration = rng.choice([240, 240, 480])
        rows.append((now, duration, pitch, 80))
        now += duration
        pitch += rng.choice([-2, -1, 1, 2])
        pitch += 5 if pitch < 45 else -5 if pitch > 90 else 0
    return Score(480, (track_from_notes(rows, program, is_drum),), 100.0)


def make_songs(raw_data: Path, count: int) -> None:
    raw_data.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        write_midi(melody(number), raw_data / f"song{number:02d}.mid")


def run_script(script: str, *flags: str | Path, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Run a script of the project as a user does, and take down what it prints."""
    command = [sys.executable, str(PROJECT / script), *map(str, flags)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout)


def ok(result: subprocess.CompletedProcess[str]) -> str:
    """The output of a run that must have succeeded."""
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def refusal(result: subprocess.CompletedProcess[str]) -> str:
    """The sentence with which a run ended that could not do its job; no traceback."""
    assert result.returncode != 0, result.stdout
    assert "Traceback" not in result.stderr, result.stderr
    return result.stderr


def documents(root: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in (root / "data").glob("*.txt")}


def contents(folder: Path) -> dict[str, bytes]:
    """All that is below a folder, by path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def tables(root: Path) -> dict[str, list[tuple[object, ...]]]:
    """All that is in an index."""
    index = sqlite3.connect(root / "cache" / "index.sqlite")
    names = ("files", "prints", "shards", "settings")
    return {name: sorted(index.execute(f"SELECT * FROM {name}"), key=repr) for name in names}


@pytest.fixture(scope="session")
def long_songs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Enough music for the dataset to be caught in the act: 5 different songs, the others copies."""
    folder = tmp_path_factory.mktemp("long")
    for number in range(100):
        path = folder / f"{number:03}.mid"
        if number < 5:
            write_midi(Score(480, tuple(melody(number * 6 + part, 2000).tracks[0] for part in range(6))), path)
        else:
            shutil.copy(folder / f"{number % 5:03}.mid", path)
    return folder


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """The smallest there can be: a token for each character."""
    return train_tokenizer(["0+10|1/1\n"], len(TRACKS.alphabet) + 1)


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with 30 songs, each a track, packed."""
    root = tmp_path_factory.mktemp("prepared")
    make_songs(root / "raw_data", 30)
    index_files(root)
    make_dataset(root, OF_TRACKS)
    learn_tokenizer(root, 80, SPLIT)
    make_train_bin(root, SPLIT)
    return root


@pytest.fixture
def work(prepared: Path, tmp_path: Path) -> Path:
    """A copy of `prepared` to do with as one likes."""
    return Path(shutil.copytree(prepared, tmp_path / "work"))


@pytest.fixture(scope="session")
def trained(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = Path(shutil.copytree(prepared, tmp_path_factory.mktemp("trained") / "work"))
    flags = (*TINY, "--max-steps", "150", "--eval-interval", "75", "--learning-rate", "2e-2", "--warmup-steps", "10")
    flags = (*flags, "--dropout", "0", "--weight-decay", "0.1")
    ok(run_script("scripts/train.py", "--root", root, *flags))
    return root
