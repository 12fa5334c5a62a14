"""The search itself: asks for trials, gives them to worker processes, tells their results."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock
from optuna.trial import TrialState

from llmrec_pl.configs import merged, set_value
from llmrec_pl.errors import ConfigError
from llmrec_pl.tuning.space import current_values, overlay, read_space
from llmrec_pl.tuning.storage import (
    check_identity,
    counted,
    open_study,
    rescue_lost,
    worker_record,
)
from llmrec_pl.tuning.trial import TrialJob, run_trial
from llmrec_pl.workers import run_all

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import optuna


@dataclasses.dataclass(frozen=True)
class Search:
    """A search for one model's hyper-parameters.

    Attributes:
        configs: config files of `fit`, later wins.
        space: YAML file of the search space.
        folder: of the study; a search that was stopped goes on there.
        n_trials: trials in all.
        seconds: CPU seconds a trial.
        metric: validation metric that is maximised.
        more: further arguments of `fit`.
        n_workers: processes of this call.
        seed: of the sampler.
        warmup: first evaluation after which a trial may be pruned.
    """

    configs: Sequence[str]
    space: str
    folder: Path
    n_trials: int = 8
    seconds: float = 90.0
    metric: str = "recall@20"
    more: Sequence[str] = ()
    n_workers: int = 1
    seed: int = 2026
    warmup: int = 30

    @property
    def arguments(self) -> list[str]:
        """Arguments of `fit` that all trials share."""
        return [x for c in self.configs for x in ("--config", c)] + list(self.more)

    def identity(self, fingerprint: str) -> dict[str, Any]:
        """Return what must stay equal while a study grows.

        The config's own values of what is searched may change: they were a trial.
        """
        space, config = read_space(self.space), merged(self.configs)
        for key in space:
            set_value(config, key, "searched")
        return {
            "data set": fingerprint,
            "config": config,
            "arguments": list(self.more),
            "space": {k: repr(d) for k, d in space.items()},
            "CPU seconds a trial": self.seconds,
            "metric": self.metric,
            "seed": self.seed,
        }


def search(
    plan: Search, fingerprint: str, shown: Callable[[optuna.trial.FrozenTrial], None]
) -> optuna.Study:
    """Run the trials that are still to be run.

    Args:
        plan: the search.
        fingerprint: of the data set.
        shown: called with each trial that finishes here.

    Returns:
        The study, with a trial that has a value.

    Raises:
        ConfigError: the study in the folder is another search, no trial has a value yet, or every
            one failed.
    """
    study = open_study(plan.folder, warmup=plan.warmup)
    lock = FileLock(plan.folder / "ask.lock")
    with lock:
        check_identity(study, plan.identity(fingerprint))
        rescue_lost(study)
        _enqueue_current(study, plan)
    asking = _Asking(plan, lock)

    def done(job: TrialJob, result: dict[str, Any]) -> None:
        shown(tell(study, job, result))

    run_all(plan.n_workers, run_trial, asking.next_job, done)
    trials = counted(study)
    if not [t for t in trials if t.value is not None]:
        errors = [t.user_attrs["result"]["error"] for t in trials if "result" in t.user_attrs]
        if len(errors) < len(trials):
            raise ConfigError(
                f"the {plan.n_trials} trials of {str(plan.folder)!r} are given out and another "
                "process still runs some; wait for it, or give a larger `--trials`."
            )
        last = str(errors[-1]).rstrip(".")
        raise ConfigError(
            f"no trial in {str(plan.folder)!r} gave a value; the last one said: {last}. "
            "Mend the config or the search space and give `--restart`."
        )
    return study


def _enqueue_current(study: optuna.Study, plan: Search) -> None:
    """Let the first trial be the values as they are: tuning must not choose worse ones."""
    if study.get_trials(deepcopy=False):
        return
    values = current_values(merged(plan.configs), read_space(plan.space))
    if values is not None:
        study.enqueue_trial(values)


class _Asking:
    """Asks for the next trial, one process at a time."""

    def __init__(self, plan: Search, lock: FileLock) -> None:
        self.plan, self.lock = plan, lock
        self.tree, self.space = merged(plan.configs), read_space(plan.space)

    def next_job(self) -> TrialJob | None:
        plan = self.plan
        with self.lock:
            # A sampler's stream depends on the trial alone, so a stopped search goes on alike.
            number = len(open_study(plan.folder).get_trials(deepcopy=False))
            study = open_study(plan.folder, seed=plan.seed * 10_007 + number)
            if len(counted(study)) >= plan.n_trials:
                return None
            trial = study.ask(self.space)
            trial.set_user_attr("worker", worker_record())
        values = overlay(self.tree, trial.params)
        return TrialJob(
            plan.folder,
            trial._trial_id,
            plan.arguments,
            values,
            plan.metric,
            plan.seconds,
            plan.warmup,
        )


def tell(study: optuna.Study, job: TrialJob, result: dict[str, Any]) -> optuna.trial.FrozenTrial:
    """Close a trial in the study and return it."""
    import optuna

    number = study._storage.get_trial_number_from_id(job.trial_id)
    optuna.trial.Trial(study, job.trial_id).set_user_attr("result", result)
    value = result["value"]
    if value is None or not math.isfinite(value):
        return study.tell(number, state=TrialState.FAIL)
    if result["stopped"] == "pruned":
        return study.tell(number, state=TrialState.PRUNED)
    return study.tell(number, value)


def best_trial(study: optuna.Study) -> optuna.trial.FrozenTrial:
    """Return the finished trial with the best value; a pruned one counts with what it reached."""
    finished = [t for t in counted(study) if t.value is not None]
    return max(finished, key=lambda t: (t.value, -t.number))
