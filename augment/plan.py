"""From a data set to requests, one at a time: memory holds the titles, never the plan.

Prompts hold train history only, and nothing in them depends on dense numbering: a re-ordered
data set gives the same requests.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from augment.config import AttributesTask, PairsTask, ProfilesTask
from augment.pools import Pool, keyed_seed, load_pool
from augment.prompts import clean_text, render, shown_line, template_sha
from augment.providers import model_of, provider_label
from augment.schemas import attribute_fields, profile_fields
from augment.specs import TaskSpec, Wanted, canonical_json
from augment.validate import validator_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from augment.config import AugmentConfig
    from augment.specs import Kind
    from llmrec_pl.data.dataset import InteractionDataset

HEURISTIC = "heuristic-1"
Text = tuple[int, int, str]
"""Entity, number of the field, text."""


def pool_for(kind: Kind, config: AugmentConfig, dataset: InteractionDataset) -> Pool | None:
    """Return the candidate pools of the pairs task; None for other tasks."""
    task = config.tasks.pairs
    if kind != "pairs" or task is None:
        return None
    return load_pool(task.pool, dataset, task.n_candidates, task.shuffle_seed)


def make_spec(
    kind: Kind,
    config: AugmentConfig,
    dataset: InteractionDataset,
    structured: str,
    pool: Pool | None,
) -> TaskSpec:
    """Return a task with all that its answers depend on."""
    task: Any = getattr(config.tasks, kind)
    domain = config.domain.model_dump()
    common = {
        "kind": kind,
        "provider": provider_label(kind, config),
        "model": model_of(kind, config),
        "dataset_fp": dataset.fingerprint,
    }
    attributes = config.tasks.attributes or AttributesTask()
    item_fields = attribute_fields(attributes.fields, domain)
    if kind == "embed":
        return TaskSpec(
            **common,
            endpoint="embeddings",
            params={"dimensions": task.dimensions} if task.dimensions else {},
            validator=validator_name(kind, ""),
            texts_per_call=task.texts_per_call,
            settings={"fields": ["profile", *item_fields]},
        )
    heuristic = config.provider.name == "heuristic"
    prompt_set = HEURISTIC if heuristic else task.prompt_set
    settings: dict[str, Any] = {
        "domain": domain,
        "mask_titles": task.mask_titles,
        "max_tokens_ceiling": task.max_tokens_ceiling,
    }
    if isinstance(task, PairsTask | ProfilesTask):
        settings["history"] = task.history
        settings["fields"] = profile_fields(domain)
    if isinstance(task, PairsTask):
        assert pool is not None  # pool_for gives one for pairs
        settings |= {"n_candidates": task.n_candidates, "shuffle_seed": task.shuffle_seed}
        settings |= {"pool": pool.sha256, "pool_model": pool.model_fingerprint, "fields": []}
    if kind == "attributes":
        settings["fields"] = item_fields
    params = {} if heuristic else _params(task)
    return TaskSpec(
        **common,
        endpoint="chat.completions",
        params=params,
        prompt_set=prompt_set,
        prompt_sha=template_sha(prompt_set, kind),
        structured="none" if heuristic else structured,  # type: ignore[arg-type]  # checked
        validator=validator_name(kind, prompt_set),
        draws=getattr(task, "draws", 1),
        items_per_call=getattr(task, "items_per_call", 1),
        settings=settings,
    )


def _params(task: Any) -> dict[str, Any]:
    params = {
        "temperature": task.temperature,
        "top_p": task.top_p,
        "max_tokens": task.max_tokens,
        "seed": task.seed,
    }
    return {name: value for name, value in params.items() if value is not None}


def wanted(
    spec: TaskSpec,
    dataset: InteractionDataset,
    pool: Pool | None = None,
    texts: Iterable[Text] = (),
) -> Iterator[Wanted]:
    """Yield what a task wants, with the body that asks for it or why nothing is asked.

    Args:
        spec: the task.
        dataset: the data set.
        pool: candidates, for pairs.
        texts: what to embed, for embeddings.
    """
    if spec.kind == "embed":
        yield from _embeddings(spec, texts)
        return
    items = _Items(spec, dataset)
    if spec.kind == "attributes":
        yield from _attributes(spec, items)
        return
    histories = _Histories(dataset, int(spec.settings["history"]))
    for user in range(dataset.n_users):
        history = histories.of(user)
        if spec.kind == "profiles":
            yield _profile(spec, items, user, history)
        else:
            assert pool is not None  # given for pairs
            yield from _pairs(spec, items, user, history, pool.items[user])


def _embeddings(spec: TaskSpec, texts: Iterable[Text]) -> Iterator[Wanted]:
    for entity, field, text in texts:
        if not text:
            yield Wanted(entity, field, skip="empty_text")
            continue
        body = {"model": spec.model, "input": text, "encoding_format": "base64", **spec.params}
        yield Wanted(entity, field, body)


def _profile(spec: TaskSpec, items: _Items, user: int, history: list[int]) -> Wanted:
    if not history:
        return Wanted(user, skip="no_history")
    if spec.prompt_set == HEURISTIC:
        asked = {"user": items.user_ids[user], "history": [items.ids[i] for i in history]}
        return Wanted(user, 0, _described(spec, asked), {})
    lines = "\n".join(items.line(i) for i in history)
    return Wanted(user, 0, render(spec, history=lines), {})


def _pairs(
    spec: TaskSpec, items: _Items, user: int, history: list[int], pool: np.ndarray[Any, Any]
) -> Iterator[Wanted]:
    candidates = [int(i) for i in pool if i >= 0]
    skip = "no_history" if not history else "no_candidates" if len(candidates) < 2 else None
    for draw in range(spec.draws):
        if skip is not None:
            yield Wanted(user, draw, skip=skip)
            continue
        shown = list(candidates)
        if spec.prompt_set != "llmrec-2024":  # against a liking for the first in the list
            seed = keyed_seed("shown", spec.settings["shuffle_seed"], items.user_ids[user], draw)
            shown = [shown[i] for i in np.random.default_rng(seed).permutation(len(shown))]
        ids = [items.ids[i] for i in shown]
        context = {"shown": shown, "ids": ids}
        if spec.prompt_set == HEURISTIC:
            asked = {"user": items.user_ids[user], "candidates": ids}
            asked["history"] = [items.ids[i] for i in history]
            yield Wanted(user, draw, _described(spec, asked), context)
            continue
        if spec.prompt_set == "llmrec-2024":
            context["history"] = [items.ids[i] for i in history]
            lines = [items.line(i) for i in shown]
        else:
            lines = [items.line(i, str(number)) for number, i in enumerate(shown, 1)]
        body = render(
            spec,
            history="\n".join(items.line(i) for i in history),
            candidates="\n".join(lines),
            n=str(len(shown)),
        )
        yield Wanted(user, draw, body, context)


def _attributes(spec: TaskSpec, items: _Items) -> Iterator[Wanted]:
    """Group titled items in the order of their original ids, `items_per_call` at a time."""
    group: list[int] = []
    for item in items.order:
        if not items.titles[item] and spec.prompt_set != HEURISTIC:
            yield Wanted(item, skip="no_title")
            continue
        group.append(item)
        if len(group) == spec.items_per_call:
            yield from _group(spec, items, group)
            group = []
    if group:
        yield from _group(spec, items, group)


def _group(spec: TaskSpec, items: _Items, group: list[int]) -> Iterator[Wanted]:
    ids = [items.ids[i] for i in group]
    context: dict[str, Any] = {"ids": ids, "items": list(group)}
    if spec.prompt_set == HEURISTIC:
        body = _described(spec, {"items": ids, "fields": spec.settings["fields"]})
        context["lines"] = [""] * len(ids)
    else:
        context["lines"] = [items.line(i) for i in group]
        body = render(spec, listed="\n".join(context["lines"]))
    for item in group:
        yield Wanted(item, 0, body, context)


def _described(spec: TaskSpec, asked: dict[str, Any]) -> dict[str, Any]:
    content = canonical_json({"task": spec.kind, **asked})
    return {"model": spec.model, "messages": [{"role": "user", "content": content}]}


class _Items:
    """Ids, titles and lines of items, cleaned once."""

    def __init__(self, spec: TaskSpec, dataset: InteractionDataset) -> None:
        self.spec = spec
        self.ids = [clean_text(str(name)) for name in dataset.item_ids.tolist()]
        self.user_ids = [str(name) for name in dataset.user_ids.tolist()]
        self.order = np.argsort(dataset.item_ids, kind="stable").tolist()
        frame = dataset.items_frame()
        self._columns = [
            [clean_text("" if v is None else str(v)) for v in frame[name].to_list()]
            if name in frame.columns
            else [""] * len(self.ids)
            for name in ("title", "year", "genres")
        ]
        self.titles = self._columns[0]
        self._lines: dict[int, str] = {}

    def line(self, item: int, label: str | None = None) -> str:
        """Return an item as the prompt shows it."""
        if label is not None:
            return shown_line(self.spec, self._record(item), label)
        if item not in self._lines:
            self._lines[item] = shown_line(self.spec, self._record(item))
        return self._lines[item]

    def _record(self, item: int) -> dict[str, Any]:
        if self.spec.settings["mask_titles"]:
            masked = f"{self.spec.settings['domain']['item']} {self.ids[item]}"
            return {"id": self.ids[item], "title": masked}
        title, year, category = (column[item] for column in self._columns)
        record: dict[str, Any] = {"id": self.ids[item], "title": title or "(untitled)"}
        if year:
            record["year"] = year
        if category:
            record[self.spec.settings["domain"]["category"]] = category
        return record


class _Histories:
    """Train items of a user, oldest first, by time where it is known, then by original id."""

    def __init__(self, dataset: InteractionDataset, most: int) -> None:
        self._dataset, self._most = dataset, most

    @cached_property
    def _rank(self) -> np.ndarray[Any, Any]:
        rank = np.empty(self._dataset.n_items, dtype=np.int64)
        rank[np.argsort(self._dataset.item_ids, kind="stable")] = np.arange(self._dataset.n_items)
        return rank

    @cached_property
    def _sorted(self) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Items of all users in one array, with where each user begins."""
        train = self._dataset.train
        users = np.repeat(np.arange(self._dataset.n_users), np.diff(train.indptr))
        items = train.indices.astype(np.int64)
        times = self._times(users, items)
        order = np.lexsort((self._rank[items], times, users))
        return items[order], train.indptr

    def _times(self, users: np.ndarray[Any, Any], items: np.ndarray[Any, Any]) -> Any:
        root = self._dataset.root
        path = None if root is None else root / "interactions.parquet"
        if path is None or "timestamp" not in pl.read_parquet_schema(path):
            return np.zeros(len(items))
        frame = pl.read_parquet(path, columns=["user", "item", "split", "timestamp"])
        frame = frame.filter(pl.col("split") == "train").select("user", "item", "timestamp")
        pairs = pl.DataFrame({"user": users, "item": items})
        casts = pl.col("user", "item").cast(pl.Int64)
        joined = pairs.with_columns(casts).join(
            frame.with_columns(casts).unique(["user", "item"], keep="last", maintain_order=True),
            on=["user", "item"],
            how="left",
            maintain_order="left",
        )
        return joined["timestamp"].cast(pl.Float64).fill_null(0.0).to_numpy()

    def of(self, user: int) -> list[int]:
        """Return the last items of a user's train history."""
        items, starts = self._sorted
        mine = items[starts[user] : starts[user + 1]]
        return [int(i) for i in mine[-self._most :]]
