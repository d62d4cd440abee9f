"""The steps as a user runs them, in any order; training and sampling."""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from midigpt.dataset import make_dataset
from midigpt.documents import Split
from midigpt.index import index_files
from midigpt.midi import read_midi, write_midi
from midigpt.score import Score
from midigpt.tokenizer import learn_tokenizer
from midigpt.train_data import line_tokens, load_side, make_train_bin
from tests.conftest import PROJECT, SPLIT, TINY, melody, ok, refusal, run_script

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


# --- train and sample ------------------------------------------------------------------------------------


def metrics(root: Path, run: str = "default") -> list[dict[str, float]]:
    return [json.loads(line) for line in (root / "train" / "runs" / run / "metrics.jsonl").read_text().splitlines()]


def test_training_learns_and_leaves_a_run(trained: Path) -> None:
    records = metrics(trained)
    assert records[-1]["step"] == 150
    assert records[-1]["train_loss"] < records[0]["train_loss"] - 0.5
    evaluated = [record for record in records if "val_loss" in record]
    assert [record["step"] for record in evaluated] == [75, 150]
    _, meta = load_side(trained, "val")
    tokens_per_note = len(line_tokens(load_side(trained, "val")[0])) / meta["val"]["notes"]
    bits = evaluated[-1]["val_loss"] / np.log(2) * tokens_per_note
    assert evaluated[-1]["val_bits_per_note"] == pytest.approx(bits)
    assert {path.name for path in (trained / "train" / "runs" / "default").iterdir()} == {
        "latest",
        "best",
        "metrics.jsonl",
    }


