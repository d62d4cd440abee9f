"""The dataset step on other machines: a Dask cluster of real processes, and a store that speaks S3."""

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from midigpt import dataset
from midigpt.convert import Chunk, Result, convert_chunk
from midigpt.dataset import Options, make_dataset
from midigpt.executors import Executor, run
from midigpt.files import UserError
from midigpt.index import index_files
from midigpt.midi import write_midi
from midigpt.score import Score
from midigpt.tokenizer import learn_tokenizer
from midigpt.train_data import make_train_bin
from tests.conftest import PROJECT, SPLIT, make_songs, melody, ok, refusal, run_script

SERIAL = Executor("serial")
SONGS = 300


def data(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (root / "data").iterdir()}


def states(root: Path) -> dict[str, tuple[str, str | None]]:
    with closing(sqlite3.connect(root / "cache" / "index.sqlite")) as index:
        return {path: (state, reason) for path, state, reason in index.execute("SELECT path, state, reason FROM files")}


def copied(root: Path, to: Path) -> Path:
    """A working folder with the same MIDI files, indexed."""
    shutil.copytree(root / "raw_data", to / "raw_data")
    index_files(to)
    return to


@pytest.fixture(scope="module")
def songs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with enough music for a worker to be caught in the act."""
    root = tmp_path_factory.mktemp("songs")
    (root / "raw_data").mkdir()
    for number in range(30):
        write_midi(Score(480, melody(number, 1500).tracks * 4), root / "raw_data" / f"{number:03}.mid")
    for number in range(30, SONGS):
        shutil.copy(root / "raw_data" / f"{number % 30:03}.mid", root / "raw_data" / f"{number:03}.mid")
    index_files(root)
    return root


@pytest.fixture(scope="module")
def by_layout(songs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[bool, dict[str, bytes]]:
    """The data folder that one process makes of the songs: in files (False), in shards (True)."""
    made = {}
    for shards in (False, True):
        root = copied(songs, tmp_path_factory.mktemp("serial"))
        make_dataset(root, Options(shards=shards, shard_files=32, executor=SERIAL))
        made[shards] = data(root)
    assert len(made[False]) == SONGS and len(made[True]) == 1 + -(-SONGS // 32)
    return made


# --- Dask ------------------------------------------------------------------------------------------------


@contextmanager
def running(*command: str | Path) -> Iterator[subprocess.Popen[bytes]]:
    """A program with the processes it starts, until the end of the block."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(PROJECT),  # the tests' functions, too
        "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "1",  # 3 takes longer
    }
    line = [sys.executable, "-m", "dask", *map(str, command)]
    process = subprocess.Popen(line, env=environment, start_new_session=True, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        kill(process)


def kill(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@contextmanager
def scheduler_running(folder: Path) -> Iterator[str]:
    """The address of a scheduler without workers."""
    contact = folder / "scheduler.json"
    # Both end by themselves, should the tests be killed.
    flags = ("--no-dashboard", "--idle-timeout", "120", "--scheduler-file", contact)
    with running("scheduler", "--host", "127.0.0.1", "--port", "0", *flags) as process:
        while not contact.exists() or not contact.read_text().endswith("}"):
            assert process.poll() is None
            time.sleep(0.05)
        yield json.loads(contact.read_text())["address"]


def worker(scheduler: str, folder: Path) -> tuple[str | Path, ...]:
    flags = ("--nthreads", "1", "--no-dashboard", "--death-timeout", "60", "--local-directory", folder)
    return ("worker", scheduler, *flags)


@pytest.fixture(scope="module")
def cluster(store: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a scheduler with one worker, which knows the store."""
    pytest.importorskip("distributed", reason="needs distributed: pip install -e '.[test]'")
    folder = tmp_path_factory.mktemp("dask")
    with scheduler_running(folder) as scheduler, running(*worker(scheduler, folder)):
        yield scheduler


def kill_in_mid_run(process: subprocess.Popen[bytes], data: Path, least: int, there: list[int]) -> None:
    """Takes down how many files were there just after the death."""
    while not data.is_dir() or len(list(data.glob("*.txt"))) < least:
        time.sleep(0.005)
    kill(process)
    there.append(len(list(data.glob("*.txt"))))


@pytest.mark.parametrize("shards", [False, True])
def test_a_worker_of_the_cluster_is_killed_and_nothing_is_lost(
    shards: bool,
    cluster: str,
    songs: Path,
    by_layout: dict[bool, dict[str, bytes]],
    tmp_path: Path,
) -> None:
    import distributed

    root = copied(songs, tmp_path / "work")
    with running(*worker(cluster, tmp_path)) as second:
        with distributed.Client(cluster, set_as_default=False) as client:
            client.wait_for_workers(2, timeout=60)
        least = 2 if shards else 100
        there: list[int] = []
        killer = threading.Thread(target=kill_in_mid_run, args=(second, root / "data", least, there), daemon=True)
        killer.start()
        executor = Executor("dask", scheduler=cluster)
        summary = make_dataset(root, Options(shards=shards, shard_files=32, executor=executor))
        killer.join(10)
    assert least <= there[0] < len(by_layout[shards]) * 0.9
    assert summary.converted == SONGS and not summary.refused
    assert data(root) == by_layout[shards]


def deadly(chunk: Chunk, **options: Any) -> Result:
    if any("poison" in job.path for job in chunk.jobs):
        os._exit(1)
    return convert_chunk(chunk, **options)


def test_a_file_that_kills_workers_of_the_cluster_costs_itself_only(
    cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_songs(tmp_path / "raw_data", 20)
    index_files(tmp_path)
    make_dataset(tmp_path, Options(shards=True, executor=SERIAL))
    expected = data(tmp_path)
    shutil.copy(tmp_path / "raw_data" / "song00.mid", tmp_path / "raw_data" / "song05 poison.mid")
    shutil.rmtree(tmp_path / "cache")
    index_files(tmp_path)
    monkeypatch.setattr(dataset, "convert_chunk", deadly)
    summary = make_dataset(tmp_path, Options(shards=True, executor=Executor("dask", scheduler=cluster)))
    assert summary.refused == {"song05 poison.mid": "crashed the reader (several times)"}
    assert summary.converted == 20 and data(tmp_path) == expected


def held_by_the_worker(task: int) -> int:
    import distributed

    time.sleep(0.1)
    tasks = list(distributed.get_worker().state.tasks.values())
    return sum(task.state in ("ready", "executing") for task in tasks)


def test_suspects_are_alone_on_their_worker(cluster: str) -> None:
    executor = Executor("dask", scheduler=cluster)
    for are_suspect, most in ((False, 2), (True, 1)):
        held = [count for _, count in run(executor, held_by_the_worker, range(4), are_suspect)]
        assert len(held) == 4 and max(held) == most


def test_a_cluster_that_is_not_there_is_told(
    store: str, cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_songs(tmp_path / "raw_data", 1)
    index_files(tmp_path)
    script = ("scripts/dataset.py", "--root", tmp_path, "--executor", "dask")
    assert "--scheduler tcp://HOST:8786" in refusal(run_script(*script))
    without(tmp_path, "distributed", monkeypatch)
    assert "install it with: .venv/bin/pip install" in refusal(run_script(*script, "--scheduler", cluster))
    monkeypatch.setattr("midigpt.executors.SCHEDULER_SECONDS", 0.5)
    web_server = store.replace("http", "tcp")
    for address in ("tcp://127.0.0.1:9", "http://127.0.0.1", "127.0.0.1:no", web_server):
        with pytest.raises(UserError, match="no Dask scheduler answers at"):
            make_dataset(tmp_path, Options(executor=Executor("dask", scheduler=address)))
    with scheduler_running(tmp_path) as lonely, pytest.raises(UserError, match="has no workers; start some"):
        make_dataset(tmp_path, Options(executor=Executor("dask", scheduler=lonely)))


def without(folder: Path, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs started from now on find no such package."""
    (folder / "lacking").mkdir()
    (folder / "lacking" / f"{package}.py").write_text(f"raise ImportError('No module named {package}')")
    monkeypatch.setenv("PYTHONPATH", f"{folder / 'lacking'}:{PROJECT}")


# --- processes and layouts -------------------------------------------------------------------------------


@pytest.mark.parametrize("shards", [False, True])
def test_processes_write_the_same_bytes(
    shards: bool,
    songs: Path,
    by_layout: dict[bool, dict[str, bytes]],
    tmp_path: Path,
) -> None:
    root = copied(songs, tmp_path / "work")
    make_dataset(root, Options(shards=shards, shard_files=32, executor=Executor("process", 2)))
    assert data(root) == by_layout[shards]


def test_from_files_to_shards_nothing_stale_is_left(tmp_path: Path) -> None:
    make_songs(tmp_path / "raw_data", 5)
    index_files(tmp_path)
    make_dataset(tmp_path, Options(executor=SERIAL))
    (tmp_path / "data" / "notes.md").write_text("mine")
    assert make_dataset(tmp_path, Options(shards=True, executor=SERIAL)).converted == 5
    assert data(tmp_path).keys() == {"shard-000001.txt", "manifest.json", "notes.md"}
    assert make_dataset(tmp_path, Options(executor=SERIAL)).converted == 0  # and so it stays


@pytest.mark.parametrize("shards", [False, True])
def test_at_another_place_everything_is_made_anew(shards: bool, tmp_path: Path) -> None:
    root = tmp_path / "work"
    make_songs(root / "raw_data", 5)
    index_files(root)
    make_dataset(root, Options(shards=shards, executor=SERIAL))
    first = data(root)
    assert make_dataset(root, Options(data=str(tmp_path / "other" / "data"), executor=SERIAL)).converted == 5
    assert data(tmp_path / "other") == first == data(root)
    assert make_dataset(root, Options(executor=SERIAL)).converted == 0
    write_midi(melody(77), root / "raw_data" / "song00.mid")
    index_files(root)
    make_dataset(root, Options(executor=SERIAL))
    assert data(root) == first != data(tmp_path / "other")
    assert make_dataset(root, Options(data=str(root / "data"), executor=SERIAL)).converted == 5  # back: not stale
    assert data(root) == data(tmp_path / "other")


def test_another_place_with_files_of_somebody_is_not_cleared(tmp_path: Path) -> None:
    make_songs(tmp_path / "raw_data", 1)
    index_files(tmp_path)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter_1.txt").write_text("Dear diary")
    with pytest.raises(UserError, match=r"letter_1\.txt would be removed"):
        make_dataset(tmp_path, Options(data=str(tmp_path / "home"), executor=SERIAL))
    assert make_dataset(tmp_path, Options(executor=SERIAL)).documents == 1
    assert len(data(tmp_path)) == 1 and (tmp_path / "home" / "letter_1.txt").exists()


# --- a store ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def store() -> Iterator[str]:
    """The address of a server that speaks S3, with an empty bucket; it and its key are in the environment."""
    for package in ("s3fs", "moto", "flask", "flask_cors"):
        pytest.importorskip(package, reason=f"needs {package}: pip install -e '.[test]'")
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    address = "http://{}:{}".format(*server.get_host_and_port())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", address)
        patch.setenv("AWS_ACCESS_KEY_ID", "key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        bucket().mkdir("music")
        yield address
    server.stop()


@cache
def bucket() -> Any:
    """S3 as a file system that remembers nothing of the time before."""
    import s3fs

    return s3fs.S3FileSystem(use_listings_cache=False)


def upload(raw_data: Path, to: str) -> None:
    for path in sorted(raw_data.iterdir()):
        bucket().pipe_file(f"{to}/{path.name}", path.read_bytes())


@pytest.fixture
def stored(store: str, tmp_path: Path) -> Path:
    """A working folder whose MIDI files and documents are in the store, and beside it a local one, `local`."""
    make_songs(tmp_path / "local" / "raw_data", 10)
    write_midi(melody(10), tmp_path / "local" / "raw_data" / "a [live], 100% #1?*.mid")
    for path in bucket().ls("music", detail=False):
        bucket().rm(path, recursive=True)
    upload(tmp_path / "local" / "raw_data", "music/midi")
    bucket().pipe_file("music/midi2/other.mid", b"not meant")
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


def pack(root: Path) -> dict[str, bytes]:
    learn_tokenizer(root, 80, SPLIT)
    make_train_bin(root, SPLIT)
    return {name: (root / "train" / name).read_bytes() for name in ("train.bin", "val.bin")}


def test_from_a_store_comes_the_same_training_data(stored: Path, tmp_path: Path) -> None:
    local = tmp_path / "local"
    index_files(local)
    make_dataset(local, Options(executor=SERIAL))
    out = ok(run_script("scripts/index.py", "--root", stored, "--raw-data", "s3://music/midi/"))
    assert "11 MIDI files (11 new" in out
    flags = ("--data", "s3://music/documents", "--workers", "2")
    assert "11 files converted" in ok(run_script("scripts/dataset.py", "--root", stored, *flags))
    assert set(bucket().ls("music/documents", detail=False)) == {
        "music/documents/shard-000001.txt",
        "music/documents/manifest.json",
    }
    assert not (stored / "data").exists() and not (stored / "raw_data").exists()
    assert pack(stored) == pack(local)
    again = ok(run_script("scripts/index.py", "--root", stored))
    assert "(0 new, 0 changed, 0 removed)" in again
    assert "0 files converted, 0 removed" in ok(run_script("scripts/dataset.py", "--root", stored))


def test_changes_in_a_store_are_noticed(stored: Path, tmp_path: Path) -> None:
    raw = tmp_path / "local" / "raw_data"
    index_files(stored, "s3://music/midi")
    options = Options(data="s3://music/documents", executor=SERIAL)
    make_dataset(stored, options)
    write_midi(melody(77), raw / "song00.mid")
    write_midi(melody(78), raw / "new.mid")
    upload(raw, "music/midi")
    bucket().rm_file("music/midi/song01.mid")
    assert index_files(stored) == {"new": 1, "changed": 1, "removed": 1, "same": 9}
    summary = make_dataset(stored, options)
    assert (summary.removed, summary.files) == (1, 11)
    assert len(bucket().ls("music/documents")) == 3  # what is new has a shard of its own
    before = pack(stored)

    shard = "music/documents/shard-000001.txt"
    content = bucket().cat_file(shard)
    bucket().pipe_file(shard, content.replace(b"key=", b"kay=", 1))
    with pytest.raises(UserError, match=r"shard-000001\.txt is not what was written there; delete it and"):
        make_train_bin(stored, SPLIT)
    bucket().rm_file(shard)
    with pytest.raises(UserError, match=r"shard-000001\.txt is missing; make it again"):
        make_train_bin(stored, SPLIT)
    assert make_dataset(stored, options).converted == 10
    assert bucket().cat_file(shard) == content and pack(stored) == before

    bucket().rm("music/midi", recursive=True)
    with pytest.raises(UserError, match="holds no MIDI file"):
        index_files(stored)
    assert make_dataset(stored, options).files == 11


def test_a_store_that_refuses_is_told(
    store: str, stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = ("scripts/index.py", "--root", stored, "--raw-data")
    assert "s3://other/midi can't be listed (" in refusal(run_script(*index, "s3://other/midi"))
    index_files(stored, "s3://music/midi")
    make = ("scripts/dataset.py", "--root", stored, "--workers", "1", "--data")
    assert "s3://other/data can't be written (" in refusal(run_script(*make, "s3://other/data"))
    allow_requests_without_a_known_key(store, 0)
    try:
        assert "can't be listed (The AWS Access Key Id" in refusal(run_script(*index, "s3://music/midi"))
        assert "can't be listed (The AWS Access Key Id" in refusal(run_script(*make, "s3://music/documents"))
    finally:
        allow_requests_without_a_known_key(store, 10**9)
    with monkeypatch.context() as patch:
        patch.delenv("AWS_ACCESS_KEY_ID")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", "none")
        assert "(Unable to locate credentials); the store's" in refusal(run_script(*index, "s3://music/midi"))
    without(tmp_path, "s3fs", monkeypatch)
    assert "s3:// needs: .venv/bin/pip install" in refusal(run_script(*index, "s3://music/midi"))


def allow_requests_without_a_known_key(store: str, count: int) -> None:
    kind = {"Content-Type": "text/plain"}
    request = urllib.request.Request(f"{store}/moto-api/reset-auth", str(count).encode(), kind)
    urllib.request.urlopen(request).close()


def test_the_cluster_reads_and_writes_the_store(cluster: str, stored: Path) -> None:
    index_files(stored, "s3://music/midi")
    for executor in (Executor("dask", scheduler=cluster), SERIAL):
        make_dataset(stored, Options(data=f"s3://music/{executor.kind}", shard_files=3, executor=executor))
    names = {path.rpartition("/")[2] for path in bucket().ls("music/dask", detail=False)}
    assert len(names) == 1 + 4
    for name in names:
        assert bucket().cat_file(f"music/dask/{name}") == bucket().cat_file(f"music/serial/{name}")
