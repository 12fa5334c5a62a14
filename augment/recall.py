"""Whether what a model recalled shows that it knows a data set by heart; pure.

Two figures can show it, since neither taste nor knowledge of the world helps: items named by
their ids, against the same answers dealt to other ids; and next interactions under a user's own
id, against the same question under another user's. Titles finished from their first half are
shown beside them: who knows the items can do that without ever having seen the data set.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import asdict
from itertools import islice
from math import comb
from typing import TYPE_CHECKING, Any

import numpy as np

from augment.memorisation import CONTROL, HISTORY, ITEM_ID, ITEM_TITLE, first_half
from augment.prompts import clean_text
from augment.scores import Share, tail_above
from augment.truth import normal

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from augment.answers import Answer
    from augment.specs import TaskSpec
    from llmrec_pl.data.dataset import InteractionDataset

SIGNIFICANT = 0.01
"""Chance of a false alarm that each of the two tests is allowed."""
_ARTICLE = re.compile(r"^(.*?) (the|a|an|le|la|les|il|el|der|die|das)$")
_LEADING = re.compile(r"^(the|a|an|le|la|les|il|el|der|die|das) (.+)$")


def title_key(title: str) -> str:
    """Return what two spellings of a title share: "Godfather, The (1972)" and "The Godfather"."""
    name = normal(title)
    found = _LEADING.match(name)
    return found[2] if found else _ARTICLE.sub(r"\1", name)


class Recall:
    """Holds answers of the probe against a data set.

    Args:
        spec: the task.
        dataset: its item table and train split are used.
    """

    def __init__(self, spec: TaskSpec, dataset: InteractionDataset) -> None:
        self.spec = spec
        frame = dataset.items_frame()
        titles = _column(frame, "title")
        self._titles = [clean_text(text) for text in titles]
        self._keys = [title_key(text) for text in self._titles]
        self._years = [int(y) if y.isdecimal() else None for y in _column(frame, "year")]
        counts = np.bincount(dataset.train.indices, minlength=dataset.n_items)
        ids = [str(name) for name in dataset.item_ids.tolist()]
        order = sorted(range(len(ids)), key=lambda i: (-counts[i], ids[i]))
        self._popular = [i for i in order if self._titles[i]]

    def measure(self, answers: Iterable[Answer]) -> dict[str, Any]:
        """Score accepted answers; returns figures, the verdict and a sentence that explains it."""
        probes: dict[int, list[Answer]] = {p: [] for p in (ITEM_ID, ITEM_TITLE, HISTORY, CONTROL)}
        for answer in answers:
            if answer.value is not None:
                probes[answer.field].append(answer)
        found: dict[str, Any] = {
            "data_name": self.spec.settings["data_name"],
            "shown": self.spec.settings["shown"],
            "asked": self.spec.settings["asked"],
            "by_id": self._items(probes[ITEM_ID], [self._popular[:1]] * len(probes[ITEM_ID])),
            "by_title": self._items(
                probes[ITEM_TITLE], [self._begins(a.entity) for a in probes[ITEM_TITLE]]
            ),
            "interactions": self._interactions(probes[HISTORY], probes[CONTROL]),
        }
        return found | _verdict(found, self.spec)

    # Items ---------------------------------------------------------------------------------

    def _items(self, rows: Sequence[Answer], rivals: Sequence[Sequence[int]]) -> dict[str, Any]:
        """Score titles and years; a rival answers with its first item."""
        said = [title_key(row.value["title"] or "") for row in rows]
        meant = [self._keys[row.entity] for row in rows]
        times = Counter(name for name in said if name)
        chances = [times[key] / len(rows) for key in meant]
        right = sum(bool(a) and a == b for a, b in zip(said, meant, strict=True))
        usual = sum(
            bool(rival) and self._keys[rival[0]] == key
            for rival, key in zip(rivals, meant, strict=True)
        )
        dated = [(row.value["year"], self._years[row.entity]) for row in rows]
        years = [(answer, truth) for answer, truth in dated if truth is not None]
        common = Counter(truth for _, truth in years).most_common(1)
        return {
            "answered": asdict(Share.of(sum(map(bool, said)), len(rows))),
            "right": asdict(Share.of(right, len(rows))),
            "popular": asdict(Share.of(usual, len(rows))),
            "chance": sum(chances) / len(rows) if rows else None,
            "p_by_chance": tail_above(right, chances) if rows else None,
            "year_right": asdict(Share.of(sum(a == t for a, t in years), len(years))),
            "year_majority": asdict(Share.of(common[0][1] if common else 0, len(years))),
        }

    def _begins(self, item: int) -> list[int]:
        """Return the most popular item whose title begins as this one's first half."""
        begin = first_half(self._titles[item])
        return list(islice((i for i in self._popular if self._titles[i].startswith(begin)), 1))

    # Interactions --------------------------------------------------------------------------

    def _interactions(self, own: Sequence[Answer], control: Sequence[Answer]) -> dict[str, Any]:
        """Count next items named: by the model, by popularity, by chance, under another id."""
        named = [self._hits(row, row.value["titles"]) for row in own]
        usual = [self._hits(row, self._popular_titles(row)) for row in own]
        other = {row.entity: self._hits(row, row.value["titles"]) for row in control}
        pairs = [(n, other[row.entity]) for n, row in zip(named, own, strict=True)
                 if row.entity in other]  # fmt: skip
        n = len(own)
        return {
            "answered": asdict(Share.of(sum(bool(row.value["titles"]) for row in own), n)),
            "users_hit": asdict(Share.of(sum(map(bool, named)), n)),
            "popular": asdict(Share.of(sum(map(bool, usual)), n)),
            "chance": sum(map(self._chance, own)) / n if n else None,
            "control": asdict(Share.of(sum(bool(b) for _, b in pairs), len(pairs))),
            "items_named": sum(named),
            "items_named_by_popularity": sum(usual),
            "items_next": sum(len(row.context["next"]) for row in own),
            "p_own_over_control": _more(pairs),
            "p_over_popular": _more(list(zip(named, usual, strict=True))),
        }

    def _hits(self, row: Answer, titles: Iterable[str]) -> int:
        """Count the next items that are among the titles, each title once."""
        said = {title_key(title) for title in titles} - {""}
        return sum(self._keys[item] in said for item in row.context["next"])

    def _popular_titles(self, row: Answer) -> list[str]:
        shown = set(row.context["shown"])
        new = (self._titles[i] for i in self._popular if i not in shown)
        return list(islice(new, self.spec.settings["asked"]))

    def _chance(self, row: Answer) -> float:
        """Return the chance that as many random titled items, none of them shown, hit."""
        rest = len(self._popular) - sum(bool(self._titles[i]) for i in row.context["shown"])
        picks = min(rest, len({title_key(title) for title in row.value["titles"]}))
        return 1.0 - comb(rest - len(row.context["next"]), picks) / comb(rest, picks)


