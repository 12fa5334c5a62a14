"""Independent training runs in processes of their own, a few at a time."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import traceback
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from llmrec_pl.errors import LLMRecError, WorkerError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

THREADS = "OMP_NUM_THREADS"


def in_one_line(error: Exception) -> str:
    """Return what went wrong as a table or a log shows it; a message for people as it stands."""
    plain = isinstance(error, LLMRecError)
    text = str(error) if plain else "".join(traceback.format_exception_only(error))
    return " ".join(text.split())


def _start_worker() -> None:
    # Ctrl-C goes to the whole group; only the parent acts on it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this process when the parent is gone: a killed one cannot end its workers."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@contextmanager
def worker_pool(n_workers: int) -> Iterator[ProcessPoolExecutor]:
    """Start processes that share the machine's cores evenly, and end them with the block.

    An exception in the block, Ctrl-C included, ends the processes at once: what they were doing
    is left as a killed run leaves it.

    Args:
        n_workers: number of processes.
    """
    cores = os.cpu_count() or 1
    before = os.environ.get(THREADS)
    os.environ.setdefault(THREADS, str(max(1, cores // n_workers)))
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(n_workers, mp_context=context, initializer=_start_worker)
    try:
        yield pool
        pool.shutdown()
    except BaseException:
        for process in list((pool._processes or {}).values()):
            process.terminate()
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    finally:
        if before is None:
            os.environ.pop(THREADS, None)


def run_all(
    n_workers: int,
    task: Callable[[Any], Any],
    next_job: Callable[[], Any | None],
    done: Callable[[Any, Any], None],
) -> None:
    """Keep the workers busy until there is no next job.

    Args:
        n_workers: number of processes.
        task: importable function that a worker calls with a job.
        next_job: gives a job, or None where there is none now; asked again after each result.
        done: called here with a job and its result.

    Raises:
        WorkerError: a worker was killed.
    """
    try:
        _run_all(n_workers, task, next_job, done)
    except BrokenProcessPool as error:
        raise WorkerError(
            "a worker process was killed from outside, as a machine short of memory does; what was "
            "finished is kept. Give the same command to go on, with fewer `--workers` if memory "
            "was short."
        ) from error


def _run_all(
    n_workers: int,
    task: Callable[[Any], Any],
    next_job: Callable[[], Any | None],
    done: Callable[[Any, Any], None],
) -> None:
    with worker_pool(n_workers) as pool:
        running: dict[Future[Any], Any] = {}
        while True:
            while len(running) < n_workers and (job := next_job()) is not None:
                running[pool.submit(task, job)] = job
            if not running:
                return
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                done(running.pop(future), future.result())
