"""What no file, no disk and no user can break: the index, the dataset, and the steps after them."""

import os
import random
import shutil
import signal
import sqlite3
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from midigpt.dataset import Options, make_dataset
from midigpt.executors import Executor
from midigpt.files import UserError, locked
from midigpt.index import index_files
from midigpt.language import TRACKS, Language, decode, encode
from midigpt.midi import write_midi
from tests.conftest import (
    LAYOUTS,
    PROJECT,
    contents,
    documents,
    make_songs,
    melody,
    midi_files,
    ok,
    refusal,
    run_script,
    tables,
)
from tests.test_dataset import verdicts

STEPS = pytest.mark.parametrize("step", ["index.py", "dataset.py", "tokenizer.py", "train_bin.py"])


# --- workers ---------------------------------------------------------------------------------------------


def large(path: Path, notes: int) -> None:
    """A file of so many notes; whole, but it takes about 0.7 s and 270 MB a million."""
    events = b"".join(bytes([16, 0x90, pitch, 80, 32, 0x80, pitch, 0]) for pitch in range(36, 96)) * (notes // 60)
    track = b"MTrk" + struct.pack(">I", len(events) + 4) + events + b"\0\xff\x2f\0"
    path.write_bytes(b"MThd" + struct.pack(">IHHH", 6, 1, 1, 480) + track)


@LAYOUTS
@pytest.mark.parametrize(
    ("limit", "notes", "reason"),
    [
        (("--time-limit", "0.5"), 2_000_000, "takes more than 0.5 s to read"),
        (("--memory-limit", "0.2"), 1_500_000, "needs more memory than a worker has (--memory-limit)"),
        (("--memory-limit", "0.36"), 1_500_000, "needs more memory than a worker has (--memory-limit)"),
    ],
    ids=["time", "memory to read", "memory to encode"],
)
def test_a_file_that_takes_too_much_costs_only_itself(
    tmp_path: Path, layout: tuple[str, ...], limit: tuple[str, ...], notes: int, reason: str
) -> None:
    make_songs(tmp_path / "raw_data", 5)
    index_files(tmp_path)
    ok(run_script("scripts/dataset.py", "--root", tmp_path, *layout))
    without = contents(tmp_path / "data")
    large(tmp_path / "raw_data" / "song02a.mid", notes)
    shutil.rmtree(tmp_path / "cache")
    index_files(tmp_path)
    result = run_script("scripts/dataset.py", "--root", tmp_path, "--workers", "2", *layout, *limit)
    assert f"refused 1: {reason.partition(' (')[0]}: song02a.mid" in ok(result) and not result.stderr
    assert verdicts(tmp_path)["song02a.mid"] == ("refused", reason, None)
    assert contents(tmp_path / "data") == without
    if not layout:
        ok(run_script("scripts/dataset.py", "--root", tmp_path, "--time-limit", "0", "--memory-limit", "0"))
        assert verdicts(tmp_path)["song02a.mid"] == ("converted", None, None)


# --- full disks ------------------------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """disk("2m") is a folder on a disk of that size; once more, it has another size."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def resize(size: str) -> Path:
        how = ["-o", f"remount,size={size}"] if folder.is_mount() else ["-t", "tmpfs", "-o", f"size={size}", "tmpfs"]
        if shutil.which("mount") is None or subprocess.run(["mount", *how, folder], capture_output=True).returncode:
            pytest.skip("needs the right to mount a small file system: run as root")
        return folder

    yield resize
    if folder.is_mount():
        subprocess.run(["umount", "--lazy", folder], check=True)


def check_full(result: subprocess.CompletedProcess[str]) -> None:
    error = refusal(result)
    assert any(words in error for words in ("No space left on device", "disk is full", "disk I/O error"))
    assert result.returncode == 1 and error.count("\n") == 1 and "run the same command again" in error


def fill(folder: Path, but: int) -> Path:
    """Fill up a disk but for some bytes."""
    free = os.statvfs(folder)
    (folder / "filler").write_bytes(bytes(free.f_bavail * free.f_frsize - but))
    return folder / "filler"


@LAYOUTS
def test_a_disk_that_gets_full_of_documents(
    tmp_path: Path, long_songs: Path, disk: Callable[[str], Path], layout: tuple[str, ...]
) -> None:
    root = disk("3m")
    for folder in (root, tmp_path):
        index_files(folder, str(long_songs))
    command = ("scripts/dataset.py", "--workers", "2", *layout, "--root")
    ok(run_script(*command, tmp_path))
    result = run_script(*command, root)
    check_full(result)
    whole = contents(tmp_path / "data")
    left = {name: data for name, data in contents(root / "data").items() if not name.startswith(".midigpt.tmp/")}
    assert left.items() <= whole.items() and len(left) < len(whole)
    disk("64m")
    ok(run_script(*command, root))
    assert contents(root / "data") == whole and tables(root) == tables(tmp_path)


@pytest.mark.parametrize(
    ("step", "free"),
    [("index.py", 0), ("dataset.py", 0), ("dataset.py", 4096), ("tokenizer.py", 4096), ("train_bin.py", 4096)],
)
def test_a_full_disk(prepared: Path, disk: Callable[[str], Path], step: str, free: int) -> None:
    root = Path(shutil.copytree(prepared, disk("2m"), dirs_exist_ok=True))
    make_songs(root / "raw_data" / "more", 150)
    if step != "index.py":
        index_files(root)
    filler = fill(root, free)
    flags = ("--val-fraction", "0.2") if step in ("tokenizer.py", "train_bin.py") else ()
    before = contents(root)
    check_full(run_script(f"scripts/{step}", "--root", root, *flags))
    after = contents(root)
    kept = after.keys() & before.keys() - {"cache/lock", "cache/index.sqlite"}
    assert all(after[name] == before[name] for name in kept)
    filler.unlink()
    ok(run_script(f"scripts/{step}", "--root", root, *flags))
    assert not [name for name in contents(root) if ".tmp" in name or "journal" in name]


# --- one at a time ---------------------------------------------------------------------------------------


@STEPS
def test_a_second_command_says_who_is_at_work(prepared: Path, step: str) -> None:
    with locked(prepared):
        result = run_script(f"scripts/{step}", "--root", prepared)
    assert f"another command is at work in {prepared} (process {os.getpid()})" in refusal(result)
    assert result.returncode == 1


def test_the_lock_is_free_when_its_holder_was_killed(tmp_path: Path, long_songs: Path) -> None:
    index_files(tmp_path, str(long_songs))
    command = [sys.executable, str(PROJECT / "scripts/dataset.py"), "--root", str(tmp_path)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as first:
        while not documents(tmp_path):
            time.sleep(0.01)
        first.send_signal(signal.SIGSTOP)  # so that it is still there
        assert f"(process {first.pid})" in refusal(run_script("scripts/index.py", "--root", tmp_path))
        first.kill()
    ok(run_script("scripts/index.py", "--root", tmp_path))


# --- hostile files and names -----------------------------------------------------------------------------


def test_every_hostile_file_has_a_verdict_in_words(corpus: Callable[[str], Path], tmp_path: Path) -> None:
    good = corpus("mini") / "mini" / "small" / "test-c-major-scale.mid"
    maker = Path(os.environ["MIDIGPT_CORPUS"]) / "make_hostile.py"
    if not maker.exists():
        pytest.skip(f"needs {maker}")
    raw = tmp_path / "raw_data"
    make_songs(raw / "a good one", 5)
    make_songs(raw / "zz/good ones", 5)
    index_files(tmp_path)
    make_dataset(tmp_path)
    without = documents(tmp_path)
    shutil.copytree(corpus("hostile"), raw / "hostile")
    subprocess.run([sys.executable, maker, good, raw / "made", "--small"], check=True, capture_output=True)
    (raw / "made" / "itself.mid").symlink_to("itself.mid")
    index_files(tmp_path)
    assert make_dataset(tmp_path, Options(executor=Executor(workers=2))).left == 0
    check_verdicts(tmp_path)
    together = documents(tmp_path)
    assert without.items() <= together.items()
    for name, text in together.items():
        written = encode(decode([text], Language()), None, Language())
        assert [document.text for document in written] == [text], name
    alone = verdicts(tmp_path)
    ok(run_script("scripts/dataset.py", "--root", tmp_path, "--shards", "--shard-files", "20"))
    assert verdicts(tmp_path) == alone
    shards = documents(tmp_path).values()
    texts = [text.removesuffix("\n") + "\n" for shard in shards for text in shard.split("\n\n")]
    assert sorted(texts) == sorted(together.values())


def check_verdicts(root: Path) -> None:
    states = verdicts(root)
    found = {str(path.relative_to(root / "raw_data")) for path in midi_files(root / "raw_data") if path.is_file()}
    assert states.keys() == {path for path in found if not Path(path).name.startswith("._")}
    for path, (state, reason, remark) in states.items():
        assert state == "converted" or (state == "refused" and reason and reason[0].isalpha()), path
        assert remark != "" and "Error" not in f"{reason} {remark}" and len(f"{reason}{remark}") < 600, path


@pytest.mark.parametrize(("language", "ending"), [(TRACKS, "_1.txt"), (Language(), ".txt")], ids=["tracks", "songs"])
def test_odd_names(tmp_path: Path, language: Language, ending: str) -> None:
    raw = tmp_path / "raw_data"
    raw.mkdir()
    names = [b".mid", b" .mid", b"..mid", b"...mid", b"_1.mid", b".tmp.mid", b"shard-000001.mid", b"manifest.json.mid"]
    names += [b"a\nb\r\x1b[31m.mid", b"\xff\xfe.mid", b"\xff\xfd.mid", "é.mid".encode(), "e\u0301.MID".encode()]
    names += [b"a.b.mid", b"a.b.kar", b"-rf.mid", b"*?[a].mid", b"%s{}.mid", b"x" * 251 + b".mid"]
    names += ["曲".encode() * 83 + b".mid"]
    for number, name in enumerate(names):
        write_midi(melody(number), tmp_path / "song.mid")
        (tmp_path / "song.mid").rename(raw / os.fsdecode(name))
    ok(run_script("scripts/index.py", "--root", tmp_path))
    flags = ("--layout", language.layout, "--encoding", language.encoding)
    ok(run_script("scripts/dataset.py", "--root", tmp_path, *flags))
    assert {state for state, *_ in verdicts(tmp_path).values()} == {"converted"}
    texts = documents(tmp_path)
    assert len(texts) == len(names) and ending in texts
    assert set(texts.values()) == {encode(melody(n), None, language)[0].text for n in range(len(names))}
    (raw / ".mid").unlink()
    index_files(tmp_path)
    make_dataset(tmp_path)
    assert set(documents(tmp_path)) == set(texts) - {ending}
    shutil.rmtree(raw)
    raw.mkdir()
    with pytest.raises(UserError, match="holds no MIDI file"):  # a disk that is not there, most likely
        index_files(tmp_path)
    assert set(documents(tmp_path)) == set(texts) - {ending}


# --- what a user can spoil -------------------------------------------------------------------------------


def a_song(root: Path) -> None:
    make_songs(root / "raw_data", 1)
    index_files(root)


def test_raw_data_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "raw_data").write_text("no folder")
    assert "raw_data is a file" in refusal(run_script("scripts/index.py", "--root", tmp_path))


def test_data_that_is_a_file(tmp_path: Path) -> None:
    a_song(tmp_path)
    (tmp_path / "data").write_text("no folder")
    assert "data/.midigpt.tmp can't be used (Not a directory)" in refusal(
        run_script("scripts/dataset.py", "--root", tmp_path)
    )


def test_data_that_may_not_be_written(tmp_path: Path, disk: Callable[[str], Path]) -> None:
    a_song(tmp_path)
    subprocess.run(["mount", "-o", "remount,ro", disk("1m")], check=True)
    result = run_script("scripts/dataset.py", "--root", tmp_path, "--data", tmp_path / "disk")
    assert "disk/.midigpt.tmp can't be used (Read-only file system)" in refusal(result)


def test_permission_denied(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may do everything")
    make_songs(tmp_path / "raw_data", 2)
    (tmp_path / "raw_data" / "song00.mid").chmod(0)
    index_files(tmp_path)
    out = ok(run_script("scripts/dataset.py", "--root", tmp_path))
    assert "refused 1: can't be read: song00.mid" in out and "1 files converted" in out
    (tmp_path / "raw_data" / "song00.mid").chmod(0o600)
    (tmp_path / "data").chmod(0o500)
    result = run_script("scripts/dataset.py", "--root", tmp_path)
    assert "data/.midigpt.tmp can't be used (Permission denied)" in refusal(result)
    (tmp_path / "data").chmod(0o700)
    index_files(tmp_path)
    assert make_dataset(tmp_path).files == 2


def test_a_file_that_went_since_it_was_indexed(tmp_path: Path) -> None:
    make_songs(tmp_path / "raw_data", 3)
    index_files(tmp_path)
    (tmp_path / "raw_data" / "song01.mid").unlink()
    out = ok(run_script("scripts/dataset.py", "--root", tmp_path))
    assert "refused 1: can't be read: song01.mid" in out and "2 files converted" in out


@STEPS
def test_an_index_of_another_version(work: Path, step: str) -> None:
    with sqlite3.connect(work / "cache" / "index.sqlite") as index:
        index.execute("PRAGMA user_version = 1")
    flags = ("--val-fraction", "0.2") if step == "train_bin.py" else ()
    error = refusal(run_script(f"scripts/{step}", "--root", work, *flags))
    assert "was made by another version of midigpt; delete it and run: make index dataset" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("at", [0, 4096])
@pytest.mark.parametrize("step", ["index.py", "dataset.py"])
def test_a_damaged_index(tmp_path: Path, step: str, at: int) -> None:
    make_songs(tmp_path / "raw_data", 30)
    index_files(tmp_path)
    path = tmp_path / "cache" / "index.sqlite"
    data = path.read_bytes()
    path.write_bytes(data[:at] + bytes(random.Random(at).randbytes(16000)) + data[at + 16000 :])
    error = refusal(run_script(f"scripts/{step}", "--root", tmp_path))
    assert "delete" in error and error.count("\n") == 1


def test_a_duplicate_comes_back_when_its_original_is_spoiled(tmp_path: Path) -> None:
    make_songs(tmp_path / "raw_data", 2)
    shutil.copy(tmp_path / "raw_data" / "song00.mid", tmp_path / "raw_data" / "copy.mid")
    index_files(tmp_path)
    assert make_dataset(tmp_path).duplicates == 1
    (tmp_path / "raw_data" / "copy.mid").write_text("no MIDI any more")
    index_files(tmp_path)
    assert make_dataset(tmp_path).duplicates == 0


@LAYOUTS
def test_a_run_that_has_nothing_to_do_changes_no_byte(tmp_path: Path, layout: tuple[str, ...]) -> None:
    make_songs(tmp_path / "raw_data", 20)
    (tmp_path / "raw_data" / "text.mid").write_text("Dear diary")
    commands = [("scripts/index.py", "--raw-data", tmp_path / "raw_data")]
    commands += [("scripts/dataset.py", "--data", tmp_path / "data", *layout)]
    for command in commands:
        ok(run_script(*command, "--root", tmp_path))
    before = contents(tmp_path)
    for command in commands:
        ok(run_script(*command, "--root", tmp_path))
    after = contents(tmp_path)
    assert after.pop("cache/lock") != before.pop("cache/lock")
    assert after == before
