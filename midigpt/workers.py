"""Worker processes that survive one another: a crash in a C library costs the task at hand, no other."""

import fcntl
import multiprocessing
import os
import resource
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from queue import SimpleQueue
from typing import Generic, TypeVar

from midigpt.files import UserError

Task = TypeVar("Task")
Result = TypeVar("Result")

AHEAD = 2  # tasks a worker holds, so that it never waits for the next one


@dataclass(frozen=True)
class Died:
    """In place of a result: the worker process ended while it was at the task."""

    exit_code: int | None  # negative: the number of the signal that killed it; None: not known

    def __str__(self) -> str:
        if self.exit_code is None:
            return "several times"
        if self.exit_code >= 0:
            return f"exit code {self.exit_code}"
        return f"signal {-self.exit_code}: {signal.strsignal(-self.exit_code)}"


@dataclass
class _Worker(Generic[Task]):
    process: SpawnProcess
    connection: Connection
    tasks: deque[Task] = field(default_factory=deque)  # sent, not yet answered; answers keep their order
    is_ready: bool = False  # it has started, and said so


def run(
    function: Callable[[Task], Result], tasks: Iterable[Task], workers: int, memory_limit: float = 0
) -> Iterator[tuple[Task, Result | Died]]:
    """Call `function` (importable by name) on every task in `workers` processes; results as they come.

    A worker may take `memory_limit` gigabytes (0: any) beyond what it has after its start; then it gets a
    MemoryError. Where the system knows no such limit (macOS) there is none.

    A task during which its worker dies gives Died, and a new worker takes the others on. A UserError raised
    by `function` is raised here and ends the run. Closing the iterator, also by Ctrl-C, ends the workers.
    """
    coming, waiting = iter(tasks), deque[Task]()
    context = multiprocessing.get_context("spawn")
    crew: list[_Worker[Task]] = []
    try:
        waiting.extend(islice(coming, workers))
        crew = [_start(context, function, memory_limit) for _ in range(len(waiting))]
        while any(worker.tasks for worker in crew) or waiting:
            waiting.extend(islice(coming, max(workers * AHEAD - len(waiting), 0)))  # a few, not all, in memory
            for held in range(AHEAD):  # nobody gets a second task before everybody has a first
                for worker in crew:
                    if waiting and len(worker.tasks) == held:
                        with suppress(ConnectionError):  # it died; noticed below
                            worker.connection.send(waiting[0])
                        worker.tasks.append(waiting.popleft())
            for ready in wait([worker.connection for worker in crew if worker.tasks]):
                worker = next(worker for worker in crew if worker.connection is ready)
                try:
                    result = worker.connection.recv()
                except (EOFError, OSError):  # it died, maybe in mid-answer
                    worker.process.join()
                    if not worker.is_ready:
                        code = worker.process.exitcode
                        raise UserError(f"worker processes can't start ({Died(code)}); try fewer: --workers") from None
                    yield worker.tasks.popleft(), Died(worker.process.exitcode)
                    waiting.extendleft(reversed(worker.tasks))
                    crew[crew.index(worker)] = _start(context, function, memory_limit)
                    continue
                if not worker.is_ready:
                    worker.is_ready = True
                    continue
                if isinstance(result, UserError):
                    raise result
                yield worker.tasks.popleft(), result
    finally:
        for worker in crew:
            worker.process.kill()
        for worker in crew:
            worker.process.join()
            worker.connection.close()


def _start(
    context: multiprocessing.context.SpawnContext, function: Callable[[Task], Result], memory_limit: float
) -> _Worker[Task]:
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(function, theirs, memory_limit), daemon=True)
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)  # the child begins so too: Ctrl-C is ours to handle
    process.start()
    signal.signal(signal.SIGINT, handler)
    theirs.close()
    return _Worker(process, ours)


def _serve(function: Callable[[Task], Result], connection: Connection, memory_limit: float) -> None:
    _end_with_parent()
    tasks: SimpleQueue[Task] = SimpleQueue()
    threading.Thread(target=_receive, args=(connection, tasks), daemon=True).start()
    if memory_limit:
        _limit_memory(int(memory_limit * 2**30))
    with suppress(ConnectionError):  # the parent is gone
        connection.send("ready")
        while True:
            task = tasks.get()
            try:
                connection.send(function(task))
            except UserError as error:
                connection.send(error)


def _receive(connection: Connection, tasks: "SimpleQueue[Task]") -> None:
    """Take tasks in as they come: if both ends waited for the other to read, they would wait forever."""
    try:
        while True:
            tasks.put(connection.recv())
    finally:  # the parent is gone
        os._exit(1)


def _end_with_parent() -> None:
    """End this process when the parent ends, in mid-task too: a new run must not meet the workers of a killed one.

    The sentinel is a pipe that closes then; for that the system sends SIGIO, which ends a process even in a C
    library that lets no thread of Python run. Where it knows no such thing, `_receive` does it, once it is let.
    """
    parent = multiprocessing.parent_process()
    assert parent
    signal.signal(signal.SIGIO, signal.SIG_DFL)
    with suppress(OSError):
        fcntl.fcntl(parent.sentinel, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(parent.sentinel, fcntl.F_SETFL, fcntl.fcntl(parent.sentinel, fcntl.F_GETFL) | os.O_ASYNC)
    if wait([parent.sentinel], timeout=0):
        os._exit(1)


def _limit_memory(more: int) -> None:
    """Let this process take so many bytes more of address space, where the system can limit that."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except OSError:
        return
    now = pages * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + more, resource.getrlimit(resource.RLIMIT_AS)[1]))
