"""Runs from end to end with scripted answers, in this process, to be put on cassettes."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import random

import polars as pl

from augment.clock import SystemClock
from augment.config import build_config
from augment.errors import AugmentStop, BudgetStop
from augment.runner import Options, Runner
from augment.store import Store, open_readonly
from augment.store.vectors import VectorFile
from augment.wire import Reply
from llmrec_pl.data.dataset import InteractionDataset
from tests.augment.fault_replies import Step, answer, as_step, reply_body
from tests.augment.films import write_films

PATHS = {"chat.completions": "/chat/completions", "embeddings": "/embeddings"}


def config_of(folder, dataset, pool="random", **tasks):
    values = {
        "pairs": {"pool": str(pool), "n_candidates": 4},
        "profiles": {},
        "attributes": {"items_per_call": 3},
        "embed": {"dimensions": 8, "texts_per_call": 5},
    }
    for kind, task in tasks.items():
        values[kind] = None if task is None else {**(values[kind] or {}), **task}
    return build_config(
        {
            "dataset": str(dataset),
            "store": str(folder / "store"),
            "out": str(folder / "out"),
            "provider": {"name": "local", "label": "toy", "chat_model": "m", "embed_model": "e"}
            | {"structured": "json_schema", "concurrency": 4},
            "tasks": values,
        }
    )


class Scripted:
    """Answers by dice thrown for (seed, request, how often it was asked).

    Args:
        seed: of the dice.
        faults: share of calls that are not answered as they should be.
        most: calls after which the run is stopped.
    """

    def __init__(self, seed=0, faults=0.0, most=None):
        self.seed, self.faults, self.most = seed, faults, most
        self.asked, self.calls, self.sent = {}, [], 0

    async def send(self, call, journal):
        if self.sent == self.most:
            raise BudgetStop("enough.")
        self.sent += 1
        step = self._step(call)
        await asyncio.sleep(0)
        body, _ = reply_body(step, PATHS[call.endpoint], call.body, self.sent)
        if step.status == 200:
            journal(body)
        return Reply(step.status, {}, body)

    def _step(self, call):
        for key in call.keys:
            self.asked[key] = self.asked.get(key, 0) + 1
        dice = random.Random(f"{self.seed}{call.keys}{[self.asked[k] for k in call.keys]}")
        embeds = call.endpoint == "embeddings"
        if embeds:
            bad = any(self._poison(text) for text in call.body["input"])
            return as_step("bad_request" if bad else "permuted")
        if dice.random() >= self.faults:
            return Step(content=self._varied(call.body, dice))
        name = dice.choice(["bad", "part", "truncated", "refusal", "no_choices", "bad_request"])
        if name == "part":
            return Step(content=_less(self._varied(call.body, dice)))
        return Step(content="é: no JSON") if name == "bad" else as_step(name)

    def _poison(self, text):
        return hashlib.sha256(f"{self.seed}{text}".encode()).digest()[0] < 256 * self.faults / 4

    @staticmethod
    def _varied(body, dice):
        """A valid answer that differs from request to request."""
        made = json.loads(answer(body))
        if "most_liked" in made:
            most, least = dice.sample([1, 2, 3, 4], 2)
            return json.dumps({"most_liked": most, "least_liked": least})
        for record in made.get("items", [made]):
            record["country"] = dice.choice(["France", "Japan", "Peru", "Türkiye 😀"])
        return json.dumps(made)

    async def close(self):
        pass


def _less(content):
    made = json.loads(content)
    if isinstance(made.get("items"), list) and len(made["items"]) > 1:
        del made["items"][0]
    return json.dumps(made)


def taped(folder, answerer, config=None, films=None, **tasks):
    """Run everything once; returns (config, dataset)."""
    films = films or write_films(folder / "films", users=6, items=8, history=2)
    config = config or config_of(folder, films, **tasks)
    dataset = InteractionDataset.load(config.dataset)
    with Store(config.store, create=True, spool_size=65536) as store:
        runner = Runner(
            config,
            dataset,
            store,
            Options(max_reject_rate=1.0),
            clock=SystemClock(),
            answerers=lambda _: answerer,
        )
        with contextlib.suppress(AugmentStop):
            asyncio.run(runner.run())
    return config, dataset


def accepted(store):
    """What a store accepted, by key: values and vectors."""
    with contextlib.closing(open_readonly(store)) as db:
        values = dict(
            db.execute("SELECT r.key, t.value FROM result t JOIN request r ON r.id = t.request")
        )
    with contextlib.closing(VectorFile(store, readonly=True)) as vectors:
        return {
            key: (value, None if (v := vectors.get(key)) is None else v.tobytes())
            for key, value in values.items()
        }


def write_pool(folder, dataset, n=4, skip=0):
    """A pool as `predict` writes it, of items outside each user's train history."""
    folder.mkdir()
    rows = []
    for user, name in enumerate(dataset.user_ids.tolist()):
        liked = set(dataset.train[[user]].indices.tolist())
        free = [i for i in range(dataset.n_items) if i not in liked][::-1][skip : skip + n]
        rows += [(name, str(dataset.item_ids[i]), rank) for rank, i in enumerate(free, 1)]
    pl.DataFrame(rows, schema=["user_id", "item_id", "rank"], orient="row").write_parquet(
        folder / "candidates.parquet"
    )
    about = {"dataset_fingerprint": dataset.fingerprint, "model_fingerprint": "base-1"}
    (folder / "predictions.json").write_text(json.dumps(about))
    return folder / "candidates.parquet"