def test_a_stopped_run_goes_on_exactly(work: Path) -> None:
    flags = ("--root", work, *TINY, "--max-steps", "200", "--eval-interval", "100")
    ok(run_script("scripts/train.py", *flags, "--run", "straight"))
    command = [sys.executable, str(PROJECT / "scripts/train.py"), *map(str, flags), "--run", "halved"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    file = work / "train" / "runs" / "halved" / "metrics.jsonl"
    while not (file.exists() and file.read_text().count("\n") >= 3) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, error = process.communicate()
    assert process.returncode == 0, error
    stopped = metrics(work, "halved")[-1]["step"]
    assert stopped < 200 and "stopped; the same command goes on" in out
    assert f"from step {stopped}" in ok(run_script("scripts/train.py", *flags, "--run", "halved"))
    weights = [
        (work / "train" / "runs" / run / "latest" / "model.safetensors").read_bytes() for run in ("straight", "halved")
    ]
    assert weights[0] == weights[1]
    assert metrics(work, "halved")[-1]["val_loss"] == metrics(work, "straight")[-1]["val_loss"]


def test_what_a_kill_leaves_of_the_metrics_is_mended(work: Path) -> None:
    flags = ("--root", work, *TINY, "--max-steps", "8", "--eval-interval", "4")
    ok(run_script("scripts/train.py", *flags))
    before = metrics(work)
    file = work / "train" / "runs" / "default" / "metrics.jsonl"
    with file.open("a") as out:
        out.write('{"step": 10, "train_loss": 1.0}\n{"step": 12, "tra')
    ok(run_script("scripts/train.py", *flags))
    assert metrics(work) == before
    shutil.rmtree(work / "train" / "runs" / "default" / "latest")  # as if killed before the first evaluation
    ok(run_script("scripts/train.py", *flags))
    assert [record["step"] for record in metrics(work)] == [record["step"] for record in before]


def test_a_finished_run_is_left_as_it_is(trained: Path) -> None:
    flags = (*TINY, "--max-steps", "150")
    before = (trained / "train" / "runs" / "default" / "latest" / "model.safetensors").stat().st_mtime_ns
    assert "step 150 of 150, finished" in ok(run_script("scripts/train.py", "--root", trained, *flags))
    assert (trained / "train" / "runs" / "default" / "latest" / "model.safetensors").stat().st_mtime_ns == before


def test_a_run_of_another_shape_is_refused(trained: Path) -> None:
    flags = (*TINY, "--model.n-layer", "2")
    assert "begun with another shape" in refusal(run_script("scripts/train.py", "--root", trained, *flags))


def test_fewer_steps_than_were_made_are_refused(trained: Path) -> None:
    error = refusal(run_script("scripts/train.py", "--root", trained, *TINY, "--max-steps", "100"))
    assert "has made 150 steps already" in error


def test_other_songs_need_a_new_run(trained: Path, tmp_path: Path) -> None:
    work = Path(shutil.copytree(trained, tmp_path / "work"))
    write_midi(melody(1000), work / "raw_data" / "new.mid")
    index_files(work)
    make_dataset(work)
    make_train_bin(work, SPLIT)
    error = refusal(run_script("scripts/train.py", "--root", work, *TINY, "--max-steps", "200"))
    assert "begun with other songs; begin a new run with --run NAME" in error


def test_a_tokenizer_that_did_not_make_train_bin_is_refused(work: Path) -> None:
    learn_tokenizer(work, 60, SPLIT)
    error = refusal(run_script("scripts/train.py", "--root", work, *TINY))
    assert "another tokenizer" in error and "make train-bin" in error


def test_training_goes_without_held_out_songs(work: Path) -> None:
    learn_tokenizer(work, 60, Split(0.0, 0))
    assert "no song is held out" in ok(run_script("scripts/train_bin.py", "--root", work, "--val-fraction", "0"))
    out = ok(run_script("scripts/train.py", "--root", work, *TINY, "--max-steps", "4"))
    assert "nothing tells how well it does" in out
    assert "val_loss" not in metrics(work)[-1]


def test_sampling_writes_takes_and_overwrites_none(trained: Path, tmp_path: Path) -> None:
    flags = ("--root", trained, "--out", tmp_path, "--notes", "20")
    for _ in range(2):
        ok(run_script("sample.py", *flags, "--takes", "2", "--seed", "3"))
    takes = [tmp_path / f"take-{number:04d}.mid" for number in (1, 2, 3, 4)]
    assert [take.read_bytes() for take in takes[:2]] == [take.read_bytes() for take in takes[2:]]  # the seed's
    assert takes[0].read_bytes() != takes[1].read_bytes()
    assert all(20 <= read_midi(take).notes < 40 for take in takes)


def test_takes_are_drawn_and_rendered_where_that_is_asked(trained: Path, tmp_path: Path) -> None:
    flags = ("--root", trained, "--out", tmp_path, "--notes", "5")
    ok(run_script("sample.py", *flags, "--png"))
    assert (tmp_path / "take-0001.png").read_bytes().startswith(b"\x89PNG")
    result = run_script("sample.py", *flags, "--wav")
    if shutil.which("fluidsynth") and not result.returncode:
        assert (tmp_path / "take-0002.wav").read_bytes().startswith(b"RIFF")
    else:
        assert "needs fluidsynth and a General MIDI soundfont" in refusal(result)
        assert not (tmp_path / "take-0002.mid").exists()


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


def test_the_whole_pipeline_on_real_files(corpus: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "raw_data").symlink_to(corpus("mini"))
    ok(run_script("scripts/index.py", "--root", tmp_path))
    assert "150 files in 535 documents" in ok(run_script("scripts/dataset.py", "--root", tmp_path))
    ok(run_script("scripts/tokenizer.py", "--root", tmp_path, "--vocab-size", "256"))
    ok(run_script("scripts/train_bin.py", "--root", tmp_path))
    shape = ("--model.n-layer", "2", "--model.n-head", "2", "--model.n-embd", "64", "--model.block-size", "64")
    out = ok(run_script("scripts/train.py", "--root", tmp_path, *shape, "--max-steps", "200", "--warmup-steps", "20"))
    assert float(out.rpartition("ratio ")[2].partition(")")[0]) < 1
