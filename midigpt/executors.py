"""Where chunks are worked on: in this process, in worker processes, or by the workers of a Dask cluster.

All run the same function and give (task, result) as they come, Died in place of a result where a task has
killed its worker, and raise UserError where the function does.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from midigpt import workers
from midigpt.files import UserError
from midigpt.workers import Died

Task = TypeVar("Task")
Result = TypeVar("Result")

SCHEDULER_SECONDS = 10  # to wait for a connection
TASKS_PER_THREAD = 2  # that the cluster holds, so that its workers never wait


@dataclass(frozen=True)
class Executor:
    """Where to work, and with how much."""

    kind: Literal["serial", "process", "dask"] = "process"
    workers: int = 1  # processes
    memory_limit: float = 0  # gigabytes a worker process may take; 0 is no limit
    scheduler: str = ""  # address of Dask's


def run(
    executor: Executor, function: Callable[[Task], Result], tasks: Sequence[Task]
) -> Iterator[tuple[Task, Result | Died]]:
    """Call `function` on every task; closing the iterator stops the work."""
    if not tasks:
        return iter(())
    if executor.kind == "serial":
        return ((task, function(task)) for task in tasks)
    if executor.kind == "process":
        return workers.run(function, tasks, executor.workers, executor.memory_limit)
    return _run_dask(function, tasks, executor.scheduler)


def _run_dask(
    function: Callable[[Task], Result], tasks: Iterable[Task], scheduler: str
) -> Iterator[tuple[Task, Result | Died]]:
    """A task lost with its worker is tried again on another; Dask gives it up after the third."""
    if not scheduler:
        raise UserError("--executor dask needs the scheduler's address: --scheduler tcp://HOST:8786")
    try:
        import distributed
    except ImportError:
        raise UserError("--executor dask needs a package more; install it with: pip install distributed") from None
    try:
        client = distributed.Client(scheduler, timeout=SCHEDULER_SECONDS, set_as_default=False)
    except (OSError, ValueError) as error:
        raise UserError(f"no Dask scheduler answers at {scheduler} ({error})") from None
    with client:
        waiting = iter(tasks)
        at_work: dict[distributed.Future, Task] = {}
        done = distributed.as_completed()
        while True:
            threads = sum(worker["nthreads"] for worker in client.scheduler_info(n_workers=-1)["workers"].values())
            while len(at_work) < TASKS_PER_THREAD * max(threads, 1):
                try:
                    task = next(waiting)
                except StopIteration:
                    break
                future = client.submit(function, task, pure=False)
                at_work[future] = task
                done.add(future)
            if not at_work:
                return
            future = next(done)
            task = at_work.pop(future)
            try:
                result = future.result()
            except distributed.KilledWorker:
                result = Died(None)
            yield task, result
