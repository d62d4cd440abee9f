"""The steps as a user runs them, in any order; sampling."""

import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import sample
from midigpt.bpe import train_tokenizer
from midigpt.checkpoint import save_checkpoint
from midigpt.files import read_json
from midigpt.general_midi import instrument
from midigpt.keys import find_scale
from midigpt.language import TRACKS, Language
from midigpt.midi import read_midi, write_midi
from midigpt.model import ModelConfig, build_model
from midigpt.normal import part_marks
from midigpt.prompt import load_prompt
from midigpt.score import Score
from midigpt.splice import read_texts
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


def test_wishes_are_met_and_the_length_is_the_one_asked_for(trained: Path, tmp_path: Path) -> None:
    flags = ("--root", trained, "--out", tmp_path, "--program", "40", "--tempo", "71", "--top-k", "20")
    flags = (*flags, "--meter", "3/4", "--key", "F#", "--keys", "C3-C6", "--bars", "4", "--takes", "3")
    ok(run_script("sample.py", *flags, "--seed", "1"))
    for number in (1, 2, 3):
        score = read_midi(tmp_path / f"take-{number:04d}.mid")
        (track,) = score.tracks
        assert (track.program, find_scale(score), track.onset[0], score.meter) == (40, 6, 0, (3, 4))
        assert score.tempo_bpm == pytest.approx(70, abs=0.01) or score.tempo_bpm == pytest.approx(72, abs=0.01)
        assert set(track.pitch.tolist()) <= set(range(48, 85))
        assert 10 * 480 < score.end <= 12 * 480 and track.onset[-1] < 12 * 480
    out = ok(run_script("sample.py", *flags[:4], "--seconds", "10"))
    assert int(re.search(r"notes, (\d+) s;", out)[1]) in (9, 10)


def test_instruments_have_names_and_one_that_training_did_not_have_is_told(trained: Path, tmp_path: Path) -> None:
    heard = read_json(trained / "train" / "meta.json")["programs"]
    flags = ("--root", trained, "--out", tmp_path, "--notes", "5", "--program")
    assert "42" not in heard and "0" in heard
    most = instrument(max(heard, key=heard.get))
    out = ok(run_script("sample.py", *flags, "cello"))
    assert read_midi(tmp_path / "take-0001.mid").tracks[0].program == 42
    assert "no training song has cello, so the model does not know" in out and f"most of {most}" in out
    assert "no training song" not in ok(run_script("sample.py", *flags, "Grand piano"))
    write_midi(Score(480, melody(1, program=42).tracks + melody(2).tracks, 100.0), tmp_path / "prompt.mid")
    prompted = (*flags[:6], "--prompt", tmp_path / "prompt.mid")
    assert "no training song has cello" in ok(run_script("sample.py", *prompted))
    assert "no training song" not in ok(run_script("sample.py", *prompted, "--track", "2"))
    other = Path(shutil.copytree(trained / "train" / "runs" / "default" / "best", tmp_path / "tuned"))
    run = read_json(other / "run.json")
    (other / "run.json").write_text(json.dumps(run | {"config": run["config"] | {"init_from": "elsewhere"}}))
    assert "no training song" not in ok(run_script("sample.py", *flags, "cello", "--model", other))


def test_a_take_says_what_it_copies(trained: Path, tmp_path: Path) -> None:
    flags = ("--root", trained, "--out", tmp_path, "--notes", "20")
    out = ok(run_script("sample.py", *flags))
    assert re.search(r"copies \d+ notes at most \(\d+\.\d s\), of song\d\d, part 1, bar \d+; seed", out)
    elsewhere = ("--root", tmp_path, "--model", trained / "train" / "runs" / "default" / "best")
    assert "not compared with training songs, as" in ok(run_script("sample.py", *elsewhere, "--notes", "20"))


# --- prompts ---------------------------------------------------------------------------------------------


@pytest.fixture
def prompt(tmp_path: Path) -> Path:
    parts = melody(5, notes=41).tracks + melody(6, notes=32, program=7).tracks
    write_midi(Score(480, parts, 100.0), tmp_path / "prompt.mid")
    return tmp_path / "prompt.mid"


def test_a_prompt_is_kept_and_goes_on_at_the_bar_asked_for(trained: Path, tmp_path: Path, prompt: Path) -> None:
    flags = ("--root", trained, "--out", tmp_path / "out", "--prompt", prompt, "--takes", "2")
    out = ok(run_script("sample.py", *flags, "--at", "4", "--prompt-bars", "2", "--bars", "3"))
    cut = 3 * 4 * 480
    given = read_midi(prompt)
    for number in (1, 2):
        take = read_midi(tmp_path / "out" / f"take-{number:04d}.mid")
        assert [track.program for track in take.tracks] == [0, 7]
        for before, after in zip(given.tracks, take.tracks, strict=True):
            kept, was = after.onset < cut, before.onset < cut
            assert np.array_equal(after.onset[kept], before.onset[was])
            assert np.array_equal(after.pitch[kept], before.pitch[was])
            assert after.onset[~kept][0] == cut and after.end <= cut + 3 * 4 * 480
    assert out.count("of them new, from bar 4 on") == 2


