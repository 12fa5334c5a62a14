"""Worker processes: results, order, and no orphan after a kill."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llmrec_pl.errors import WorkerError
from llmrec_pl.workers import run_all, worker_pool

ROOT = Path(__file__).parents[1]


def square(x):
    return x * x


def process_of(_):
    return os.getpid(), os.environ["OMP_NUM_THREADS"]


def test_every_job_is_done_once_and_its_result_told():
    queue, found = iter(range(7)), {}
    run_all(2, square, lambda: next(queue, None), found.__setitem__)
    assert found == {x: x * x for x in range(7)}


def test_jobs_run_elsewhere_and_share_the_cores(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    queue, found = iter(range(2)), []
    run_all(2, process_of, lambda: next(queue, None), lambda _, r: found.append(r))
    assert os.getpid() not in {pid for pid, _ in found}
    assert {int(threads) for _, threads in found} == {max(1, (os.cpu_count() or 1) // 2)}
    assert "OMP_NUM_THREADS" not in os.environ


def test_an_error_ends_the_workers():
    started = []

    def stopped_by_a_person():
        with worker_pool(1) as pool:
            pool.submit(square, 2).result()
            started.extend(pool._processes.values())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped_by_a_person()
    started[0].join(10)
    assert not started[0].is_alive()


def killed(_):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_is_explained():
    queue = iter([1])
    with pytest.raises(WorkerError, match=r"killed from outside.*same command to go on"):
        run_all(1, killed, lambda: next(queue, None), lambda *_: None)


SCRIPT = """
import os, time
from llmrec_pl.workers import worker_pool
def report(_):
    print(os.getpid(), flush=True)
    time.sleep(600)
if __name__ == "__main__":
    with worker_pool(1) as pool:
        pool.submit(report, 0).result()
"""


def test_workers_of_a_killed_process_end_too(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env=environment
    )
    worker = int(process.stdout.readline())
    process.send_signal(signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and alive(worker):
        time.sleep(0.1)
    assert not alive(worker)


def alive(pid):
    """Whether a process runs; an ended one that nobody waited for does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"
