"""kill -9 at random moments of the real command, through all four tasks to the export."""

import json
import random
import time

import pytest

from augment.cli import main
from tests.augment.command import Command
from tests.augment.fault_replies import Step
from tests.augment.fault_server import FaultServer
from tests.augment.lives import kill

C = 4
TASKS = {
    "pairs": {"pool": "random", "n_candidates": 5, "draws": 2},
    "profiles": {},
    "attributes": {"items_per_call": 3},
    "embed": {},
}


def command_of(folder, server, films=None):
    folder.mkdir()
    return Command(folder, server, users=120, films=films, **TASKS)


def content_id(command):
    return json.loads((command.out / "manifest.json").read_text())["content_id"]


@pytest.mark.slow
def test_the_export_is_that_of_a_run_that_nobody_disturbed(tmp_path, capsys):
    rng, rounds = random.Random(11), 0
    with FaultServer([Step(latency=0.02)]) as server:
        calm = command_of(tmp_path / "calm", server)
        assert calm("run")[0] == 0
        usual = len(server.posts)
    with FaultServer([Step(latency=0.02)]) as server:
        command = command_of(tmp_path / "killed", server, films=calm.films)
        while rounds < 12:
            process = command.start("run")
            time.sleep(rng.uniform(0.9, 1.6))
            if process.poll() is not None:
                process.communicate()
                break
            kill(process)
            rounds += 1
        assert command("run")[0] == 0
        assert len(server.posts) <= usual + rounds * C
    assert rounds >= 1
    assert content_id(command) == content_id(calm)
    main(["cost", str(command.store), "--audit"])
    assert "the ledger is the sum of its attempts" in capsys.readouterr().out
