"""Fills a store by hand: real specs, requests, checks and settlements, made-up replies."""

from __future__ import annotations

import base64
import contextlib
import json
from functools import partial

import numpy as np

from augment.answers import find_spec, texts_to_embed
from augment.config import build_config
from augment.judge import Policy, judge_reply
from augment.plan import make_spec, pool_for, wanted
from augment.plan_rows import plan_row
from augment.store import Store, add_spec, plan, reserve
from augment.store.claims import claim, unpack
from llmrec_pl.data.prepare import Protocol, prepare_dataset
from llmrec_pl.data.sources.simulated import simulate

FILMS = {
    "item": "film",
    "items": "films",
    "creator": "director",
    "creators": "directors",
    "category": "genre",
    "categories": "genres",
    "consumed": "watched",
}
DIM = 6


def simulated(root, n_users=30, n_items=60):
    """A canonical folder with titles, directors, countries, ages and genders."""
    raw = simulate(n_users=n_users, n_items=n_items, plots=False)
    prepare_dataset(raw, root, Protocol(min_rating=4, ratios=(0.6, 0.2, 0.2)))
    return root


def config_of(folder, dataset, **tasks):
    defaults = {
        "pairs": {"pool": "random", "n_candidates": 10},
        "profiles": {},
        "attributes": {"fields": ["creator", "country"]},
        "embed": {"model": "vectors"},
    }
    values = {
        "dataset": str(dataset),
        "store": str(folder / "store"),
        "out": str(folder / "aug"),
        "provider": {"name": "local", "label": "toy", "chat_model": "m", "structured": "none"},
        "domain": FILMS,
        "tasks": {
            k: v if tasks.get(k, v) is v else tasks[k] and {**v, **tasks[k]}
            for k, v in defaults.items()
        },
    }
    return build_config(values)


def chat(content):
    message = {"role": "assistant", "content": json.dumps(content)}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return json.dumps(
        {
            "model": "m",
            "choices": [choice],
            "usage": {"prompt_tokens": 50, "completion_tokens": 5},
        }
    ).encode()


def vector_of(text):
    """A vector that depends on the text only."""
    seed = sum((i + 1) * b for i, b in enumerate(text.encode()))
    return np.random.default_rng(seed).standard_normal(DIM).astype("<f4")


def embedded(*texts):
    rows = [
        {"index": i, "embedding": base64.b64encode(vector_of(t).tobytes()).decode()}
        for i, t in enumerate(texts)
    ]
    return json.dumps({"data": rows, "usage": {"prompt_tokens": 3 * len(texts)}}).encode()


def answer(store, config, dataset, kind, reply=None, most=None):
    """Plan a task and settle its requests, follow-ups too.

    Args:
        reply: from (context, body) of a request to what the model says; bytes are a whole body,
            None leaves the request unanswered.
        most: requests to settle.
    """
    pool = pool_for(kind, config, dataset)
    spec = make_spec(kind, config, dataset, "none", pool)
    texts = list(_texts(store, config, dataset, spec)) if kind == "embed" else ()
    spec_id, _ = store.do(lambda db: add_spec(db, spec, 0))
    rows = [plan_row(spec, want) for want in wanted(spec, dataset, pool, texts)]
    store.do(partial(plan, spec=spec_id, rows=rows))
    store.do(lambda db: db.execute("UPDATE spec SET planned = 1 WHERE id = ?", (spec_id,)).rowcount)
    run = store.do(lambda db: db.execute("INSERT INTO run(t0) VALUES (0)").lastrowid)
    after, sent = 0, 0
    while items := store.do(partial(claim, spec=spec_id, after=after, limit=1)):
        (item,) = items
        said = _said(spec, item, reply)
        if said is None or sent == most:
            after = item.id
            continue
        sent += 1
        settle(store, spec, item, said, run)
    return spec_id


def settle(store, spec, item, said, run):
    attempt = store.do(
        partial(reserve, run=run, lane="sync", requests=[item.id], bound_pusd=0, price=None, now=1)
    )
    store.settle(
        judge_reply(
            spec, [item], said, attempt=attempt, price=None, reserved=0, policy=Policy(), now=2
        )
    ).result()


def _said(spec, item, reply):
    if reply is not None:
        said = reply(item.context, item.body)
        return said if said is None or isinstance(said, bytes) else chat(said)
    if spec.kind == "embed":
        return embedded(item.body["input"])
    return chat(DEFAULT[spec.kind](item.context, spec))


def _texts(store, config, dataset, spec):
    for kind in ("profiles", "attributes"):
        found = store.do(partial(find_spec, kind=kind, config=config, dataset=dataset))
        if found is not None:
            fields = spec.settings["fields"]
            texts = partial(texts_to_embed, kind=kind, spec_id=found, fields=fields)
            yield from store.do(lambda db, texts=texts: list(texts(db)))


def profile(number, **other):
    record = {
        "age": 20 + number % 40,
        "gender": "female" if number % 2 else "male",
        "liked_genres": ["Drama"],
        "disliked_genres": [],
        "liked_directors": [f"D{number}"],
        "country": None,
        "language": "English",
    }
    return {**record, **other}


def records(context, **fields):
    return {"items": [{"id": i, **fields} for i in context["ids"]]}


DEFAULT = {
    "pairs": lambda context, spec: {"most_liked": 1, "least_liked": 2},
    "profiles": lambda context, spec: profile(1),
    "attributes": lambda context, spec: records(context, director="A. Vance", country="Altoria"),
}


def body_of(db, request):
    return unpack(db.execute("SELECT body FROM request WHERE id = ?", (request,)).fetchone()[0])


@contextlib.contextmanager
def opened(config):
    """Yield the store of a config."""
    with Store(config.store, create=True, spool_size=2**16) as store:
        yield store


def fill(config, data, *, country="Altoria"):
    """Answer everything that a config asks."""
    with opened(config) as store:
        answer(store, config, data, "pairs")
        users = iter(range(10**6))
        answer(store, config, data, "profiles", lambda c, b: profile(next(users) % 7))
        answer(
            store,
            config,
            data,
            "attributes",
            lambda c, b: records(c, director=f"D{int(c['items'][0]) % 3}", country=country),
        )
        answer(store, config, data, "embed")
