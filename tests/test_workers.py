"""Worker processes: a crash costs one task."""

import multiprocessing
import multiprocessing.spawn
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from midigpt import workers
from midigpt.files import UserError
from tests.conftest import PROJECT, ok


def work(task: int) -> int:
    if task == 13:
        os.kill(os.getpid(), signal.SIGSEGV)
    if task == 14:
        os._exit(3)
    if task == -1:
        raise UserError("the disk is full")
    return task * task


def much(task: bytes) -> bytes:
    """An answer that does not fit into what the system keeps for a reader."""
    return task * 2


def die_in_mid_answer(task: int) -> bytes:
    if task == 3:
        threading.Timer(0.3, os._exit, [3]).start()
    return bytes(10_000_000)


def hang(task: int) -> int:
    """Time spent in C that lets no other thread run."""
    print("begun", flush=True)
    return sum(range(10**13))


def alarm(task: int) -> int:
    if task == 5:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        return hang(task)
    return task


def eat(task: int) -> str:
    try:
        return str(len(bytes(task)))
    except MemoryError:
        return "no memory"


def test_all_results_come() -> None:
    assert sorted(workers.run(work, range(12), 3)) == [(task, task * task) for task in range(12)]
    assert list(workers.run(work, [], 3)) == []


def test_a_crash_costs_one_task() -> None:
    results = dict(workers.run(work, range(40), 2))
    assert len(results) == 40
    assert str(results.pop(13)).startswith("signal 11") and str(results.pop(14)) == "exit code 3"
    assert all(result == task * task for task, result in results.items())


def test_workers_that_cannot_start_are_told_and_cost_no_task(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multiprocessing.spawn, "get_command_line", lambda **_: ["/bin/false"])
    with pytest.raises(UserError, match="can't start"):
        list(workers.run(work, range(4), 2))


def test_a_sentence_for_the_user_ends_the_run() -> None:
    with pytest.raises(UserError, match="the disk is full"):
        list(workers.run(work, [1, 2, -1, 3], 2))


def test_tasks_and_answers_may_be_large() -> None:
    code = """
from midigpt import workers
from tests.test_workers import much
tasks = [bytes([number]) * 400_000 for number in range(12)]
assert sorted(workers.run(much, tasks, 2)) == [(task, task * 2) for task in tasks]
"""
    ok(subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, timeout=60))


def test_a_worker_that_dies_in_mid_answer_costs_one_task() -> None:
    results = workers.run(die_in_mid_answer, [1, 3, 2], 1)
    assert next(results)[0] == 1
    (worker,) = multiprocessing.active_children()
    while worker.is_alive():  # nobody reads its answer
        time.sleep(0.01)
    assert next(results) == (3, workers.Died(3))
    assert next(results) == (2, bytes(10_000_000))


def test_a_time_limit_ends_what_hangs_in_c() -> None:
    results = dict(workers.run(alarm, range(8), 2))
    assert results.pop(5) == workers.Died(-signal.SIGALRM)
    assert all(task == result for task, result in results.items())


@pytest.mark.skipif(sys.platform != "linux", reason="this system limits no process's memory")
def test_a_memory_limit_is_a_memory_error() -> None:
    sizes = [10**6, 10**9, 10**7]
    results = dict(workers.run(eat, sizes, 1, memory_limit=0.5))
    assert list(results.values()) == ["1000000", "no memory", "10000000"]


def test_workers_end_with_their_parent_in_mid_task_too() -> None:
    code = "from midigpt import workers; from tests.test_workers import hang; list(workers.run(hang, [1, 2], 2))"
    with subprocess.Popen([sys.executable, "-c", code], cwd=PROJECT, stdout=subprocess.PIPE) as parent:
        assert parent.stdout and parent.stdout.readline() == parent.stdout.readline() == b"begun\n"
        parent.kill()
        parent.communicate(timeout=20)  # until all that hold its output have ended
