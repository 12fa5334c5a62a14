"""Trials of a tuning grid: what was tried, and a store that makes a benchmark resumable.

Knows neither library; a trainer is a function from a `Trial` to an `Outcome`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import os
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

Library = Literal["llmrec_pl", "recbole"]


@dataclasses.dataclass(frozen=True)
class Budget:
    """What every trial of both libraries may spend.

    Attributes:
        max_epochs: epochs at most.
        patience: evaluations without a better validation Recall@20 before training stops.
        eval_every: epochs between evaluations.
        seed: of weights, batches and negatives.
    """

    max_epochs: int = 200
    patience: int = 15
    eval_every: int = 1
    seed: int = 2026


@dataclasses.dataclass(frozen=True)
class Trial:
    """One training run.

    Attributes:
        library: which implementation.
        model: its name there.
        settings: the model's own arguments, and ``lr`` and ``batch_size`` unless it is solved in
            closed form.
        budget: see `Budget`.
    """

    library: Library
    model: str
    settings: dict[str, Any]
    budget: Budget = dataclasses.field(default_factory=Budget)

    @property
    def is_solved(self) -> bool:
        """Return whether the model has a closed form, in which no seed takes part."""
        return "lr" not in self.settings

    def key(self, fingerprint: str) -> str:
        """Return a short hash of the trial and of the data set it runs on."""
        content = json.dumps([dataclasses.asdict(self), fingerprint], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def label(self) -> str:
        """Return one readable line."""
        settings = " ".join(f"{k}={_short(v)}" for k, v in self.settings.items())
        return f"{self.library} {self.model} {settings}"


@dataclasses.dataclass
class Outcome:
    """What a trial gave: vectors whose inner product is the score, and its cost.

    Attributes:
        user: ``[n_users, d]`` float32, of the best epoch.
        item: ``[n_items, d]`` float32, of the best epoch.
        cost: ``epochs``, ``best_epoch`` (from 1), CPU seconds of training and of evaluation.
        reported: validation metrics as the library itself computed them at the best epoch.
    """

    user: NDArray[np.float32]
    item: NDArray[np.float32]
    cost: dict[str, float]
    reported: dict[str, float]


def grid(library: Library, model: str, budget: Budget, **values: list[Any]) -> list[Trial]:
    """Return one trial for every combination of named values."""
    return [
        Trial(library, model, dict(zip(values, combination, strict=True)), budget)
        for combination in itertools.product(*values.values())
    ]


def _short(value: object) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, dict):
        return "/".join(_short(v) for v in value.values())
    return str(value)


class TrialStore:
    """Keeps each finished trial in a folder, at once and in one step.

    Args:
        folder: made if missing; one ``<key>.json`` and ``<key>.npz`` a trial.
        fingerprint: of the data set.
    """

    def __init__(self, folder: Path, fingerprint: str) -> None:
        self.folder, self.fingerprint = folder, fingerprint
        folder.mkdir(parents=True, exist_ok=True)

    def get(self, trial: Trial) -> dict[str, Any] | None:
        """Return the record of a finished trial, else None."""
        path = self._path(trial, "json")
        if not path.exists():
            return None
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return record

    def vectors(self, trial: Trial) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return the user and item vectors of a finished trial."""
        with np.load(self._path(trial, "npz")) as arrays:
            return arrays["user"], arrays["item"]

    def put(self, trial: Trial, outcome: Outcome, metrics: dict[str, Any]) -> dict[str, Any]:
        """Store a finished trial and return its record."""
        record = {
            "library": trial.library,
            "model": trial.model,
            "settings": trial.settings,
            "budget": dataclasses.asdict(trial.budget),
            "validation": metrics,
            "reported_by_the_library": outcome.reported,
            **outcome.cost,
        }
        temporary = self.folder / f".{os.getpid()}.npz"
        np.savez(temporary, user=outcome.user, item=outcome.item)
        temporary.replace(self._path(trial, "npz"))
        write_json(self._path(trial, "json"), record)  # last: its presence means finished
        return record

    def _path(self, trial: Trial, suffix: str) -> Path:
        return self.folder / f"{trial.key(self.fingerprint)}.{suffix}"


def write_json(path: Path, content: object) -> None:
    """Write JSON in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)
