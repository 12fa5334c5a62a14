"""The study of one model: a journal that several processes write, and who works on it."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from llmrec_pl.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

NAME = "llmrec_pl"
JOURNAL = "journal.log"
TRIES = 3
"""How often values are tried whose process dies."""
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


def open_study(folder: Path, *, seed: int = 0, warmup: int = 30) -> optuna.Study:
    """Open a study, or make it.

    Args:
        folder: where its journal lies.
        seed: of the sampler; each trial is drawn from its own stream of it.
        warmup: first evaluation after which the median rule may prune a trial.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    folder.mkdir(parents=True, exist_ok=True)
    storage = JournalStorage(JournalFileBackend(str(folder / JOURNAL)))
    pruner = optuna.pruners.MedianPruner(n_startup_trials=3, n_warmup_steps=warmup)
    return optuna.create_study(
        storage=storage,
        study_name=NAME,
        load_if_exists=True,
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=4, multivariate=True),
        pruner=pruner,
    )


def check_identity(study: optuna.Study, identity: Mapping[str, Any]) -> None:
    """Record what a study searches, or refuse to go on with another search in it.

    Args:
        study: the study.
        identity: plain values.

    Raises:
        ConfigError: naming the first difference.
    """
    found = study.user_attrs.get("identity")
    if found is None:
        study.set_user_attr("identity", dict(identity))
        return
    for key, value in identity.items():
        if found.get(key) != value:
            raise ConfigError(
                f"the study was begun with {key} {found.get(key)!r}, now it is {value!r}; name "
                "another `--study` folder, or give `--restart` to begin anew."
            )


def worker_record() -> dict[str, Any]:
    """Return who runs a trial, to find trials whose process is gone."""
    return {"host": socket.gethostname(), "pid": os.getpid()}


def rescue_lost(study: optuna.Study) -> int:
    """Close trials whose process died, and queue their values again, `TRIES` times at most.

    Trials of other machines are left alone: whether they still run cannot be seen from here.

    Returns:
        Their number.
    """
    lost = [t for t in study.get_trials(deepcopy=False) if _is_lost(t)]
    for trial in lost:
        tries = trial.user_attrs.get("tries", 1)
        if tries < TRIES:
            study.enqueue_trial(trial.params, user_attrs={"tries": tries + 1})
        else:
            error = f"its process died {TRIES} times, as it does where memory runs out"
            result = {"value": None, "stopped": "died", "error": error}
            unseen = {"epochs": 0, "best_epoch": 0, "curve": [], "cpu_seconds": 0.0}
            ended = optuna.trial.Trial(study, trial._trial_id)
            ended.set_user_attr("result", {**result, **unseen})
        study.tell(trial.number, state=TrialState.FAIL)
    return len(lost)


def _is_lost(trial: optuna.trial.FrozenTrial) -> bool:
    worker = trial.user_attrs.get("worker")
    if trial.state != TrialState.RUNNING:
        return False
    if worker is None:
        return True
    if worker["host"] != socket.gethostname():
        return False
    if worker["pid"] == os.getpid():
        return False
    try:
        os.kill(worker["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def counted(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """Return the trials that use up the budget: finished with a result, or running."""
    return [
        t
        for t in study.get_trials(deepcopy=False)
        if t.state == TrialState.RUNNING or (t.state in FINISHED and "result" in t.user_attrs)
    ]
