"""Small data sets with titles, times and any numbering, and configs to ask about them."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import polars as pl

from augment.config import build_config
from augment.plan import make_spec, pool_for, wanted
from augment.specs import request_key
from llmrec_pl.data.dataset import InteractionDataset, content_fingerprint, edges_to_csr

ITEMS = {  # id -> title, year, genres
    "m1": ("Alien", 1979, "Horror, Sci-Fi"),
    "m10": ("Brazil", 1985, "Sci-Fi"),
    "m2": (None, None, None),
    "m3": ("Down by Law", 1986, "Comedy"),
    "m4": ("Eraserhead", None, "Horror"),
    "m5": ("Fargo", 1996, None),
    "m6": ("Gattaca", 1997, "Sci-Fi"),
    "m7": ("Heat", 1995, "Crime"),
}
LIKED = [  # user, item, when
    ("u1", "m3", 30),
    ("u1", "m1", 10),
    ("u1", "m2", 20),
    ("u2", "m4", 5),
    ("u2", "m10", 5),
    ("u4", "m5", 1),
]
USERS = ["u1", "u2", "u3", "u4"]
HELD_OUT = [("u1", "m7", 40), ("u3", "m1", 1)]
FILMS = {
    "item": "film",
    "items": "films",
    "creator": "director",
    "creators": "directors",
    "category": "genre",
    "categories": "genres",
    "consumed": "watched",
}


def tiny(root, items=None, liked=LIKED, users=USERS, *, turned=False, held_out=HELD_OUT, **columns):
    """A canonical folder, loaded without checks; `turned` numbers everything the other way round.

    Args:
        items: id -> (title, year, genres).
        columns: of the item table, instead of these three.
    """
    items = ITEMS if items is None else items
    step = -1 if turned else 1
    user_ids, item_ids = list(users)[::step], list(items)[::step]
    user_of = {name: i for i, name in enumerate(user_ids)}
    item_of = {name: i for i, name in enumerate(item_ids)}
    rows = [(user_of[u], item_of[i], "train", t) for u, i, t in list(liked)[::step]]
    rows += [(user_of[u], item_of[i], "val", t) for u, i, t in held_out]
    schema = ["user", "item", "split", "timestamp"]
    root = Path(root)
    root.mkdir(parents=True, exist_ok=True)
    frame = pl.DataFrame(rows, schema=schema, orient="row")
    frame.write_parquet(root / "interactions.parquet")
    if not columns:
        texts = zip(*(items[name] for name in item_ids), strict=True)
        columns = dict(zip(("title", "year", "genres"), map(list, texts), strict=True))
    ids = {"item": range(len(item_ids)), "item_id": item_ids}
    pl.DataFrame({**ids, **columns}, strict=False).write_parquet(root / "items.parquet")
    splits = {}
    for split in ("train", "val", "test"):
        pairs = [row[:2] for row in rows if row[2] == split]
        edges = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
        splits[split] = edges_to_csr(edges[0], edges[1], len(user_ids), len(item_ids))
    names = np.array(user_ids, dtype=np.str_), np.array(item_ids, dtype=np.str_)
    fingerprint = content_fingerprint({}, *names, splits)
    return InteractionDataset("tiny", splits, *names, fingerprint, root=root)


def config_of(provider="openai", tasks=None, **values):
    """A config for films; `tasks` gives settings by task."""
    given = {"pairs": {"pool": "random", "n_candidates": 3}, "profiles": {}, "attributes": {}}
    for kind, settings in (tasks or {}).items():
        given[kind] = {**given.get(kind, {}), **settings}
    return build_config(
        {
            "dataset": "d",
            "store": "s",
            "out": "o",
            "provider": provider,
            "domain": FILMS,
            "tasks": given,
            **values,
        }
    )


def ask(kind, dataset, structured="json_schema", provider="openai", **settings):
    """Plan a task; returns its spec and all it wants."""
    config = config_of(provider, {kind: settings})
    pool = pool_for(kind, config, dataset)
    spec = make_spec(kind, config, dataset, structured, pool)
    return spec, list(wanted(spec, dataset, pool))


def prompt(want):
    """The text of a wanted answer's only message."""
    (message,) = want.body["messages"]
    assert message["role"] == "user"
    return message["content"]


def keys(spec, wants):
    """Keys as a run makes them: the number of the draw is the field of a pair."""
    draw_of = (lambda w: w.field) if spec.kind == "pairs" else (lambda w: 0)
    return {
        request_key(spec.provider, spec.endpoint, want.body, draw_of(want))
        for want in wants
        if want.body is not None
    }


def names_in(text):
    """Titles in a prompt, in their order."""
    known = [title for title, *_ in ITEMS.values() if title]
    found = re.findall("|".join(map(re.escape, [*known, "(untitled)"])), text)
    return [name.replace("(untitled)", "-") for name in found]