def _column(frame: Any, name: str) -> list[str]:  # noqa: ANN401
    if name not in frame.columns:
        return [""] * int(frame.height)
    return ["" if value is None else str(value) for value in frame[name].to_list()]


def _more(pairs: Sequence[tuple[int, int]]) -> float | None:
    """Return the exact one-sided p-value of a sign test that the first is the larger."""
    more, less = sum(a > b for a, b in pairs), sum(a < b for a, b in pairs)
    if not more + less:
        return None
    from scipy.stats import binomtest

    return float(binomtest(more, more + less, alternative="greater").pvalue)


# The verdict -----------------------------------------------------------------------------------


def _verdict(found: dict[str, Any], spec: TaskSpec) -> dict[str, str]:
    items, users = found["by_id"], found["interactions"]
    if not items["right"]["n"] + users["users_hit"]["n"]:
        return {"verdict": "unknown", "sentence": "Nothing was answered, so nothing can be said."}
    tests = (items["p_by_chance"], users["p_own_over_control"])
    knows = any(p is not None and p < SIGNIFICANT for p in tests)
    parts = []
    if items["right"]["n"]:
        parts.append(
            f"Asked for the {spec.settings['domain']['items']} behind ids of "
            f"{found['data_name']!r}, {spec.model} named {_of(items['right'])}; the same answers "
            f"dealt to other ids would name {100 * items['chance']:.1f} %."
        )
    if users["users_hit"]["n"]:
        parts.append(
            f"It named one of the next {found['asked']} in the histories of "
            f"{_of(users['users_hit'])} users; popularity does so for {_of(users['popular'])}, and "
            f"the same question under another user's id for {_of(users['control'])}."
        )
    silent = [
        what
        for what, part in (("ids", items), ("histories", users))
        if part["answered"]["n"] and not part["answered"]["k"]
    ]
    if spec.prompt_set.startswith("heuristic"):
        parts.append("This is no LLM and recalls nothing: it is the floor.")
    elif knows:
        parts.append(
            "It knows this data set by heart at least in part: what it says of these users and "
            "items may be recall, and a gain on this data set need not hold on another."
        )
    elif silent:
        parts.append(
            f"No sign of knowing it by heart, but asked about {' and '.join(silent)} it never "
            "named a title: a model that declines to answer cannot be found out."
        )
    else:
        parts.append(
            "That is no sign of knowing it by heart, as far as so many questions can tell."
        )
    return {"verdict": "memorised" if knows else "no sign", "sentence": " ".join(parts)}


def _of(share: dict[str, Any]) -> str:
    if not share["n"]:
        return "0 of 0"
    value, low, high = (100 * share[name] for name in ("share", "low", "high"))
    return f"{share['k']:,} of {share['n']:,} ({value:.1f} %, {low:.1f}-{high:.1f})"


def summary(found: dict[str, Any], spec: TaskSpec) -> dict[str, Any]:
    """Return what an export says of the probe: its verdict, the shares behind it, who was asked."""
    return {
        "verdict": found["verdict"],
        "sentence": found["sentence"],
        "items_by_id": found["by_id"]["right"],
        "users_hit": found["interactions"]["users_hit"],
        "users_hit_under_other_ids": found["interactions"]["control"],
        "users_hit_by_popularity": found["interactions"]["popular"],
        "spec": spec.sha.hex(),
    }
