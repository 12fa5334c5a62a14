"""How good the answers of a store are: pairs, attributes and profiles against what is known.

Of memorisation, whether they show that the model knows the data set by heart.

Every setting of the store that was asked about this data set is scored, so temperatures, models
and heuristics stand side by side. Only train and validation are looked at; the test split stays
sealed. It is a diagnosis: who picks prompts or models by it has used validation to select.
"""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from dataclasses import asdict
from itertools import groupby
from typing import TYPE_CHECKING, Any

from augment.answers import answers, choose_specs, stored_specs
from augment.export_content import majority, picked
from augment.placebo import placebos_of
from augment.plan import pool_for
from augment.provenance import cost, label_of
from augment.recall import Recall
from augment.scores import Judged, Share, score_ages, score_names, tail_above, tail_below
from augment.specs import RANDOM
from augment.store import open_readonly
from augment.texts import attribute_text
from augment.truth import age_range, column_for, gender, load_truth, names_in
from llmrec_pl.errors import AugmentationError, ConfigError

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from augment.config import AugmentConfig
    from augment.specs import TaskSpec
    from augment.truth import Side, Truth
    from llmrec_pl.data.dataset import InteractionDataset

    _Value = tuple[int, dict[str, Any]]

NOTE = (
    "A diagnosis on train and validation; the test split was not opened. Choosing a prompt or a "
    "model by these figures makes validation part of the selection."
)

_JUDGED = (
    "WITH judged AS (SELECT v.attempt, v.request, v.code, r.parent, "
    "max(printf('%03d', length(v.validator)) || v.validator) "  # 10 is newer than 9
    "FROM verdict v JOIN request r ON r.id = v.request WHERE r.spec = ? "
    "GROUP BY v.attempt, v.request)"
)
"""Each reply's verdict by the newest check, for the requests of one spec."""


def measure(
    store: Path | str,
    config: AugmentConfig,
    dataset: InteractionDataset,
    truth_files: dict[Side, Path] | None = None,
) -> dict[str, Any]:
    """Score everything a store was answered about a data set.

    Args:
        store: folder of the journal.
        config: says which settings are marked as its own, and names the pool.
        dataset: the data set; its test split is not needed.
        truth_files: files with truth columns of "items" or "users", over the data set's own.

    Returns:
        Plain JSON values; a pure function of store, data set and truth.

    Raises:
        AugmentationError: the store holds nothing about this data set.
        DatasetError: a truth file cannot be used.
    """
    files = truth_files or {}
    with contextlib.closing(open_readonly(store)) as db:
        db.execute("BEGIN")  # one snapshot, also while a run goes on
        specs = [(i, s) for i, s in stored_specs(db, dataset) if s.kind != "embed"]
        if not specs:
            raise AugmentationError(
                f"store {str(store)!r} holds no answers about data set {dataset.name!r}. Run "
                "`python -m augment run` first."
            )
        own = {i for i, _ in choose_specs(db, config, dataset).values()}
        scorer = _Scorer(
            db,
            config,
            dataset,
            own,
            {
                "items": load_truth(dataset, "items", files.get("items")),
                "users": load_truth(dataset, "users", files.get("users")),
            },
        )
        return {
            "dataset": dataset.name,
            "dataset_fp": dataset.fingerprint,
            "note": NOTE,
            "acceptance": [scorer.acceptance(i, s) for i, s in specs],
            "pairs": [scorer.pairs(i, s) for i, s in specs if s.kind == "pairs"],
            "attributes": [scorer.attributes(i, s) for i, s in specs if s.kind == "attributes"],
            "profiles": [scorer.profiles(i, s) for i, s in specs if s.kind == "profiles"],
            "memorisation": [scorer.recall(i, s) for i, s in specs if s.kind == "memorisation"],
        }


def setting_name(spec: TaskSpec) -> str:
    """Return what tells a setting apart for a reader: "gpt-4o-mini (openai) strict-1 t=0.6"."""
    if spec.prompt_set.startswith("heuristic"):
        parts = [f"{spec.model}, {label_of(spec)}"]
    else:
        parts = [spec.model, f"({spec.provider})", spec.prompt_set]
    for name, short in (("temperature", "t"), ("top_p", "top-p"), ("seed", "seed")):
        if spec.params.get(name) is not None:
            parts.append(f"{short}={spec.params[name]:g}")
    return " ".join([*parts, *(f"[{name}]" for name in placebos_of([spec], None))])


