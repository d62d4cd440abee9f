"""Worker processes: a crash costs one task."""

import os
import signal

import pytest

from midigpt import workers
from midigpt.files import UserError


def work(task: int) -> int:
    if task == 13:
        os.kill(os.getpid(), signal.SIGSEGV)
    if task == 14:
        os._exit(3)
    if task == -1:
        raise UserError("the disk is full")
    return task * task


def test_all_results_come() -> None:
    assert sorted(workers.run(work, range(12), 3)) == [(task, task * task) for task in range(12)]
    assert list(workers.run(work, [], 3)) == []


def test_a_crash_costs_one_task() -> None:
    results = dict(workers.run(work, range(40), 2))
    assert len(results) == 40
    assert str(results.pop(13)).startswith("signal 11") and str(results.pop(14)) == "exit code 3"
    assert all(result == task * task for task, result in results.items())


def test_a_sentence_for_the_user_ends_the_run() -> None:
    with pytest.raises(UserError, match="the disk is full"):
        list(workers.run(work, [1, 2, -1, 3], 2))
