"""What is killed at any moment is completed by the next run, as if nothing had been.

A hundred kills on a folder of your own, with any flags of scripts/dataset.py:

    python -m tests.test_kills FOLDER 100 --shards --shard-files 50
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from tests.conftest import LAYOUTS, PROJECT, contents, make_songs, ok, tables


def results(root: Path) -> dict[str, object]:
    """All that the steps make in a working folder; the index by what it says, the lock not at all."""
    files: dict[str, object] = dict(contents(root))
    files.pop("cache/lock", None)
    files["cache/index.sqlite"] = tables(root)
    return files


def is_killed(command: list[str], seconds: float, rng: random.Random) -> bool:
    """Start a command and kill, after some seconds, it alone, it and its workers, or its workers; False: it was done.

    Its workers may still be there when the next command starts.
    """
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    time.sleep(seconds)
    if process.poll() is not None:
        return False
    whom = rng.choice(["parent", "group", "workers"])
    if whom == "parent":
        process.kill()
    elif whom == "group":
        os.killpg(process.pid, signal.SIGKILL)
    else:
        children = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True)
        for child in children.stdout.split():
            with suppress(ProcessLookupError):
                os.kill(int(child), rng.choice([signal.SIGKILL, signal.SIGSEGV]))
    process.wait()
    return True


def check_kills(folder: Path, raw_data: Path, kills: dict[str, int], flags: tuple[str, ...] = ()) -> int:
    """Kill each step so many times at random moments; in the end all must be as if nothing had been.

    A step that gets done in spite of it, after several kills, begins anew. Returns how many got done.
    """
    rng = random.Random(0)
    whole, broken = folder / "whole", folder / "broken"
    whole.mkdir()
    done = 0
    for step, number in kills.items():
        more = {"index.py": ("--raw-data", str(raw_data)), "dataset.py": ("--workers", "2", *flags)}.get(step, ())
        command = [sys.executable, str(PROJECT / "scripts" / step), *more, "--root"]
        before = Path(shutil.copytree(whole, folder / "before"))
        start = time.perf_counter()
        ok(subprocess.run([*command, str(whole)], capture_output=True, text=True))
        seconds = time.perf_counter() - start
        while number:
            shutil.copytree(before, broken)
            while number and is_killed([*command, str(broken)], rng.uniform(0, 1.2 * seconds), rng):
                number -= 1
            ok(subprocess.run([*command, str(broken)], capture_output=True, text=True))
            assert results(broken) == results(whole), step
            shutil.rmtree(broken)
            done += 1
        shutil.rmtree(before)
    return done


@LAYOUTS
def test_what_is_killed_is_completed_with_the_same_bytes(
    tmp_path: Path, long_songs: Path, layout: tuple[str, ...]
) -> None:
    assert check_kills(tmp_path, long_songs, {"index.py": 1, "dataset.py": 2}, layout)


def test_what_is_killed_while_it_learns_or_packs_is_completed(prepared: Path, tmp_path: Path) -> None:
    kills = {"index.py": 0, "dataset.py": 0, "tokenizer.py": 1, "train_bin.py": 1}
    assert check_kills(tmp_path, prepared / "raw_data", kills)


def test_an_index_killed_at_any_page_is_made_by_the_next_run(tmp_path: Path) -> None:
    make_songs(tmp_path / "raw", 3)
    code = """
import os, resource, signal, sys
from pathlib import Path
from midigpt.index import index_files
root, raw_data = Path(sys.argv[1]), sys.argv[2]
for pages in range(40):
    here = root / str(pages)
    here.mkdir()
    child = os.fork()
    if not child:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1024 * pages, 1024 * pages))
        index_files(here, raw_data)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(status, sum(index_files(here, raw_data).values()))
"""
    lines = ok(subprocess.run([sys.executable, "-c", code, tmp_path, tmp_path / "raw"], capture_output=True, text=True))
    outcomes = [tuple(map(int, line.split())) for line in lines.splitlines()]
    assert {killed for killed, _ in outcomes} <= {-signal.SIGXFSZ, 0}
    assert sum(killed != 0 for killed, _ in outcomes) > 10
    assert [files for _, files in outcomes] == [3] * 40


def test_what_is_killed_while_it_writes_leaves_nothing_under_the_name(tmp_path: Path) -> None:
    code = """
import os, resource, signal, sys
from pathlib import Path
from midigpt.files import write_text
from midigpt.storage import TEMPORARY, Folder
folder = Folder(sys.argv[1])
Path(sys.argv[1], TEMPORARY).mkdir()
for write in (lambda: folder.write("a_1.txt", bytes(9000)), lambda: write_text(Path(sys.argv[1], "b"), "b" * 9000)):
    child = os.fork()
    if not child:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        write()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGXFSZ
"""
    ok(subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True))
    assert sorted(name.partition("/")[0] for name in contents(tmp_path)) == [".b.tmp", ".midigpt.tmp"]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        kills = {"index.py": 0, "dataset.py": int(sys.argv[2])}
        done = check_kills(Path(temporary), Path(sys.argv[1]).resolve(), kills, tuple(sys.argv[3:]))
        print(f"{sys.argv[2]} kills; {done} times the dataset got done, each time as if nothing had been")