class _Scorer:
    def __init__(
        self,
        db: sqlite3.Connection,
        config: AugmentConfig,
        dataset: InteractionDataset,
        own: set[int],
        truth: dict[Side, Truth],
    ) -> None:
        self.db, self.config, self.dataset, self.own, self.truth = db, config, dataset, own, truth
        self.titles = dataset.titles()

    def _head(self, spec_id: int, spec: TaskSpec) -> dict[str, Any]:
        return {
            "setting": setting_name(spec),
            "spec": spec.sha.hex(),
            "task": spec.kind,
            "provider": label_of(spec),
            "model": spec.model,
            "prompt_set": spec.prompt_set,
            "heuristic": spec.prompt_set.startswith("heuristic"),
            "structured": spec.structured,
            "temperature": spec.params.get("temperature"),
            "top_p": spec.params.get("top_p"),
            "of_this_config": spec_id in self.own,
        }

    # Acceptance ----------------------------------------------------------------------------

    def acceptance(self, spec_id: int, spec: TaskSpec) -> dict[str, Any]:
        """Count what became of the answers, the verdicts on replies, and how often it asked again.

        A request that several specs share counts for the one that sent it.
        """
        outcomes = Counter(a.outcome for a in answers(self.db, spec_id, spec.kind))
        codes = dict(
            self.db.execute(
                f"{_JUDGED} SELECT code, count(*) FROM judged GROUP BY 1 ORDER BY 2 DESC, 1",
                (spec_id,),
            )
        )
        first, good = self.db.execute(
            f"{_JUDGED} SELECT count(*), ifnull(sum(code = 'accepted'), 0) FROM (SELECT code, "
            "min(attempt) FROM judged WHERE parent IS NULL GROUP BY request)",
            (spec_id,),
        ).fetchone()
        (asked,) = self.db.execute(
            f"{_JUDGED} SELECT count(DISTINCT request) FROM judged", (spec_id,)
        ).fetchone()
        children, mended = self.db.execute(
            "SELECT count(*), ifnull(sum(state = 2), 0) FROM request "
            "WHERE spec = ? AND parent IS NOT NULL",
            (spec_id,),
        ).fetchone()
        skipped = sum(n for name, n in outcomes.items() if name.startswith("skipped:"))
        spent = cost(self.db, {spec.kind: (spec_id, spec)})["tasks"][spec.kind]
        return {
            **self._head(spec_id, spec),
            "outcomes": dict(sorted(outcomes.items())),
            "answered": asdict(Share.of(outcomes["done"], outcomes.total() - skipped)),
            "accepted_replies": asdict(Share.of(codes.get("accepted", 0), sum(codes.values()))),
            "accepted_at_first": asdict(Share.of(good, first)),
            "verdicts": codes,
            "same_again": sum(codes.values()) - asked,
            "follow_ups": children,
            "follow_ups_accepted": mended,
            **spent,
        }

    # Pairs ---------------------------------------------------------------------------------

    def pairs(self, spec_id: int, spec: TaskSpec) -> dict[str, Any]:
        """Count how often a pick is a held-out liked item, against one random pick in the pool.

        Only users whose candidates hold a validation item can tell; the pick is the exported
        one, by majority over draws.
        """
        val = self.dataset.val
        users, agreed = 0, 0
        chances: list[float] = []
        told: list[int] = []
        most, least = 0, 0
        places = {"most_liked": Counter[int](), "least_liked": Counter[int]()}
        found = (a for a in answers(self.db, spec_id, "pairs") if a.value is not None)
        for user, group in groupby(found, key=lambda a: a.entity):
            draws = list(group)
            for answer in draws:
                for name, counter in places.items():
                    counter[answer.value[name]] += 1
            picks = [picked(a) for a in draws]
            vote = majority(picks)
            users += 1
            agreed += len(set(picks)) == 1
            liked = set(val.indices[val.indptr[user] : val.indptr[user + 1]].tolist())
            shown = draws[0].context["shown"]
            if held_out := liked.intersection(shown):
                chances.append(len(held_out) / len(shown))
                told.append(user)
                most += vote[0] in liked
                least += vote[1] in liked
        n = len(chances)
        return {
            **self._head(spec_id, spec),
            "users": users,
            "users_that_tell": n,
            "chance": sum(chances) / n if n else None,
            "most_liked": asdict(Share.of(most, n)),
            "least_liked": asdict(Share.of(least, n)),
            "p_most_liked_by_chance": tail_above(most, chances) if n else None,
            "p_least_liked_by_chance": tail_below(least, chances) if n else None,
            "first_of_pool": self._first_of_pool(spec, told),
            "draws_agree": asdict(Share.of(agreed, users)) if spec.draws > 1 else None,
            "candidates": spec.settings["n_candidates"],
            "places": {name: dict(sorted(c.items())) for name, c in places.items()},
        }

    def _first_of_pool(self, spec: TaskSpec, users: Sequence[int]) -> dict[str, Any] | None:
        """Return the hits of the base model's own first candidate; None without its pool file."""
        task = self.config.tasks.pairs
        if task is None or not users or spec.settings["pool_model"] == RANDOM:
            return None
        try:
            pool = pool_for("pairs", self.config, self.dataset)
        except (AugmentationError, ConfigError):
            return None
        if pool is None or pool.sha256 != spec.settings["pool"]:
            return None
        val = self.dataset.val
        hits = sum(
            int(pool.items[u, 0]) in val.indices[val.indptr[u] : val.indptr[u + 1]] for u in users
        )
        return asdict(Share.of(hits, len(users)))

    # Attributes and profiles ---------------------------------------------------------------

    def attributes(self, spec_id: int, spec: TaskSpec) -> dict[str, Any]:
        """Score each attribute that a truth column exists for."""
        rows = self._values(spec_id, "attributes")
        return {
            **self._head(spec_id, spec),
            **self._fields(spec.settings["fields"], rows, "items", self.titles),
        }

    def profiles(self, spec_id: int, spec: TaskSpec) -> dict[str, Any]:
        """Score age, gender, and what else of a profile a truth column exists for."""
        rows = self._values(spec_id, "profiles")
        users = [str(name) for name in self.dataset.user_ids]
        others = [f for f in spec.settings["fields"] if f not in ("age", "gender")]
        made = {**self._head(spec_id, spec), **self._fields(others, rows, "users", users)}
        truth = self.truth["users"]
        if ages := truth.get("age"):
            made["age"] = score_ages(
                (age_range(said.get("age")), age_range(ages[user])) for user, said in rows
            )
        if genders := truth.get("gender"):
            made["fields"]["gender"] = score_names(
                self._judged(rows, "gender", genders, users, lambda v: _only(gender(v)))
            )
        return made

    # Memorisation --------------------------------------------------------------------------

    def recall(self, spec_id: int, spec: TaskSpec) -> dict[str, Any]:
        """Say whether the model knows the data set by heart."""
        found = Recall(spec, self.dataset).measure(answers(self.db, spec_id, spec.kind))
        return {**self._head(spec_id, spec), **found}

    def _values(self, spec_id: int, kind: str) -> list[_Value]:
        return [(a.entity, a.value or {}) for a in answers(self.db, spec_id, kind)]

    def _fields(
        self, fields: Sequence[str], rows: Sequence[_Value], side: Side, labels: Sequence[str]
    ) -> dict[str, Any]:
        truth = self.truth[side]
        scored: dict[str, Any] = {}
        lacking = []
        for name in fields:
            column = column_for(name, truth)
            if column is None:
                lacking.append(name)
            else:
                scored[name] = score_names(
                    self._judged(rows, name, truth[column], labels, names_in)
                )
        return {"fields": scored, "without_truth": lacking}

    @staticmethod
    def _judged(
        rows: Sequence[_Value],
        field: str,
        truth: Sequence[str | None],
        labels: Sequence[str],
        names: Callable[[object], frozenset[str]],
    ) -> list[Judged]:
        return [
            Judged(
                label=labels[entity],
                answer=names(said.get(field)),
                truth=names(truth[entity]),
                said=attribute_text(said.get(field)),
                meant=attribute_text(truth[entity]),
            )
            for entity, said in rows
        ]


def _only(name: str | None) -> frozenset[str]:
    return frozenset() if name is None else frozenset([name])


def write_report(found: dict[str, Any], out: Path) -> list[Path]:
    """Write report.json, report.md and a picture of each part that has something to show.

    Args:
        found: what `measure` returned.
        out: the folder, made if it is not there.

    Returns:
        The files written.
    """
    from augment.report_plots import plot_all
    from augment.report_view import as_markdown

    out.mkdir(parents=True, exist_ok=True)
    pictures = plot_all(found, out)
    files = {
        "report.json": json.dumps(found, indent=1, ensure_ascii=False) + "\n",
        "report.md": as_markdown(found, [path.name for path in pictures]),
    }
    for name, text in files.items():
        (out / name).write_text(text, encoding="utf-8")
    return [*(out / name for name in files), *pictures]
