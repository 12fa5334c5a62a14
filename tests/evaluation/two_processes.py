"""Runs a script in two processes that find each other as ranks of one job."""

import os
import socket
import subprocess
import sys
from pathlib import Path


def run_in_two_processes(code, folder, *arguments):
    """Write a script into `folder` and run it with these arguments; both must end with status 0."""
    script = Path(folder) / "two_processes_script.py"
    script.write_text(code, encoding="utf-8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    here = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "NODE_RANK": "0"}
    processes = [
        subprocess.Popen(
            [sys.executable, str(script), *map(str, arguments)],
            env=os.environ | shared | {"LOCAL_RANK": str(rank), "PYTHONPATH": here},
        )
        for rank in range(2)
    ]
    try:
        assert [p.wait(600) for p in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
