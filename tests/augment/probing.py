"""Configs and answers for tests of the memorisation probe."""

from __future__ import annotations

import json

from augment.config import build_config
from augment.plan import make_spec, wanted
from tests.augment.tiny_data import FILMS

ALONE = dict.fromkeys(("pairs", "profiles", "attributes", "embed"))


def probe_config(folder, dataset, provider="local", form="none", tasks=ALONE, **settings):
    """A config that asks for memorisation and, by `tasks`, for other things.

    Args:
        form: how the server takes the form of an answer.
    """
    who = {"name": provider}
    if provider == "local":
        who |= {"label": "toy", "chat_model": "m", "structured": form, "concurrency": 4}
    return build_config(
        {
            "dataset": str(dataset),
            "store": str(folder / "store"),
            "out": str(folder / "out"),
            "provider": who,
            "domain": FILMS,
            "tasks": {**tasks, "memorisation": {"data_name": "Toy Lens", **settings}},
        }
    )


def planned(config, dataset, limit=None):
    """The spec of the probe and all it wants."""
    spec = make_spec("memorisation", config, dataset, "json_schema", None)
    return spec, list(wanted(spec, dataset, limit=limit))


def block(body):
    """The text between the marks of a prompt."""
    text = body["messages"][0]["content"]
    return text[text.index("<<<\n") + 4 : text.index("\n>>>")]


class Oracle:
    """Answers from the item table and the histories.

    Args:
        dataset: whose.
        by_id: from (title, number of the item) to the title that is said for an id.
        titles: from (titles that come next, True under the own id) to those that are said.
    """

    def __init__(self, dataset, by_id=lambda title, item: title, titles=lambda following, own: []):
        frame = dataset.items_frame()
        self.titles, self.years = frame["title"].to_list(), frame["year"].to_list()
        self.row = {str(name): i for i, name in enumerate(dataset.item_ids.tolist())}
        self.users = [str(name) for name in dataset.user_ids.tolist()]
        self.train = dataset.train
        self.by_id, self.said = by_id, titles

    def __call__(self, context, body):
        text = body["messages"][0]["content"]
        if context["form"] == "item_id":
            item = self.row[json.loads(block(body))["id"]]
            return {"title": self.by_id(self.titles[item], item), "year": self.years[item]}
        if context["form"] == "item_title":
            return {"title": None, "year": None}
        user = self.users.index(text.split("user with id ")[1].split(" ")[0])
        own = set(self.train[[user]].indices.tolist()) >= {*context["shown"], *context["next"]}
        return {"titles": self.said([self.titles[i] for i in context["next"]], own)}
