"""The steps as a user runs them, in any order; sampling."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from midigpt.midi import read_midi, write_midi
from midigpt.score import Score
from tests.conftest import melody, ok, refusal, run_script

# --- steps in any order ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "missing", "command"),
    [
        ("scripts/dataset.py", "cache/index.sqlite", "make index"),
        ("scripts/tokenizer.py", "cache/index.sqlite", "make index"),
        ("scripts/train_bin.py", "cache/tokenizer.json", "make tokenizer"),
        ("scripts/train.py", "train/train.bin", "make train-bin"),
        ("sample.py", "train/runs", "make train"),
    ],
)
def test_a_missing_input_names_the_command_that_makes_it(work: Path, script: str, missing: str, command: str) -> None:
    path = work / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    assert f'{command} ROOT="{work}"' in refusal(run_script(script, "--root", work))


def test_a_working_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    for script in ("scripts/index.py", "scripts/dataset.py", "scripts/tokenizer.py", "scripts/train.py", "sample.py"):
        assert "does" in refusal(run_script(script, "--root", tmp_path / "typo")) or script == "sample.py"


@pytest.mark.parametrize("text", ["# once upon a time\n", "Es war einmal\n", "caf\u00e9\n", "60,62,64\n", "12\n"])
def test_a_document_of_another_language_is_told(work: Path, text: str) -> None:
    (work / "data" / "song03_1.txt").write_text(text)
    for script in ("scripts/tokenizer.py", "scripts/train_bin.py"):
        error = refusal(run_script(script, "--root", work, "--val-fraction", "0.2"))
        assert "song03_1.txt is no document" in error


@pytest.mark.parametrize(
    ("script", "flags"),
    [
        ("scripts/dataset.py", ("--workers", "0")),
        ("scripts/dataset.py", ("--limit", "-1")),
        ("scripts/dataset.py", ("--time-limit", "-1")),
        ("scripts/dataset.py", ("--memory-limit", "1e12")),
        ("scripts/dataset.py", ("--max-seconds", "nan")),
        ("scripts/tokenizer.py", ("--val-fraction", "1.5")),
        ("scripts/train.py", ("--eval-interval", "0")),
        ("scripts/train.py", ("--model.n-head", "0")),
        ("scripts/train.py", ("--model.n-embd", "100", "--model.n-head", "3")),
        ("scripts/train.py", ("--seed", "-1")),
        ("scripts/train.py", ("--device", "abacus")),
    ],
)
def test_numbers_that_can_not_be_are_told(work: Path, script: str, flags: tuple[str, ...]) -> None:
    assert flags[0] in refusal(run_script(script, "--root", work, *flags))


def test_documents_that_are_missing_are_told(work: Path) -> None:
    (work / "data" / "song03_1.txt").unlink()
    flags = ("--root", work, "--val-fraction", "0.2")
    assert "make dataset" in refusal(run_script("scripts/train_bin.py", *flags))


# --- sample ----------------------------------------------------------------------------------------------


def test_sampling_writes_takes_and_overwrites_none(trained: Path, tmp_path: Path) -> None:
    flags = ("--root", trained, "--out", tmp_path, "--notes", "20")
    for _ in range(2):
        ok(run_script("sample.py", *flags, "--takes", "2", "--seed", "3"))
    takes = [tmp_path / f"take-{number:04d}.mid" for number in (1, 2, 3, 4)]
    assert [take.read_bytes() for take in takes[:2]] == [take.read_bytes() for take in takes[2:]]  # the seed's
    assert takes[0].read_bytes() != takes[1].read_bytes()
    assert all(20 <= read_midi(take).notes < 40 for take in takes)


def test_takes_are_drawn_rendered_and_played_where_that_is_asked(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    player = tmp_path / "bin" / "afplay"  # the first that is looked for
    player.parent.mkdir()
    player.write_text("#!/bin/sh\nexit 0\n")
    player.chmod(0o755)
    monkeypatch.setenv("PATH", f"{player.parent}:{os.environ['PATH']}")
    flags = ("--root", trained, "--out", tmp_path, "--notes", "5")
    out = ok(run_script("sample.py", *flags, "--png", "--wav", "--play"))
    assert (tmp_path / "take-0001.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "take-0001.wav").read_bytes().startswith(b"RIFF")
    assert "sound by" in out and "played by afplay" in out


def test_sampling_obeys_program_and_tempo(trained: Path, tmp_path: Path) -> None:
    flags = ("--root", trained, "--out", tmp_path, "--notes", "5", "--program", "40", "--tempo", "71", "--top-k", "20")
    ok(run_script("sample.py", *flags))
    score = read_midi(tmp_path / "take-0001.mid")
    assert score.tracks[0].program == 40
    assert score.tempo_bpm == pytest.approx(70, abs=0.01) or score.tempo_bpm == pytest.approx(72, abs=0.01)


def test_a_prompt_is_kept_and_continued_on_the_beat(trained: Path, tmp_path: Path) -> None:
    prompt = Score(480, melody(5, notes=21).tracks + melody(6, notes=12, program=7).tracks, 100.0)
    write_midi(prompt, tmp_path / "prompt.mid")
    flags = ("--root", trained, "--out", tmp_path, "--notes", "10", "--prompt", tmp_path / "prompt.mid")
    ok(run_script("sample.py", *flags))
    take = read_midi(tmp_path / "take-0001.mid")
    cut = -(-prompt.end // 480) * 480
    assert len(take.tracks) == 2 and [track.program for track in take.tracks] == [0, 7]
    for before, after in zip(prompt.tracks, take.tracks, strict=True):
        kept = after.onset < cut
        assert np.array_equal(after.onset[kept], before.onset) and np.array_equal(after.pitch[kept], before.pitch)
        assert np.array_equal(after.duration[kept], before.duration)
    assert (take.tracks[0].onset >= cut).sum() >= 10
    assert take.tracks[0].onset[21] == cut


def test_a_prompt_longer_than_the_context_is_continued(trained: Path, tmp_path: Path) -> None:
    write_midi(melody(5, notes=300), tmp_path / "prompt.mid")
    flags = ("--root", trained, "--out", tmp_path, "--notes", "60", "--prompt", tmp_path / "prompt.mid")
    ok(run_script("sample.py", *flags))
    assert read_midi(tmp_path / "take-0001.mid").notes >= 360


def test_a_prompt_of_drums_is_continued_by_drums(trained: Path, tmp_path: Path) -> None:
    write_midi(melody(5, is_drum=True), tmp_path / "prompt.mid")
    result = run_script("sample.py", "--root", trained, "--out", tmp_path, "--prompt", tmp_path / "prompt.mid")
    # This model has never seen a drum: it may fail to write a line, but then it says so.
    if result.returncode:
        assert "train it for longer" in refusal(result)
    else:
        assert read_midi(tmp_path / "take-0001.mid").tracks[0].is_drum


def test_sampling_tells_what_is_wrong(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "text.mid").write_text("Dear diary")
    flags = ("--root", trained, "--out", tmp_path / "out")
    assert "is not a MIDI file" in refusal(run_script("sample.py", *flags, "--prompt", tmp_path / "text.mid"))
    assert "can't be read" in refusal(run_script("sample.py", *flags, "--prompt", tmp_path / "none.mid"))
    assert "is not a checkpoint" in refusal(run_script("sample.py", *flags, "--model", tmp_path))
    assert "neither 0..127 nor d" in refusal(run_script("sample.py", *flags, "--program", "200"))


def test_checkpoints_that_do_not_fit_are_refused(trained: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(trained / "train" / "runs" / "default" / "best", tmp_path / "model"))
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 2}))
    flags = ("--root", trained, "--out", tmp_path, "--model", model)
    assert "doesn't fit config.json" in refusal(run_script("sample.py", *flags))
    (model / "config.json").write_text(json.dumps(config | {"vocab_size": 77}))
    assert "don't belong together" in refusal(run_script("sample.py", *flags))
    (model / "config.json").write_text("{")
    assert "damaged checkpoint" in refusal(run_script("sample.py", *flags))
    (model / "config.json").write_text(json.dumps(config))
    run = json.loads((model / "run.json").read_text())
    (model / "run.json").write_text(json.dumps(run | {"language": "morse"}))
    assert "speaks another language" in refusal(run_script("sample.py", *flags))
