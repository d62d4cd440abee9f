"""From raw_data/ to a take, as a user runs it: index, dataset, tokenizer, train-bin, train, sample."""

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from midigpt.dataset import make_dataset
from midigpt.documents import Split
from midigpt.files import UserError
from midigpt.index import Song, index_files, songs
from midigpt.language import decode, encode, read_header
from midigpt.midi import read_midi, write_midi
from midigpt.score import Score
from midigpt.tokenizer import START_ID, learn_tokenizer
from midigpt.train_data import Batches, evaluation_windows, line_tokens, load_side, make_train_bin, read_data
from tests.conftest import PROJECT, make_songs, melody, ok, refusal, run_script

SPLIT = Split(0.2, 0)
TINY = ("--model.n-layer", "1", "--model.n-head", "2", "--model.n-embd", "16", "--model.block-size", "32")
TINY += ("--batch-size", "4", "--log-interval", "2", "--device", "cpu")


def documents(root: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in (root / "data").glob("*.txt")}


def verdicts(root: Path) -> dict[str, tuple[str, str | None]]:
    rows = sqlite3.connect(root / "cache" / "index.sqlite").execute("SELECT path, state, reason FROM files")
    return {os.fsdecode(path): (state, reason) for path, state, reason in rows}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with 30 songs, packed."""
    root = tmp_path_factory.mktemp("prepared")
    make_songs(root / "raw_data", 30)
    index_files(root)
    make_dataset(root)
    learn_tokenizer(root, 80, SPLIT)
    make_train_bin(root, SPLIT)
    return root


@pytest.fixture
def work(prepared: Path, tmp_path: Path) -> Path:
    """A copy of `prepared` to do with as one likes."""
    return Path(shutil.copytree(prepared, tmp_path / "work"))


@pytest.fixture(scope="module")
def trained(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = Path(shutil.copytree(prepared, tmp_path_factory.mktemp("trained") / "work"))
    flags = (*TINY, "--max-steps", "150", "--eval-interval", "75", "--learning-rate", "2e-2", "--warmup-steps", "10")
    ok(run_script("scripts/train.py", "--root", root, *flags))
    return root


# --- index -----------------------------------------------------------------------------------------------


def test_index_finds_all_endings_in_any_case_nested(tmp_path: Path) -> None:
    song = tmp_path / "song.mid"
    write_midi(melody(0), song)
    for name in ("a.mid", "b/c/d.MIDI", "b/e.Kar", "f.RMI", "._a.mid"):
        (tmp_path / "raw_data" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(song, tmp_path / "raw_data" / name)
    (tmp_path / "raw_data" / "notes.txt").write_text("no music")
    assert index_files(tmp_path)["new"] == 4
    assert set(verdicts(tmp_path)) == {"a.mid", "b/c/d.MIDI", "b/e.Kar", "f.RMI"}


def test_index_notices_new_changed_removed_and_same(tmp_path: Path) -> None:
    raw = tmp_path / "raw_data"
    make_songs(raw, 3)
    assert index_files(tmp_path) == {"new": 3, "changed": 0, "removed": 0, "same": 0}
    make_dataset(tmp_path)
    write_midi(melody(77), raw / "song00.mid")  # changed
    (raw / "song01.mid").unlink()
    os.utime(raw / "song02.mid", (1, 1))  # touched only
    write_midi(melody(78), raw / "song03.mid")
    assert index_files(tmp_path) == {"new": 1, "changed": 1, "removed": 1, "same": 1}
    assert make_dataset(tmp_path).converted == 2
    assert set(documents(tmp_path)) == {"song00_1.txt", "song02_1.txt", "song03_1.txt"}
    assert index_files(tmp_path) == {"new": 0, "changed": 0, "removed": 0, "same": 3}


def test_trap_equal_names_in_two_folders_do_not_meet(tmp_path: Path) -> None:
    raw = tmp_path / "raw_data"
    for number, name in enumerate(("b/song.mid", "c/Song.MID", "c/song.kar")):
        (raw / name).parent.mkdir(parents=True, exist_ok=True)
        write_midi(melody(number), raw / name)
    index_files(tmp_path)
    make_dataset(tmp_path)
    before = documents(tmp_path)
    assert len(before) == 3 and "song_1.txt" in before
    assert decode([before["song_1.txt"]]) == decode([encode(melody(0))[0].text])
    assert all(len(name) == len("song-123456_1.txt") for name in before if name != "song_1.txt")
    (raw / "a").mkdir()
    write_midi(melody(9), raw / "a" / "song.mid")  # comes first in path order, but the name is given
    index_files(tmp_path)
    make_dataset(tmp_path)
    assert before.items() < documents(tmp_path).items()
    assert len(documents(tmp_path)) == 4


def test_names_are_made_fit_for_any_file_system(tmp_path: Path) -> None:
    raw = tmp_path / "raw_data"
    raw.mkdir()
    song = tmp_path / "song.mid"
    write_midi(melody(0), song)
    for name in (b"caf\xe9.mid", "文件 #@!.mid".encode(), b"a\nb.mid", b"x" * 250 + b".mid", b"y" * 249 + b"1.mid"):
        shutil.copy(song, raw / os.fsdecode(name))
    index_files(tmp_path)
    assert make_dataset(tmp_path).converted == 5
    assert index_files(tmp_path)["same"] == 5
    names = set(documents(tmp_path))
    assert {"文件 #@!_1.txt", "a_b_1.txt", "caf\N{REPLACEMENT CHARACTER}_1.txt"} <= names


def test_documents_the_index_does_not_know_go(tmp_path: Path) -> None:
    raw = tmp_path / "raw_data"
    make_songs(raw, 2)
    index_files(tmp_path)
    make_dataset(tmp_path)
    (tmp_path / "data" / "README.md").write_text("mine")
    shutil.rmtree(tmp_path / "cache")
    (raw / "song00.mid").rename(raw / "other.mid")
    index_files(tmp_path)
    make_dataset(tmp_path)
    assert set(documents(tmp_path)) == {"other_1.txt", "song01_1.txt"}
    (raw / "other.mid").write_text("no MIDI any more")
    index_files(tmp_path)
    make_dataset(tmp_path)
    assert set(documents(tmp_path)) == {"song01_1.txt"}
    assert (tmp_path / "data" / "README.md").exists()


def test_a_refusal_that_may_pass_is_tried_again(tmp_path: Path) -> None:
    make_songs(tmp_path / "raw_data", 2)
    index_files(tmp_path)
    (tmp_path / "raw_data" / "song00.mid").rename(tmp_path / "elsewhere")
    assert make_dataset(tmp_path).refused.keys() == {"song00.mid"}
    (tmp_path / "elsewhere").rename(tmp_path / "raw_data" / "song00.mid")
    assert make_dataset(tmp_path).converted == 1


def test_an_empty_folder_and_one_without_midi_are_told(tmp_path: Path) -> None:
    assert "raw_data does not exist; make that folder" in refusal(run_script("scripts/index.py", "--root", tmp_path))
    (tmp_path / "raw_data").mkdir()
    assert "holds no MIDI file" in refusal(run_script("scripts/index.py", "--root", tmp_path))


# --- dataset ---------------------------------------------------------------------------------------------


def test_documents_are_the_tracks_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "raw_data").mkdir()
    first, second = melody(1, program=20), melody(2, is_drum=True)
    score = Score(480, first.tracks + second.tracks)
    write_midi(score, tmp_path / "raw_data" / "two.mid")
    index_files(tmp_path)
    make_dataset(tmp_path)
    texts = documents(tmp_path)
    assert [read_header(texts[f"two_{n}.txt"]).program for n in (1, 2)] == [20, None]
    assert decode([texts["two_1.txt"], texts["two_2.txt"]]).notes == 80


def test_one_bad_file_costs_only_itself(tmp_path: Path) -> None:
    make_songs(tmp_path / "raw_data", 3)
    good = (tmp_path / "raw_data" / "song00.mid").read_bytes()
    (tmp_path / "raw_data" / "text.mid").write_text("Dear diary")
    (tmp_path / "raw_data" / "cut.mid").write_bytes(good[:-20])
    index_files(tmp_path)
    out = ok(run_script("scripts/dataset.py", "--root", tmp_path))
    assert "refused 1: is not a MIDI file: text.mid" in out and "3 files converted" in out
    assert verdicts(tmp_path)["text.mid"] == ("refused", "is not a MIDI file (it has no MThd header)")
    assert "truncated" in str(verdicts(tmp_path)["cut.mid"][1])
    again = ok(run_script("scripts/dataset.py", "--root", tmp_path))
    assert "0 files converted" in again and "in all 3 files in 3 documents" in again and "2 refused" in again


def test_nothing_but_bad_files_is_a_failure(tmp_path: Path) -> None:
    (tmp_path / "raw_data").mkdir()
    (tmp_path / "raw_data" / "text.mid").write_text("Dear diary")
    index_files(tmp_path)
    assert "no file could be converted" in refusal(run_script("scripts/dataset.py", "--root", tmp_path))
    assert "no file could be converted" in refusal(run_script("scripts/dataset.py", "--root", tmp_path))


def test_dataset_n_converts_n_more(tmp_path: Path) -> None:
    make_songs(tmp_path / "raw_data", 5)
    index_files(tmp_path)
    assert [make_dataset(tmp_path, limit=2).left for _ in range(3)] == [3, 1, 0]
    assert len(documents(tmp_path)) == 5


def test_deleted_documents_and_another_language_are_made_anew(tmp_path: Path) -> None:
    make_songs(tmp_path / "raw_data", 3)
    index_files(tmp_path)
    make_dataset(tmp_path)
    before = documents(tmp_path)
    (tmp_path / "data" / "song01_1.txt").unlink()
    assert make_dataset(tmp_path).converted == 1
    with sqlite3.connect(tmp_path / "cache" / "index.sqlite") as index:
        index.execute("UPDATE files SET language = 'an older one'")
    (tmp_path / "data" / "song01_1.txt").write_text("an older document")
    with pytest.raises(UserError, match="make dataset"):
        learn_tokenizer(tmp_path, 80, SPLIT)
    assert make_dataset(tmp_path).converted == 3
    assert documents(tmp_path) == before


def test_an_interrupted_run_is_completed_by_the_next(tmp_path: Path) -> None:
    (tmp_path / "raw_data").mkdir()
    long = tmp_path / "long.mid"  # long enough to be caught in the act
    write_midi(Score(480, melody(0, 2000).tracks * 6), long)
    for number in range(150):
        shutil.copy(long, tmp_path / "raw_data" / f"{number}.mid")
    index_files(tmp_path)
    command = [sys.executable, str(PROJECT / "scripts/dataset.py"), "--root", str(tmp_path), "--workers", "2"]
    for kind in (signal.SIGINT, signal.SIGKILL):
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
        have = len(documents(tmp_path))
        while len(list((tmp_path / "data").glob("*.txt"))) < have + 60 and process.poll() is None:
            time.sleep(0.01)
        os.killpg(process.pid, kind)  # as a terminal does: the workers have it too
        _, error = process.communicate()
        assert process.returncode != 0 and "Traceback" not in error
    assert len(documents(tmp_path)) < 900
    make_dataset(tmp_path)
    interrupted = documents(tmp_path)
    shutil.rmtree(tmp_path / "data")
    shutil.rmtree(tmp_path / "cache")
    index_files(tmp_path)
    make_dataset(tmp_path)
    assert documents(tmp_path) == interrupted and len(interrupted) == 900
    assert [path.name for path in (tmp_path / "data").iterdir() if path.suffix != ".txt"] == []


# --- tokenizer -------------------------------------------------------------------------------------------


def test_the_vocabulary_has_the_size_asked_for(prepared: Path) -> None:
    assert Tokenizer.from_file(str(prepared / "cache" / "tokenizer.json")).get_vocab_size() == 80


def test_a_size_the_data_does_not_allow_is_told(work: Path) -> None:
    flags = ("--root", work, "--vocab-size", "60000", "--val-fraction", "0.2")
    out = ok(run_script("scripts/tokenizer.py", *flags))
    size = Tokenizer.from_file(str(work / "cache" / "tokenizer.json")).get_vocab_size()
    assert f"{size} is the largest vocabulary these documents allow" in out
    assert "is not in" in refusal(run_script("scripts/tokenizer.py", "--root", work, "--vocab-size", "5"))


def test_decoding_gives_back_the_exact_text_and_no_token_crosses_an_event(prepared: Path) -> None:
    tokenizer = Tokenizer.from_file(str(prepared / "cache" / "tokenizer.json"))
    for text in documents(prepared).values():
        encoding = tokenizer.encode(text)
        assert tokenizer.decode(encoding.ids) == text
        assert not any("\n" in token[:-1] or " " in token[1:] for token in encoding.tokens)
    strange = "# program=d tempo=33 meter=15/16\n127=16:95/24|9876543/1\n"
    assert tokenizer.decode(tokenizer.encode(strange).ids) == strange


def test_transformers_opens_the_tokenizer(prepared: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    path = str(prepared / "cache" / "tokenizer.json")
    theirs, ours = PreTrainedTokenizerFast(tokenizer_file=path), Tokenizer.from_file(path)
    for text in documents(prepared).values():
        assert theirs.encode(text) == ours.encode(text).ids
        assert theirs.decode(theirs.encode(text)) == text


def test_the_tokenizer_learns_from_training_songs_only(work: Path) -> None:
    learned = (work / "cache" / "tokenizer.json").read_bytes()
    held_out = [song for song in songs(work) if SPLIT.is_val(song)]
    assert held_out
    for song in held_out:
        (work / "data" / f"{song.name}_1.txt").write_text("# program=99\n99+16|77/24\n" * 50)
    learn_tokenizer(work, 80, SPLIT)
    assert (work / "cache" / "tokenizer.json").read_bytes() == learned


# --- train.bin -------------------------------------------------------------------------------------------


def test_train_bin_is_plain_uint16_with_every_document(prepared: Path) -> None:
    tokens = np.fromfile(prepared / "train" / "train.bin", "<u2")
    tokenizer = Tokenizer.from_file(str(prepared / "cache" / "tokenizer.json"))
    starts = np.flatnonzero(tokens == START_ID)
    meta = json.loads((prepared / "train" / "meta.json").read_text())
    assert len(starts) == meta["train"]["documents"] and len(tokens) == meta["train"]["tokens"]
    assert tokens.max() < meta["vocab_size"]
    packed = {tokenizer.decode(part[1:].tolist()).partition("\n")[2] for part in np.split(tokens, starts[1:])}
    training = [song for song in songs(prepared) if not SPLIT.is_val(song)]
    assert packed == {documents(prepared)[f"{song.name}_1.txt"].partition("\n")[2] for song in training}
    assert meta["train"]["songs"] + meta["val"]["songs"] == 30 and meta["val"]["songs"] > 0


def test_headers_are_thinned_in_training_and_without_key_in_validation(prepared: Path) -> None:
    tokenizer = Tokenizer.from_file(str(prepared / "cache" / "tokenizer.json"))

    def headers(name: str) -> list[str]:
        side, _ = load_side(prepared, name)
        return [tokenizer.decode(side.tokens[start + 1 : lines].tolist()) for start, lines in side.docs]

    assert set(headers("val")) == {"# program=0 tempo=100 meter=4/4\n"}
    kept = sum(header.count("=") for header in headers("train")) / (4 * len(headers("train")))
    assert 0.6 < kept < 0.9


def test_running_twice_changes_nothing(work: Path) -> None:
    def everything() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for folder in ("cache", "train") for path in (work / folder).iterdir()}

    before = everything()
    learn_tokenizer(work, 80, SPLIT)
    make_train_bin(work, SPLIT)
    assert everything() == before


def test_adding_files_moves_no_song(work: Path) -> None:
    before = {song.name: SPLIT.is_val(song) for song in songs(work)}
    write_midi(melody(1000), work / "raw_data" / "aaa.mid")
    index_files(work)
    make_dataset(work)
    after = {song.name: SPLIT.is_val(song) for song in songs(work)}
    assert before.items() < after.items()


def test_trap_one_song_under_two_names_stays_on_one_side(tmp_path: Path) -> None:
    raw = tmp_path / "raw_data"
    make_songs(raw, 20)
    for number in range(20):
        (track,) = melody(number).tracks
        moved = type(track)(5, False, track.onset, track.duration, track.pitch + 3, track.velocity)
        write_midi(Score(480, (moved,), 77.0), raw / f"cover{number:02d}.mid")
    index_files(tmp_path)
    make_dataset(tmp_path)
    split = Split(0.5, 0)
    sides = {song.name: split.is_val(song) for song in songs(tmp_path)}
    assert set(sides.values()) == {True, False}
    assert all(sides[f"song{number:02d}"] == sides[f"cover{number:02d}"] for number in range(20))


def test_about_the_asked_fraction_is_held_out() -> None:
    songs = [Song(str(number), f"{number:016x}", 1) for number in range(2000)]
    for fraction in (0.0, 0.05, 0.5):
        held_out = sum(Split(fraction, seed=1).is_val(song) for song in songs)
        assert held_out == pytest.approx(2000 * fraction, abs=70)
    assert [Split(0.5, 1).is_val(song) for song in songs] != [Split(0.5, 2).is_val(song) for song in songs]


def test_another_split_than_the_tokenizers_is_refused(work: Path) -> None:
    error = refusal(run_script("scripts/train_bin.py", "--root", work, "--val-fraction", "0.2", "--seed", "5"))
    assert 'make tokenizer ARGS="--val-fraction 0.2 --seed 5"' in error


def test_read_data_is_checked_and_maps_memory(prepared: Path) -> None:
    path = prepared / "train" / "train.bin"
    tokens = np.fromfile(path, "<u2")
    assert isinstance(read_data(0, 5, path), np.memmap)
    assert np.array_equal(read_data(3, 11, path), tokens[3:11])
    assert len(read_data(len(tokens), len(tokens), path)) == 0
    for start, end in ((-1, 5), (5, 3), (0, len(tokens) + 1)):
        with pytest.raises(IndexError, match="not within"):
            read_data(start, end, path)


def test_every_token_is_a_target_once_an_epoch(prepared: Path) -> None:
    side, _ = load_side(prepared, "train")
    batches = Batches(side, 3, 17, seed=1)
    length = len(side.tokens)
    stream = np.concatenate([batches(step)[1].ravel() for step in range(3 * length // 51 + 1)])
    assert np.array_equal(batches(2)[1], Batches(side, 3, 17, seed=1)(2)[1])  # a function of the step alone
    first, second = np.append(batches(0)[0][0, 0], stream[: length - 1]), stream[length - 1 : 2 * length - 1]
    assert not np.array_equal(first, second)
    for epoch in (first, second):
        assert np.array_equal(np.sort(epoch), np.sort(side.tokens))
        assert np.array_equal(np.flatnonzero(epoch == START_ID)[:1], [0])


def test_the_measure_counts_every_line_token_once(prepared: Path) -> None:
    side, _ = load_side(prepared, "val")
    for block_size in (1, 8, 33, 10_000):
        counted = np.zeros(len(side.tokens), int)
        for start, end, first in evaluation_windows(side, block_size):
            assert end - start <= block_size + 1
            counted[max(first, start + 1) : end] += 1
        assert counted.max() == 1
        assert np.array_equal(side.tokens[counted == 1], line_tokens(side))


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
    flags = ("--root", work, *TINY, "--max-steps", "40", "--eval-interval", "20")
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
    assert stopped < 40 and "stopped; the same command goes on" in out
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
        assert (tmp_path / "take-0002.mid").exists()


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


def test_every_hostile_file_has_a_verdict_and_good_ones_are_untouched(
    corpus: Callable[[str], Path], tmp_path: Path
) -> None:
    (tmp_path / "raw_data").mkdir()
    (tmp_path / "raw_data" / "hostile").symlink_to(corpus("hostile"))
    make_songs(tmp_path / "raw_data" / "good", 5)
    index_files(tmp_path)
    summary = make_dataset(tmp_path, processes=2)
    states = verdicts(tmp_path)
    assert {state for state, _ in states.values()} == {"converted", "refused"}
    assert all(states[f"good/song{number:02d}.mid"] == ("converted", None) for number in range(5))
    assert summary.converted > 100 and len(summary.refused) > 50
    for name, text in documents(tmp_path).items():
        assert [document.text for document in encode(decode([text]))] == [text], name


def test_the_whole_pipeline_on_real_files(corpus: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "raw_data").symlink_to(corpus("mini"))
    ok(run_script("scripts/index.py", "--root", tmp_path))
    assert "150 files in 535 documents" in ok(run_script("scripts/dataset.py", "--root", tmp_path))
    ok(run_script("scripts/tokenizer.py", "--root", tmp_path, "--vocab-size", "256"))
    ok(run_script("scripts/train_bin.py", "--root", tmp_path))
    shape = ("--model.n-layer", "2", "--model.n-head", "2", "--model.n-embd", "64", "--model.block-size", "64")
    out = ok(run_script("scripts/train.py", "--root", tmp_path, *shape, "--max-steps", "200", "--warmup-steps", "20"))
    assert float(out.rpartition("ratio ")[2].partition(")")[0]) < 1
