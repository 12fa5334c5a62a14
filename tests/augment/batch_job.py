"""A store with something to ask, an account to ask, and the `batch` command between them."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys

import yaml

from augment.budget import read_ledger, recompute
from augment.cli import run_command
from augment.store import State, open_readonly

KEY, KEY_ENV = "sk-live-batch-0123456789abcdef", "BATCH_TEST_KEY"
USERS = 12


class Job:
    """A config and what its store holds."""

    def __init__(self, folder, dataset, account, url, **tasks):
        self.folder, self.account, self.url = folder, account, url
        self.store, self.config = folder / "store", folder / "config.yaml"
        self.dataset = dataset
        pairs = {"pool": "random", "n_candidates": 4}
        self.content = {
            "dataset": str(dataset),
            "store": str(self.store),
            "out": str(folder / "export"),
            "provider": {
                "name": "openai",
                "base_urls": [url],
                "key_env": KEY_ENV,
                "structured": "json_schema",
                "concurrency": 4,
            },
            "tasks": {"pairs": pairs, "profiles": None, "attributes": None, "embed": None, **tasks},
        }
        self.write()

    def write(self):
        self.config.write_text(yaml.safe_dump(self.content))

    def batch(self, action, *words):
        """Run `python -m augment batch ACTION` in this process."""
        run_command("batch", [action, "--config", str(self.config), *map(str, words)])

    def build(self, *words):
        self.batch("build", "--max-usd", "5", *words)

    def all_the_way(self):
        self.build()
        self.batch("submit")
        self.batch("poll")

    def killed(self, fault, action, *words):
        """Run it in a process of its own that dies at a fault point; returns its status."""
        command = [sys.executable, "-m", "augment", "batch", action, "--config", str(self.config)]
        environ = {**os.environ, "AUGMENT_FAULT": fault, KEY_ENV: KEY, "OMP_NUM_THREADS": "1"}
        done = subprocess.run([*command, *map(str, words)], env=environ, capture_output=True)
        return done.returncode

    @contextlib.contextmanager
    def db(self):
        with contextlib.closing(open_readonly(self.store)) as db:
            yield db

    def rows(self, query, *values):
        with self.db() as db:
            return db.execute(query, values).fetchall()

    @property
    def states(self):
        rows = self.rows("SELECT state, count(*) FROM request GROUP BY state")
        return {State(state).name: n for state, n in rows}

    @property
    def codes(self):
        return dict(self.rows("SELECT last_code, count(*) FROM request GROUP BY 1"))

    @property
    def parts(self):
        return [state for (state,) in self.rows("SELECT state FROM batch_part ORDER BY rowid")]

    @property
    def anomalies(self):
        return [kind for (kind,) in self.rows("SELECT kind FROM anomaly ORDER BY id")]

    @property
    def results(self):
        return dict(
            self.rows("SELECT r.key, t.value FROM result t JOIN request r ON r.id = t.request")
        )

    @property
    def ledger(self):
        """The ledger, after an audit."""
        with self.db() as db:
            ledger = read_ledger(db)
            assert ledger == recompute(db)
        return ledger

    @property
    def files(self):
        """Files of requests, by time of building."""
        return [
            self.store / "batches" / f"{uuid}.jsonl"
            for (uuid,) in self.rows("SELECT uuid FROM batch_part ORDER BY rowid")
        ]

    def asked(self, path=None):
        """The lines of a file of requests, the newest by default."""
        return [json.loads(text) for text in (path or self.files[-1]).read_text().splitlines()]

    def posts(self, method, path):
        return self.account.calls.count((method, path))
