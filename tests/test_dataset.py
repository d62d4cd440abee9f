"""The index and the dataset: what becomes of MIDI files, good, bad, changed and gone, and of interrupted runs."""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from midigpt.dataset import Options, make_dataset
from midigpt.executors import Executor
from midigpt.files import UserError
from midigpt.header import read_header
from midigpt.index import index_files
from midigpt.language import Language, decode, encode
from midigpt.midi import write_midi
from midigpt.score import Score
from midigpt.tokenizer import learn_tokenizer
from tests.conftest import OF_TRACKS, PROJECT, SPLIT, documents, make_songs, melody, ok, refusal, run_script


def verdicts(root: Path) -> dict[str, tuple[str, str | None, str | None]]:
    """By path: state, reason, remark."""
    rows = sqlite3.connect(root / "cache" / "index.sqlite").execute("SELECT path, state, reason, remark FROM files")
    return {os.fsdecode(path): (state, reason, remark) for path, state, reason, remark in rows}


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
    make_dataset(tmp_path, OF_TRACKS)
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
    make_dataset(tmp_path, OF_TRACKS)
    before = documents(tmp_path)
    assert len(before) == 3 and "song_1.txt" in before
    assert decode([before["song_1.txt"]]) == decode([encode(melody(0))[0].text])
    assert all(len(name) == len("song-123456_1.txt") for name in before if name != "song_1.txt")
    (raw / "a").mkdir()
    write_midi(melody(9), raw / "a" / "song.mid")  # comes first in path order, but the name is given
    index_files(tmp_path)
    make_dataset(tmp_path, OF_TRACKS)
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
    assert make_dataset(tmp_path, OF_TRACKS).converted == 5
    assert index_files(tmp_path)["same"] == 5
    names = set(documents(tmp_path))
    assert {"文件 #@!_1.txt", "a_b_1.txt", "caf\N{REPLACEMENT CHARACTER}_1.txt"} <= names


def test_documents_the_index_does_not_know_go(tmp_path: Path) -> None:
    raw = tmp_path / "raw_data"
    make_songs(raw, 2)
    index_files(tmp_path)
    make_dataset(tmp_path, OF_TRACKS)
    (tmp_path / "data" / "README.md").write_text("mine")
    shutil.rmtree(tmp_path / "cache")
    (raw / "song00.mid").rename(raw / "other.mid")
    index_files(tmp_path)
    make_dataset(tmp_path, OF_TRACKS)
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


@pytest.mark.parametrize("shards", [False, True])
def test_a_file_that_stays_unreadable_makes_no_work(tmp_path: Path, shards: bool) -> None:
    make_songs(tmp_path / "raw_data", 3)
    index_files(tmp_path)
    (tmp_path / "raw_data" / "song01.mid").unlink()
    os.mkfifo(tmp_path / "raw_data" / "song01.mid")  # opening it would wait for ever
    summary = make_dataset(tmp_path, Options(shards=shards))
    assert (summary.converted, summary.refused) == (2, {"song01.mid": "can't be read (no regular file)"})
    assert make_dataset(tmp_path).converted == 0


def test_what_broke_a_worker_is_tried_again_with_other_limits(tmp_path: Path) -> None:
    make_songs(tmp_path / "raw_data", 2)
    index_files(tmp_path)
    make_dataset(tmp_path)
    with sqlite3.connect(tmp_path / "cache" / "index.sqlite") as index:
        crashed = "UPDATE files SET state = 'refused', reason = 'crashed the reader (signal 11)'"
        index.execute(f"{crashed} WHERE name = 'song00'")
    assert make_dataset(tmp_path).converted == 0
    assert make_dataset(tmp_path, Options(time_limit=100)).converted == 1


def test_somebodys_text_in_data_stays(tmp_path: Path) -> None:
    make_songs(tmp_path / "raw_data", 1)
    index_files(tmp_path)
    make_dataset(tmp_path, OF_TRACKS)
    (tmp_path / "data" / "letter_1.txt").write_text("Dear diary")
    shutil.copy(tmp_path / "data" / "song00_1.txt", tmp_path / "data" / "stale_1.txt")
    make_dataset(tmp_path)
    assert documents(tmp_path).keys() == {"song00_1.txt", "letter_1.txt"}


def test_a_folder_with_files_of_somebody_is_not_taken_for_data(tmp_path: Path) -> None:
    make_songs(tmp_path / "raw_data", 2)
    index_files(tmp_path)
    for name in ("letter_1.txt", "manifest.json", "shard-1.txt"):
        folder = tmp_path / name.replace(".", "-")
        folder.mkdir()
        (folder / name).write_text("mine")
        with pytest.raises(UserError, match="is not empty"):
            make_dataset(tmp_path, Options(data=str(folder)))
        assert (folder / name).read_text() == "mine"


