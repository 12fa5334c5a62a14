"""Requests that ask whether a model knows a public data set by heart.

After Di Palma et al., "Do LLMs Memorize Recommendation Datasets?" (SIGIR 2025): a data set is
memorised as far as its items, users and interactions can be called up by prompts. Asked here are
items (by their ids, and by the first half of their titles) and interactions. Users' attributes
are not: no prompt of ours ever shows them. Nobody is given an example to copy from, and histories
are of the train split only.

The control of interactions is the same history under another user's id: taste and popularity are
in both, so whatever the own id adds is recall.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np

from augment.asker import Asker
from augment.draws import keyed_order
from augment.history import Histories
from augment.prompts import shown_id
from augment.specs import Wanted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from augment.specs import TaskSpec
    from llmrec_pl.data.dataset import InteractionDataset

ITEM_ID, ITEM_TITLE, HISTORY, CONTROL = range(4)
"""Number of the probe, the field of its answers: two are about items, then two about users."""


class Memorisation(Asker):
    """The requests of the probe: some items and users, chosen by hashes of their ids."""

    def __init__(self, spec: TaskSpec, dataset: InteractionDataset) -> None:
        super().__init__(spec, dataset)
        settings = spec.settings
        self.n_items, self.n_users = int(settings["items"]), int(settings["users"])
        self.n_shown, self.n_asked = int(settings["shown"]), int(settings["asked"])
        self._histories = Histories(dataset, int(dataset.train.nnz))
        self._users = [shown_id(str(name)) for name in dataset.user_ids.tolist()]

    def wanted(self, limit: int | None) -> Iterator[Wanted]:
        """Yield one probe after the other; a limit leaves the first items and users."""
        most = (self.n_items, self.n_users)
        n_items, n_users = most if limit is None else (min(limit, n) for n in most)
        titled = [item for item in self.items.order if self.items.titles[item]]
        order = keyed_order([self.items.ids[item] for item in titled], "memorisation")
        chosen = [titled[i] for i in order[:n_items]]
        for item in chosen:
            yield self._by_id(item)
        for item in chosen:
            yield self._by_title(item)
        circle = self._circle()
        following = [*circle[1:], *circle[:1]]
        pairs = list(zip(circle, following, strict=True))[:n_users]
        for user, _ in pairs:
            yield self._history(HISTORY, user, user)
        if len(circle) > 1:
            for user, other in pairs:
                yield self._history(CONTROL, user, other)

    def _by_id(self, item: int) -> Wanted:
        name = self.items.ids[item]
        asked = {"probe": "item_id", "id": name}
        body = self.body(asked, form="item_id", listed=_line(id=name))
        return Wanted(item, ITEM_ID, body, {"form": "item_id"})

    def _by_title(self, item: int) -> Wanted:
        begin = first_half(self.items.titles[item])
        asked = {"probe": "item_title", "begin": begin}
        body = self.body(asked, form="item_title", listed=_line(begin=begin))
        return Wanted(item, ITEM_TITLE, body, {"form": "item_title"})

    def _circle(self) -> list[int]:
        """Return the users whose history goes on after what is shown, in a hashed order.

        Each one's successor lends the id of the control, so a user more or less changes one.
        """
        lengths = np.diff(self.dataset.train.indptr)
        able = [u for u in np.flatnonzero(lengths > self.n_shown).tolist() if self._parts(u)[1]]
        return [able[i] for i in keyed_order([self._users[u] for u in able], "memorisation")]

    def _parts(self, user: int) -> tuple[list[int], list[int]]:
        """Return what is shown of a history, and which titled items come next."""
        history = self._histories.of(user)
        following = history[self.n_shown : self.n_shown + self.n_asked]
        return history[: self.n_shown], [item for item in following if self.items.titles[item]]

    def _history(self, probe: int, user: int, named: int) -> Wanted:
        shown, following = self._parts(user)
        asked = {
            "probe": "history",
            "user": self._users[named],
            "history": self.ids(shown),
            "n": self.n_asked,
        }
        body = self.body(
            asked,
            form="history",
            user=self._users[named],
            history="\n".join(self.lines(shown)),
            n=str(self.n_asked),
        )
        return Wanted(user, probe, body, {"form": "history", "shown": shown, "next": following})


def first_half(title: str) -> str:
    """Return the first half of a title's words, rounded up; of a single word's letters."""
    words = title.split()
    if len(words) == 1:
        return title[: -(-len(title) // 2)]
    return " ".join(words[: -(-len(words) // 2)])


def _line(**shown: str) -> str:
    return json.dumps(shown, ensure_ascii=False)
