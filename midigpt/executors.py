"""Where chunks are worked on: in this process, in worker processes, or by the workers of a Dask cluster.

All run the same function and give (task, result) as they come, Died in place of a result where a task has
killed its worker, and raise UserError where the function does.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal, TypeVar

from midigpt import workers
from midigpt.files import UserError, install
from midigpt.workers import Died

Task = TypeVar("Task")
Result = TypeVar("Result")

SCHEDULER_SECONDS = 10  # to wait for a connection, then for a worker
TASKS_PER_THREAD = 2  # that the cluster holds, so that its workers never wait


@dataclass(frozen=True)
class Executor:
    """Where to work, and with how much."""

    kind: Literal["serial", "process", "dask"] = "process"
    workers: int = 1  # processes
    memory_limit: float = 0  # gigabytes a worker process may take; 0 is no limit
    scheduler: str = ""  # address of Dask's


def run(
    executor: Executor, function: Callable[[Task], Result], tasks: Sequence[Task], are_suspect: bool = False
) -> Iterator[tuple[Task, Result | Died]]:
    """Call `function` on every task; closing the iterator stops the work.

    Dask's scheduler takes a worker's death as that of all tasks the worker holds. Those that `are_suspect` it
    gets one at a time, so that Died is said of the guilty only.
    """
    if not tasks:
        return iter(())
    if executor.kind == "serial":
        return ((task, function(task)) for task in tasks)
    if executor.kind == "process":
        return workers.run(function, tasks, executor.workers, executor.memory_limit)
    return _run_dask(executor.scheduler, function, tasks, are_suspect)


def _run_dask(
    scheduler: str, function: Callable[[Task], Result], tasks: Sequence[Task], are_suspect: bool
) -> Iterator[tuple[Task, Result | Died]]:
    """A task lost with its worker is tried on others; the scheduler gives it up after its `allowed-failures`."""
    client = _connect(scheduler)
    import distributed

    waiting = iter(tasks)
    at_work: dict[distributed.Future, Task] = {}
    try:
        with client:
            done = distributed.as_completed(loop=client.loop)
            while True:
                threads = sum(client.nthreads().values())
                most = 1 if are_suspect else TASKS_PER_THREAD * max(threads, 1)
                for task in islice(waiting, max(most - len(at_work), 0)):
                    future = client.submit(function, task, pure=False)
                    at_work[future] = task
                    done.add(future)
                if not at_work:
                    return
                future = next(done)
                try:
                    result = future.result()
                except distributed.KilledWorker:
                    result = Died(None)
                yield at_work.pop(future), result
    except (OSError, CancelledError):
        again = "what is finished is kept: start one, and run the same command again"
        raise UserError(f"the Dask scheduler at {scheduler} is lost; {again}") from None
    except ImportError as error:
        raise UserError(f"the workers of {scheduler} lack a package ({error}); install midigpt there") from None


def _connect(scheduler: str) -> Any:
    """Dask's client. Raises UserError where there is no Dask, no scheduler or no worker."""
    if not scheduler:
        raise UserError("--executor dask needs the scheduler's address: --scheduler tcp://HOST:8786")
    try:
        import distributed
    except ImportError:
        raise UserError(f"--executor dask needs a package more; install it with: {install('cluster')}") from None
    logging.getLogger("distributed.client").setLevel(logging.CRITICAL)  # what matters is told by us

    async def greet() -> None:
        async with asyncio.timeout(SCHEDULER_SECONDS):  # Dask's own doesn't end with a server that says nothing
            comm = await distributed.comm.connect(scheduler, timeout=SCHEDULER_SECONDS)
        await comm.close()

    try:
        asyncio.run(greet())  # a client that fails here would wait on for its end
        client = distributed.Client(scheduler, timeout=SCHEDULER_SECONDS, set_as_default=False)
    except (OSError, ValueError, MemoryError) as error:  # MemoryError: a web server's answer, read as a length
        raise UserError(f"no Dask scheduler answers at {scheduler} ({error or 'no answer'})") from None
    try:
        client.wait_for_workers(1, timeout=SCHEDULER_SECONDS)
    except TimeoutError:
        client.close()
        raise UserError(f"{scheduler} has no workers; start some: dask worker {scheduler} --nthreads 1") from None
    return client