@pytest.mark.parametrize("location", ["s3://", "memory://data"])
def test_a_place_that_keeps_nothing_is_told(tmp_path: Path, location: str) -> None:
    make_songs(tmp_path / "raw_data", 1)
    index_files(tmp_path)
    flags = ("--root", tmp_path, "--data", location)
    assert "is no place to keep files" in refusal(run_script("scripts/dataset.py", *flags))


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
    make_dataset(tmp_path, OF_TRACKS)
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
    assert "refused 1: is not a MIDI file: text.mid" in out and "4 files converted" in out
    assert "read as far as whole: 1" in out
    assert verdicts(tmp_path)["text.mid"] == ("refused", "is not a MIDI file (it has no MThd header)", None)
    assert "is cut off (20 bytes are missing)" in str(verdicts(tmp_path)["cut.mid"])
    again = ok(run_script("scripts/dataset.py", "--root", tmp_path))
    assert "0 files converted" in again and "in all 4 files in 4 documents" in again and "1 refused" in again


def test_nothing_but_bad_files_is_a_failure(tmp_path: Path) -> None:
    (tmp_path / "raw_data").mkdir()
    (tmp_path / "raw_data" / "text.mid").write_text("Dear diary")
    index_files(tmp_path)
    assert "no file could be converted" in refusal(run_script("scripts/dataset.py", "--root", tmp_path))
    assert "no file could be converted" in refusal(run_script("scripts/dataset.py", "--root", tmp_path))


def test_dataset_n_converts_n_more(tmp_path: Path) -> None:
    make_songs(tmp_path / "raw_data", 5)
    index_files(tmp_path)
    assert [make_dataset(tmp_path, Options(limit=2)).left for _ in range(3)] == [3, 1, 0]
    assert len(documents(tmp_path)) == 5


def test_deleted_documents_and_another_language_are_made_anew(tmp_path: Path) -> None:
    make_songs(tmp_path / "raw_data", 3)
    index_files(tmp_path)
    make_dataset(tmp_path, OF_TRACKS)
    before = documents(tmp_path)
    (tmp_path / "data" / "song01_1.txt").unlink()
    assert make_dataset(tmp_path).converted == 1
    with sqlite3.connect(tmp_path / "cache" / "index.sqlite") as index:
        index.execute("UPDATE files SET recipe = 'an older one'")
    (tmp_path / "data" / "song01_1.txt").write_text("an older document")
    with pytest.raises(UserError, match="make dataset"):
        learn_tokenizer(tmp_path, 80, SPLIT)
    assert make_dataset(tmp_path).converted == 3
    assert documents(tmp_path) == before


def test_an_interrupted_run_is_completed_by_the_next(tmp_path: Path) -> None:
    (tmp_path / "raw_data").mkdir()
    long = tmp_path / "long.mid"  # long enough to be caught in the act
    write_midi(Score(480, melody(0, 2000).tracks * 6), long)
    for number in range(300):
        shutil.copy(long, tmp_path / "raw_data" / f"{number}.mid")
    index_files(tmp_path)
    command = [sys.executable, str(PROJECT / "scripts/dataset.py"), "--root", str(tmp_path), "--workers", "2"]
    command += ["--layout", "track", "--encoding", "interval"]
    for kind in (signal.SIGINT, signal.SIGKILL):
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
        have = len(documents(tmp_path))
        while len(list((tmp_path / "data").glob("*.txt"))) < have + 60 and process.poll() is None:
            time.sleep(0.01)
        os.killpg(process.pid, kind)  # as a terminal does: the workers have it too
        _, error = process.communicate()
        assert process.returncode != 0 and "Traceback" not in error
    assert len(documents(tmp_path)) < 1800
    make_dataset(tmp_path, OF_TRACKS)
    interrupted = documents(tmp_path)
    shutil.rmtree(tmp_path / "data")
    shutil.rmtree(tmp_path / "cache")
    index_files(tmp_path)
    make_dataset(tmp_path, OF_TRACKS)
    assert documents(tmp_path) == interrupted and len(interrupted) == 1800
    assert [path.name for path in (tmp_path / "data").iterdir() if path.suffix != ".txt"] == []


def test_every_hostile_file_has_a_verdict_and_good_ones_are_untouched(
    corpus: Callable[[str], Path], tmp_path: Path
) -> None:
    (tmp_path / "raw_data").mkdir()
    (tmp_path / "raw_data" / "hostile").symlink_to(corpus("hostile"))
    make_songs(tmp_path / "raw_data" / "good", 5)
    index_files(tmp_path)
    summary = make_dataset(tmp_path, Options(executor=Executor(workers=2)))
    states = verdicts(tmp_path)
    assert {state for state, *_ in states.values()} == {"converted", "refused"}
    assert all(states[f"good/song{number:02d}.mid"] == ("converted", None, None) for number in range(5))
    assert summary.converted > 155 and summary.rescued > 35 and len(summary.refused) > 30
    for name, text in documents(tmp_path).items():
        language = Language()
        assert [document.text for document in encode(decode([text], language), language=language)] == [text], name
