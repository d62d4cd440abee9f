"""Make targets, --help, and the small scripts, as a user meets them."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from midigpt.midi import read_midi, write_midi
from midigpt.score import Score
from tests.conftest import PROJECT, melody, ok, refusal, run_script

SCRIPTS = ["sample.py", *sorted(f"scripts/{path.name}" for path in (PROJECT / "scripts").glob("*.py"))]


def make(*targets: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["make", "--no-print-directory", *targets], cwd=PROJECT, capture_output=True, text=True)


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_gives_an_example_before_anything_slow_is_imported(script: str) -> None:
    code = """
import runpy, sys
sys.argv = [sys.argv[1], "--help"]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    print("IMPORTED", "torch" in sys.modules, "matplotlib" in sys.modules)
"""
    result = subprocess.run([sys.executable, "-c", code, PROJECT / script], capture_output=True, text=True)
    assert f"python {script}" in result.stdout, result.stderr
    assert "IMPORTED False False" in result.stdout


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_mistyped_flag_is_no_traceback(script: str) -> None:
    result = run_script(script, "--rooot", "x")
    assert result.returncode != 0 and "Traceback" not in result.stderr
    assert "--help" in result.stderr


def test_make_alone_prints_help_with_every_target() -> None:
    text = make().stdout
    phony = re.findall(r"^\.PHONY: (.*)$", (PROJECT / "Makefile").read_text(), re.M)[0].split()
    assert text == make("help").stdout
    assert all(f"make {target}" in text for target in phony if target != "help")


def test_every_step_has_a_make_target_that_calls_its_script() -> None:
    for target, script in {
        "index": "scripts/index.py",
        "dataset-7": "scripts/dataset.py --limit 7",
        "doctor": "scripts/doctor.py",
        "tokenizer": "scripts/tokenizer.py",
        "train-bin": "scripts/train_bin.py",
        "train": "scripts/train.py",
        "plot": "scripts/plot.py",
        "evaluate": "scripts/evaluate.py",
        "sample": "sample.py",
    }.items():
        result = make("-n", target, "ROOT=some where", "ARGS=--flag 1")
        assert f'.venv/bin/python {script} --root "some where" --flag 1' in result.stdout


def test_make_test_name_fails_where_no_test_has_the_name() -> None:
    pytest_of_makefile = [sys.executable, "-m", "pytest", "-k", "no_test_is_called_this", "--collect-only"]
    assert "-m pytest -k 'no_test_is_called_this'" in make("-n", "test-no_test_is_called_this").stdout
    assert subprocess.run(pytest_of_makefile, cwd=PROJECT, capture_output=True).returncode != 0


def test_encode_and_decode_undo_each_other(tmp_path: Path) -> None:
    score = Score(480, melody(1).tracks + melody(2, is_drum=True).tracks, 100.0)
    write_midi(score, tmp_path / "song.mid")
    text = ok(run_script("scripts/encode.py", tmp_path / "song.mid"))
    assert text.count("#") == 1 and "d@" in text
    (tmp_path / "song.txt").write_text(text)
    assert "2 tracks, 80 notes" in ok(
        run_script("scripts/decode.py", tmp_path / "song.txt", "-o", tmp_path / "again.mid")
    )
    assert ok(run_script("scripts/encode.py", tmp_path / "again.mid")) == text
    assert read_midi(tmp_path / "again.mid").notes == 80
    flags = ("--layout", "track", "--encoding", "interval")
    text = ok(run_script("scripts/encode.py", tmp_path / "song.mid", *flags))
    assert text.count("#") == 2 and "\n\n" in text
    (tmp_path / "song.txt").write_text(text)
    files = (tmp_path / "song.txt", "-o", tmp_path / "once more.mid")
    assert "2 tracks, 80 notes" in ok(run_script("scripts/decode.py", *files, *flags))


@pytest.mark.parametrize(
    ("text", "message"), [("tra la la\n", "line 1"), ("# tempo=90\n", "has no notes"), (None, "can't be read")]
)
def test_decode_tells_what_is_wrong_and_writes_nothing(tmp_path: Path, text: str | None, message: str) -> None:
    if text:
        (tmp_path / "song.txt").write_text(text)
    result = run_script("scripts/decode.py", tmp_path / "song.txt", "-o", tmp_path / "song.mid")
    assert message in refusal(result)
    assert not (tmp_path / "song.mid").exists()


def test_encode_tells_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "song.mid").write_text("tra la la")
    assert "is not a MIDI file" in refusal(run_script("scripts/encode.py", tmp_path / "song.mid"))
