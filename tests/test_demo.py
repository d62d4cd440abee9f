"""The demo, with a handful of chorales and steps: what it gets, what it leaves out, what it shows."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from midigpt.midi import read_midi
from tests.conftest import PROJECT

pytest.importorskip("music21", reason="needs music21, where the chorales are: pip install -e '.[demo]'")


@pytest.fixture
def demo() -> ModuleType:
    specification = importlib.util.spec_from_file_location("demo", PROJECT / "scripts" / "demo.py")
    assert specification and specification.loader
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def bach(name: str) -> Path:
    from music21 import corpus

    return next(path for path in corpus.getComposer("bach") if path.name == name)


def test_a_chorale_becomes_four_tracks(demo: ModuleType, tmp_path: Path) -> None:
    assert demo.convert((bach("bwv10.7.mxl"), tmp_path / "a.mid"))
    assert len(read_midi(tmp_path / "a.mid").tracks) == 4


def test_encodings_under_the_claim_of_ccarh_are_left_out(demo: ModuleType, tmp_path: Path) -> None:
    assert not demo.convert((bach("bwv277.krn"), tmp_path / "a.mid"))
    assert not (tmp_path / "a.mid").exists()


def test_the_demo_ends_with_a_take_its_picture_and_its_sound(
    demo: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def converted(task: tuple[Path, Path]) -> bool:  # workers import by name, which a test's module lacks
        return bool(demo.convert(task))

    monkeypatch.setattr(demo, "CHORALES", 15)
    monkeypatch.setattr(demo.workers, "run", lambda _, tasks, __: ((task, converted(task)) for task in tasks))
    monkeypatch.setattr(
        demo, "PIPELINE", tuple(step.replace("--epochs 45", "--max-steps 40") for step in demo.PIPELINE)
    )
    demo.main(demo.Args(tmp_path))
    out, _ = capfd.readouterr()
    assert len(list((tmp_path / "raw_data").rglob("*.mid"))) == 15
    assert {path.stem for path in (tmp_path / "data").glob("*.txt")} <= {
        path.stem for path in (tmp_path / "raw_data").rglob("*.mid")
    }
    assert len(read_midi(tmp_path / "out" / "take-0001.mid").tracks) > 1
    assert "unigram model" in out and "ratio" in out
    assert str(tmp_path / "out" / "take-0001.mid") in out.rpartition("Open these")[2]
    assert (tmp_path / "out" / "take-0001.png").read_bytes().startswith(b"\x89PNG")
    assert "sound by" in out and (tmp_path / "out" / "take-0001.wav").read_bytes().startswith(b"RIFF")
