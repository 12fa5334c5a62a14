"""`python -m augment` as a process of its own, on films, against a server."""

from __future__ import annotations

import subprocess
import sys

import yaml

from tests.augment.films import write_films
from tests.augment.lives import ROOT, environ

KEY = "sk-canary-3d81f0aa97c2e6"
TASKS = {
    "pairs": {"pool": "random", "n_candidates": 5},
    "profiles": None,
    "attributes": None,
    "embed": None,
}


class Command:
    """A folder with films and a config for them; everything said is kept in `said`.

    Args:
        folder: where all of it lies.
        server: who is asked, as if it were OpenAI.
        users: number of users; one request each with the tasks as they are.
        provider: settings of the provider.
        tasks: settings of tasks, in place of pairs alone.
    """

    def __init__(self, folder, server, users=12, provider=None, films=None, **tasks):
        self.folder, self.store, self.out = folder, folder / "store", folder / "out"
        self.films = films or write_films(folder / "films", users=users)
        self.said = b""
        self.config = folder / "c.yaml"
        values = {
            "dataset": str(self.films),
            "store": str(self.store),
            "out": str(self.out),
            "max_usd": 5,
            "provider": {
                "name": "openai",
                "chat_model": "gpt-4o-mini",
                "embed_model": "text-embedding-3-small",
                "base_urls": [server.url],
                "structured": "json_schema",
                "concurrency": 4,
                **(provider or {}),
            },
            "tasks": {**TASKS, **tasks},
        }
        self.config.write_text(yaml.safe_dump(values), encoding="utf-8")

    def start(self, *arguments, **variables):
        """Start a command; its standard error is a pipe, to be read line by line."""
        given = [*arguments, "--config", self.config]
        return subprocess.Popen(
            [sys.executable, "-m", "augment", *map(str, given)],
            cwd=self.folder,
            env=environ(OPENAI_API_KEY=KEY, PYTHONPATH=str(ROOT), **variables),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def end(self, process):
        """Wait for its end; returns (status, what it said at last)."""
        out, err = process.communicate(timeout=120)
        self.said += out + err
        return process.returncode, (out + err).decode()

    def __call__(self, *arguments):
        """Run a command to its end; returns (status, what it said)."""
        return self.end(self.start(*arguments))
