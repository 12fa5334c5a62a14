"""From a data set to requests, one at a time: memory holds the titles, never the plan.

Prompts hold train history only, and nothing in them depends on dense numbering: a re-ordered
data set gives the same requests.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from augment.asker import Asker
from augment.catalogue import item_table_sha
from augment.config import AttributesTask, MemorisationTask, PairsTask, ProfilesTask
from augment.draws import keyed_order
from augment.history import Histories, times_sha
from augment.memorisation import Memorisation
from augment.pools import Pool, load_pool
from augment.prompts import HEURISTIC, clean_text, template_sha
from augment.providers import model_of, provider_label
from augment.schemas import attribute_fields, profile_fields
from augment.specs import TaskSpec, Wanted
from augment.validate import validator_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from augment.config import AugmentConfig, EmbedTask
    from augment.specs import Kind
    from llmrec_pl.data.dataset import InteractionDataset

Text = tuple[int, int, str]
"""Entity, number of the field, text."""


def pool_for(kind: Kind, config: AugmentConfig, dataset: InteractionDataset) -> Pool | None:
    """Return the candidate pools of the pairs task; None for other tasks.

    Raises:
        ConfigError: none is named, or its file is missing.
        AugmentationError: it does not fit the data set.
    """
    task = config.tasks.pairs
    if kind != "pairs" or task is None:
        return None
    return load_pool(task.pool, dataset, task.n_candidates, task.shuffle_seed)


# Specs -----------------------------------------------------------------------------------------


def make_spec(
    kind: Kind,
    config: AugmentConfig,
    dataset: InteractionDataset,
    structured: str,
    pool: Pool | None,
) -> TaskSpec:
    """Return a task with all that its requests depend on.

    Args:
        kind: the task; the config must have it.
        config: what to ask whom.
        dataset: about what.
        structured: "json_schema", "json_object" or "none", as the server takes it.
        pool: candidates, for pairs.

    Raises:
        ConfigError: the words of the domain give two fields one name, or pairs lack a pool.
    """
    task: Any = getattr(config.tasks, kind)
    common = {
        "kind": kind,
        "provider": provider_label(kind, config),
        "model": model_of(kind, config),
        "dataset_fp": dataset.fingerprint,
    }
    if kind == "embed":
        return TaskSpec.model_validate(common | _embed_parts(config, task))
    heuristic = config.provider.name == "heuristic"
    prompt_set = HEURISTIC if heuristic else task.prompt_set
    return TaskSpec.model_validate(
        common
        | {
            "endpoint": "chat.completions",
            "params": {} if heuristic else _params(task),
            "prompt_set": prompt_set,
            "prompt_sha": template_sha(prompt_set, kind),
            "structured": "none" if heuristic else structured,
            "validator": validator_name(kind, prompt_set),
            "draws": getattr(task, "draws", 1),
            "items_per_call": getattr(task, "items_per_call", 1),
            "settings": _settings(task, config, dataset, pool),
        }
    )


def _settings(
    task: PairsTask | ProfilesTask | AttributesTask | MemorisationTask,
    config: AugmentConfig,
    dataset: InteractionDataset,
    pool: Pool | None,
) -> dict[str, Any]:
    domain = config.domain.model_dump()
    settings: dict[str, Any] = {
        "domain": domain,
        "mask_titles": not isinstance(task, MemorisationTask) and task.mask_titles,
        "max_tokens_ceiling": task.max_tokens_ceiling,
        "item_table": item_table_sha(dataset),
    }
    if isinstance(task, AttributesTask):
        return settings | {"fields": attribute_fields(task.fields, domain)}
    if isinstance(task, MemorisationTask):
        asked = {name: getattr(task, name) for name in ("items", "users", "shown", "asked")}
        name = clean_text(task.data_name or dataset.name)
        return settings | asked | {"fields": [], "data_name": name, "times": times_sha(dataset)}
    settings |= {"history": task.history, "times": times_sha(dataset)}
    if isinstance(task, ProfilesTask):
        return settings | {"fields": profile_fields(domain)}
    assert pool is not None  # pool_for gives one for pairs
    return settings | {
        "fields": [],
        "n_candidates": task.n_candidates,
        "shuffle_seed": task.shuffle_seed,
        "pool": pool.sha256,
        "pool_model": pool.model_fingerprint,
    }


def _embed_parts(config: AugmentConfig, task: EmbedTask) -> dict[str, Any]:
    attributes = config.tasks.attributes or AttributesTask()
    fields = attribute_fields(attributes.fields, config.domain.model_dump())
    return {
        "endpoint": "embeddings",
        "params": {"dimensions": task.dimensions} if task.dimensions else {},
        "validator": validator_name("embed", ""),
        "texts_per_call": task.texts_per_call,
        "settings": {"fields": ["profile", *fields]},
    }


def _params(task: PairsTask | ProfilesTask | AttributesTask | MemorisationTask) -> dict[str, Any]:
    params = {
        "temperature": task.temperature,
        "top_p": task.top_p,
        "max_tokens": task.max_tokens,
        "seed": task.seed,
    }
    return {name: value for name, value in params.items() if value is not None}


# Requests --------------------------------------------------------------------------------------


def wanted(
    spec: TaskSpec,
    dataset: InteractionDataset,
    pool: Pool | None = None,
    texts: Iterable[Text] = (),
    limit: int | None = None,
) -> Iterator[Wanted]:
    """Yield what a task wants, with the body that asks for it or why nothing is asked.

    Args:
        spec: the task.
        dataset: the data set.
        pool: candidates, for pairs.
        texts: what to embed, for embeddings.
        limit: ask about so many users or items only; a larger limit asks about the same and more,
            with the same requests. Texts to embed are for the caller to choose.
    """
    if spec.kind == "embed":
        return _embeddings(spec, texts)
    if spec.kind == "attributes":
        return _Attributes(spec, dataset).wanted(limit)
    if spec.kind == "memorisation":
        return Memorisation(spec, dataset).wanted(limit)
    users = first_users(dataset, limit)
    if spec.kind == "profiles":
        return _Profiles(spec, dataset).wanted(users)
    assert pool is not None  # given for pairs
    return _Pairs(spec, dataset, pool).wanted(users)


def first_users(dataset: InteractionDataset, limit: int | None) -> list[int]:
    """Return the users that a limit leaves, in dense order; all without one.

    Who they are depends on names only. Users without history are no use for a trial.
    """
    if limit is None:
        return list(range(dataset.n_users))
    active = np.flatnonzero(np.diff(dataset.train.indptr)).tolist()
    names = [str(dataset.user_ids[user]) for user in active]
    return sorted(active[i] for i in keyed_order(names, "limit")[:limit])


def entities_within(spec: TaskSpec, dataset: InteractionDataset, limit: int) -> frozenset[int]:
    """Return the users or items whose records a limit leaves."""
    return frozenset(want.entity for want in wanted(spec, dataset, limit=limit))


def _embeddings(spec: TaskSpec, texts: Iterable[Text]) -> Iterator[Wanted]:
    for entity, field, text in texts:
        if not text:
            yield Wanted(entity, field, skip="empty_text")
            continue
        body = {"model": spec.model, "input": text, "encoding_format": "base64", **spec.params}
        yield Wanted(entity, field, body)


class _Profiles(Asker):
    def wanted(self, users: Iterable[int]) -> Iterator[Wanted]:
        histories = Histories(self.dataset, int(self.spec.settings["history"]))
        names = self.dataset.user_ids.tolist()
        for user in users:
            history = histories.of(user)
            if not history:
                yield Wanted(user, skip="no_history")
                continue
            asked = {"user": clean_text(names[user]), "history": self.ids(history)}
            body = self.body(asked, history="\n".join(self.lines(history)))
            yield Wanted(user, 0, body, {})


class _Pairs(Asker):
    def __init__(self, spec: TaskSpec, dataset: InteractionDataset, pool: Pool) -> None:
        super().__init__(spec, dataset)
        self.pool = pool
        self.paper = spec.prompt_set == "llmrec-2024"

    def wanted(self, users: Iterable[int]) -> Iterator[Wanted]:
        histories = Histories(self.dataset, int(self.spec.settings["history"]))
        names = self.dataset.user_ids.tolist()
        for user in users:
            history = histories.of(user)
            candidates: list[int] = [i for i in self.pool.items[user].tolist() if i >= 0]
            skip = "no_history" if not history else "no_candidates" if len(candidates) < 2 else None
            for draw in range(self.spec.draws):
                if skip is not None:
                    yield Wanted(user, draw, skip=skip)
                else:
                    yield self._draw(user, names[user], draw, history, candidates)

    def _draw(
        self, user: int, name: str, draw: int, history: list[int], candidates: list[int]
    ) -> Wanted:
        shown = candidates
        if not self.paper:  # against a liking for the first in the list
            names = self.ids(candidates)
            order = keyed_order(names, "shown", self.spec.settings["shuffle_seed"], name, draw)
            shown = [candidates[i] for i in order]
        ids, lines = self.ids(shown), self.lines(shown)
        context: dict[str, Any] = {"shown": shown, "ids": ids}
        if self.paper:
            context["history"] = self.ids(history)
        else:
            lines = [f"{number}. {line}" for number, line in enumerate(lines, 1)]
        asked = {}
        if self.heuristic:
            asked = {"user": clean_text(name), "candidates": ids, "history": self.ids(history)}
        body = self.body(
            asked,
            draw,
            history="\n".join(self.lines(history)),
            candidates="\n".join(lines),
            n=str(len(shown)),
        )
        return Wanted(user, draw, body, context)


class _Attributes(Asker):
    def wanted(self, limit: int | None) -> Iterator[Wanted]:
        """Group titled items in the order of their original ids, `items_per_call` at a time.

        A limit leaves whole groups, so that the rest can be asked for later without asking twice.
        """
        titled, size = [], self.spec.items_per_call
        for item in self.items.order:
            if self.items.titles[item] or self.heuristic:
                titled.append(item)
            elif limit is None:
                yield Wanted(item, skip="no_title")
        groups = [titled[start : start + size] for start in range(0, len(titled), size)]
        if limit is not None:
            order = keyed_order([self.items.ids[group[0]] for group in groups], "limit")
            groups = [groups[i] for i in sorted(order[: -(-limit // size)])]
        for group in groups:
            yield from self._group(group)

    def _group(self, group: list[int]) -> Iterator[Wanted]:
        ids, lines = self.ids(group), self.lines(group)
        asked = {"items": ids, "fields": self.spec.settings["fields"]}
        body = self.body(asked, listed="\n".join(lines))
        context = {"ids": ids, "items": group, "lines": lines}
        for item in group:
            yield Wanted(item, 0, body, context)