def test_one_track_goes_on_and_by_default_eight_bars(trained: Path, tmp_path: Path, prompt: Path) -> None:
    flags = ("--root", trained, "--out", tmp_path / "out", "--prompt", prompt)
    out = ok(run_script("sample.py", *flags, "--track", "2"))
    assert re.search(r"of them new, from bar \d+, beat [234] on", out)
    given, take = read_midi(prompt), read_midi(tmp_path / "out" / "take-0001.mid")
    cut = -(-given.end // 480) * 480
    assert take.tracks[0] == given.tracks[0]
    assert cut + 7 * 4 * 480 < take.end <= cut + 8 * 4 * 480
    said = refusal(run_script("sample.py", *flags, "--track", "3"))
    assert "--track 3: no such part" in said and "\n  2: harpsichord (program 6)" not in said
    assert "\n  1: grand piano (program 0), 41 notes" in said


def test_a_prompt_longer_than_the_context_is_continued(trained: Path, tmp_path: Path) -> None:
    write_midi(melody(5, notes=300), tmp_path / "prompt.mid")
    flags = ("--root", trained, "--out", tmp_path, "--notes", "60", "--prompt", tmp_path / "prompt.mid")
    ok(run_script("sample.py", *flags))
    assert read_midi(tmp_path / "take-0001.mid").notes >= 360


def test_a_prompt_of_drums_is_continued_by_drums_and_that_is_said(trained: Path, tmp_path: Path) -> None:
    write_midi(melody(5, is_drum=True), tmp_path / "prompt.mid")
    out = ok(run_script("sample.py", "--root", trained, "--out", tmp_path, "--prompt", tmp_path / "prompt.mid"))
    assert "is drums alone, and so is the continuation" in out
    (track,) = read_midi(tmp_path / "take-0001.mid").tracks
    assert track.is_drum and len(track) > 40


# --- songs -----------------------------------------------------------------------------------------------


def untrained(folder: Path, language: Language) -> Path:
    """A checkpoint that knows nothing but its language."""
    tokenizer = train_tokenizer(["\n"], len(language.alphabet) + 1, language)
    tokenizer.save(str(folder / "tokenizer.json"))
    torch.manual_seed(0)
    sizes = {"n_layer": 1, "n_head": 2, "n_kv_head": 2, "n_embd": 16, "n_hidden": 32}
    model = build_model(ModelConfig(vocab_size=tokenizer.get_vocab_size(), block_size=128, **sizes))
    save_checkpoint(folder / "model", model, folder / "tokenizer.json", {"language": str(language)})
    return folder / "model"


@pytest.fixture(scope="module")
def song_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return untrained(tmp_path_factory.mktemp("songs"), Language())


def test_a_song_from_nothing_has_the_parts_asked_for(song_model: Path, tmp_path: Path) -> None:
    flags = ("--root", tmp_path, "--out", tmp_path, "--model", song_model)
    wishes = ("--program", "40,40,7,drums", "--key", "Em", "--keys", "C3-C6", "--notes", "90", "--meter", "3/4")
    out = ok(run_script("sample.py", *flags, *wishes, "--takes", "3", "--seed", "1", "--png"))
    assert re.search(r"notes in [34] parts, \d+ s;", out)
    for number in (1, 2, 3):
        score = read_midi(tmp_path / f"take-{number:04d}.mid")
        pitched = [track for track in score.tracks if not track.is_drum]
        assert sorted(track.program for track in pitched) in ([7, 40], [7, 40, 40], [40, 40]) and score.meter == (3, 4)
        assert len(score.tracks) - len(pitched) <= 1 and min(track.onset[0] for track in score.tracks) == 0
        assert all(set(track.pitch.tolist()) <= set(range(48, 85)) for track in pitched)
        assert find_scale(score) == 7
    out = ok(run_script("sample.py", *flags, "--again", tmp_path / "take-0002.mid"))
    assert "byte for byte" in out
    ok(run_script("sample.py", *flags, "--program", "drums", "--notes", "40"))
    assert [track.is_drum for track in read_midi(tmp_path / "take-0005.mid").tracks] == [True]


def test_a_take_that_does_not_end_is_told(
    song_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("midigpt.generate.MAX_NOTES", 10)
    args = sample.Args(root=tmp_path, model=song_model, out=tmp_path, seed=1)
    write_midi(Score(480, (melody(5).tracks[0], melody(6, program=7).tracks[0]), 100.0), tmp_path / "prompt.mid")
    for wished in (args, replace(args, prompt=tmp_path / "prompt.mid", ending=True)):
        sample.main(wished)
        assert "a take has not come to an end in 10 notes, and stops there" in capsys.readouterr().out
        sample.main(replace(wished, notes=10, ending=False))
        assert "has not come to an end" not in capsys.readouterr().out


def test_songs_from_nothing_have_instruments_that_training_songs_have(song_model: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(song_model, tmp_path / "model"))
    run = read_json(model / "run.json")
    flags = ("--root", tmp_path, "--out", tmp_path, "--model", model, "--notes", "60", "--takes", "2")
    bands = [["7", "7.2", "33", "d"], ["d"]]
    (model / "run.json").write_text(json.dumps(run | {"data": {"programs": {"d": 9, "33": 7}, "bands": bands}}))
    for number, seed in ((1, 4), (3, 5)):
        ok(run_script("sample.py", *flags, "--seed", seed))
        for take in (number, number + 1):
            marks = part_marks(read_midi(tmp_path / f"take-{take:04d}.mid").tracks)
            assert len(marks) <= len(bands[seed % 2]) and {*marks} <= {*bands[seed % 2]}
    out = ok(run_script("sample.py", *flags, "--program", "7"))
    assert "no training song has clavinet" in out


def test_a_song_of_more_parts_than_channels_is_written(song_model: Path, tmp_path: Path) -> None:
    flags = ("--root", tmp_path, "--out", tmp_path, "--model", song_model, "--notes", "500")
    ok(run_script("sample.py", *flags, "--program", ",".join(str(n // 2) for n in range(40)) + ",d,d"))
    score = read_midi(tmp_path / "take-0001.mid")
    assert len(score.tracks) > 20 and score.notes >= 500
    assert len({track.program for track in score.tracks}) > 15


def test_all_parts_of_a_prompt_go_on_together(song_model: Path, tmp_path: Path) -> None:
    parts = melody(5, notes=41).tracks + melody(6, 32, program=7).tracks + melody(7, 40, is_drum=True).tracks
    write_midi(Score(480, (*parts, melody(8, 41).tracks[0]), 100.0), tmp_path / "prompt.mid")
    flags = ("--root", tmp_path, "--out", tmp_path / "out", "--model", song_model)
    asked = (*flags, "--prompt", tmp_path / "prompt.mid", "--prompt-bars", "4", "--at", "5", "--notes", "60")
    out = ok(run_script("sample.py", *asked))
    assert "of them new, from bar 5 on" in out
    given, take = (load_prompt(path) for path in (tmp_path / "prompt.mid", tmp_path / "out" / "take-0001.mid"))
    cut = given.bar_start(5)
    assert take.seats == given.seats
    for was, now in zip(given.score.tracks, take.score.tracks, strict=True):
        assert (now.program, now.is_drum) == (was.program, was.is_drum)
        assert was.select(was.onset < cut) == now.select(now.onset < cut)
    assert sum(int(track.onset[-1]) >= cut for track in take.score.tracks) > 1
    ok(run_script("sample.py", *asked, "--track", "2"))
    alone = load_prompt(tmp_path / "out" / "take-0002.mid").score.tracks
    assert [bool((track.onset >= cut).any()) for track in alone] == [False, True, False, False]
    again = ok(run_script("sample.py", *flags, "--again", tmp_path / "out" / "take-0002.mid"))
    assert "byte for byte" in again


def test_a_model_of_single_tracks_has_no_choice_of_programs(tmp_path: Path) -> None:
    model = untrained(tmp_path, TRACKS)
    said = refusal(run_script("sample.py", "--root", tmp_path, "--model", model, "--program", "0,drums"))
    assert "--program 0,drums: what this model writes has one part" in said


def test_what_a_language_without_a_grammar_can_not_keep_to_is_told(tmp_path: Path) -> None:
    model = untrained(tmp_path, Language("messages"))
    for flags in (("--program", "0,drums"), ("--keys", "C3-C6")):
        said = refusal(run_script("sample.py", "--root", tmp_path, "--model", model, *flags))
        assert f"{flags[0]} can't be kept to: lines of the encoding messages are written freely" in said


# --- again -----------------------------------------------------------------------------------------------


def test_a_take_is_made_again_byte_for_byte(trained: Path, tmp_path: Path, prompt: Path) -> None:
    flags = ("--root", trained, "--out", tmp_path / "out")
    ok(run_script("sample.py", *flags, "--takes", "3", "--notes", "20", "--temperature", "0.8", "--keys", "C3-C6"))
    ok(run_script("sample.py", *flags, "--takes", "2", "--prompt", prompt, "--at", "3", "--min-p", "0.01"))
    for made, number in ((2, 6), (5, 7)):
        take, again = (tmp_path / "out" / f"take-{n:04d}.mid" for n in (made, number))
        out = ok(run_script("sample.py", *flags, "--again", take))
        assert f"{again} is {take}, byte for byte" in out and again.read_bytes() == take.read_bytes()


def test_what_is_missing_for_a_take_is_named(trained: Path, tmp_path: Path, prompt: Path) -> None:
    out = tmp_path / "out"
    ok(run_script("sample.py", "--root", trained, "--out", out, "--prompt", prompt))
    take = out / "take-0001.mid"
    model = trained / "train" / "runs" / "default" / "best"
    other = Path(shutil.copytree(model, tmp_path / "other"))
    (other / "config.json").write_text((other / "config.json").read_text() + "\n")
    flags = ("--root", tmp_path, "--out", out, "--again", take)
    assert "is another one" in refusal(run_script("sample.py", *flags, "--model", other))
    assert "byte for byte" in ok(run_script("sample.py", *flags))  # where it was then
    edited = read_midi(take)
    write_midi(edited, tmp_path / "edited.mid", read_texts(take))
    assert "has the notes of" in ok(run_script("sample.py", *flags[:4], "--again", tmp_path / "edited.mid"))
    moved = prompt.rename(tmp_path / "moved.mid")
    assert "name it with --prompt" in refusal(run_script("sample.py", *flags))
    assert "byte for byte" in ok(run_script("sample.py", *flags, "--prompt", moved))
    write_midi(melody(9), moved)
    assert "is not the file that" in refusal(run_script("sample.py", *flags, "--prompt", moved))
    assert "holds no recipe" in refusal(run_script("sample.py", *flags[:4], "--again", moved))


# --- what can't be ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--program", "200"), "'200' is no instrument; give 0..127, a General MIDI name, or drums"),
        (("--program", "0,,3"), "'' is no instrument"),
        (("--program", "cello,flut"), "'flut' is no instrument; do you mean flute or pan flute?"),
        (("--program", "drums,d", "--keys", "C2-C6"), "no --key and no --keys"),
        (("--program", "drums", "--key", "C"), "no --key and no --keys"),
        (("--keys", "C4"), "is not two notes"),
        (("--temperature", "1e-9"), "--temperature 1e-09 is neither 0 nor in"),
        (("--again", "take.mid", "--bars", "3"), "--bars is the recipe's"),
        (("--tempo", "10"), "20..320"),
        (("--meter", "4/3"), "--meter 4/3 is none of"),
        (("--key", "H4"), "no key such as D"),
        (("--keys", "C4-H5"), "is not two notes"),
        (("--keys", "C4-C10"), "is not two notes"),
        (("--keys", "C4-A5", "--key", "D"), "must hold two octaves"),
        (("--keys", "C4-D4"), "must hold an octave"),
        (("--bars", "4", "--notes", "3"), "give one of them"),
        (("--bars", "4", "--ending"), "give one of them"),
        (("--bars", "0"), "--bars 0.0 must be above 0"),
        (("--bars", "1e6"), "up to 10000"),
        (("--top-p", "1.5"), "--top-p 1.5 is not a share"),
        (("--at", "3"), "name one"),
        (("--takes", "0"), "--takes 0 must be at least 1"),
        (("--prompt", "x.mid", "--tempo", "90"), "are the prompt's own"),
        (("--prompt", "none.mid"), "none.mid can't be read"),
        (("--model", "."), "is not a checkpoint"),
        (("--device", "abacus"), "--device abacus"),
    ],
)
def test_what_can_not_be_is_told(trained: Path, tmp_path: Path, flags: tuple[str, ...], said: str) -> None:
    assert said in refusal(run_script("sample.py", "--root", trained, "--out", tmp_path / "out", *flags))
    assert not (tmp_path / "out").exists()


def test_prompts_that_are_none_are_told(trained: Path, tmp_path: Path, prompt: Path) -> None:
    flags = ("--root", trained, "--out", tmp_path / "out", "--prompt")
    (tmp_path / "text.mid").write_text("Dear diary")
    assert "is not a MIDI file" in refusal(run_script("sample.py", *flags, tmp_path / "text.mid"))
    write_midi(Score(480, ()), tmp_path / "empty.mid")
    assert "has no notes" in refusal(run_script("sample.py", *flags, tmp_path / "empty.mid"))
    (tmp_path / "broken.mid").write_bytes(prompt.read_bytes()[:-40])
    assert "a prompt has to be a whole MIDI file" in refusal(run_script("sample.py", *flags, tmp_path / "broken.mid"))


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
