"""Trains one RecBole model; runs inside RecBole's own environment and knows nothing of ours.

Reads a job as a line of JSON on stdin and writes ``<out>.npz`` (vectors in our numbering) and
``<out>.json`` (cost, and the metrics as RecBole computed them). Uses RecBole's own data set,
sampler, loss, trainer, early stopping and full-ranking evaluation. Its checkpoints can't be read
under torch's ``weights_only`` default, so the best epoch's weights are kept in memory. A job with
``paced`` runs an epoch for each further line instead, and writes nothing.
"""

from __future__ import annotations

import copy
import json
import logging
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

KS = [10, 20, 50]


def configuration(job: dict[str, Any]) -> dict[str, Any]:
    """Return RecBole's settings for a job.

    Args:
        job: ``data`` (folder with ``<name>.train.inter`` and so on), ``name``, ``model``,
            ``settings``, ``budget``, ``out``.
    """
    settings, budget = dict(job["settings"]), job["budget"]
    for ours, theirs in (("lr", "learning_rate"), ("batch_size", "train_batch_size")):
        if ours in settings:
            settings[theirs] = settings.pop(ours)
    return {
        "data_path": job["data"],
        "benchmark_filename": ["train", "valid", "test"],
        "USER_ID_FIELD": "user_id",
        "ITEM_ID_FIELD": "item_id",
        "load_col": {
            "inter": ["user_id", "item_id"],
            "user": ["user_id"],
            "item": ["item_id"],
        },
        "filter_inter_by_user_or_item": False,
        "epochs": budget["max_epochs"],
        "eval_step": budget["eval_every"],
        # RecBole stops when the count exceeds this, Lightning when it reaches its patience.
        "stopping_step": budget["patience"] - 1,
        "seed": budget["seed"],
        "reproducibility": True,
        "train_neg_sample_args": {
            "distribution": "uniform",
            "sample_num": 1,
            "dynamic": False,
            "alpha": 1.0,
            "candidate_num": 0,
        },
        "eval_args": {"mode": "full"},
        "eval_batch_size": 10_000_000,  # scores of about this many pairs at once
        "metrics": ["Recall", "NDCG"],
        "topk": KS,
        "valid_metric": "Recall@20",
        "metric_decimal_place": 8,
        "embedding_size": 64,
        "use_gpu": False,
        "show_progress": False,
        "state": "ERROR",
        "checkpoint_dir": str(Path(job["out"]).parent / "recbole-logs"),
        **settings,
    }


class _Clock:
    """Wraps a method and adds up its CPU seconds and calls."""

    def __init__(self, owner: Any, name: str) -> None:  # noqa: ANN401
        self.seconds, self.calls = 0.0, 0
        self._method = getattr(owner, name)
        setattr(owner, name, self)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        start = time.process_time()
        try:
            return self._method(*args, **kwargs)
        finally:
            self.seconds += time.process_time() - start
            self.calls += 1


class _Best:
    """Keeps the weights and metrics of the epoch with the best validation score."""

    def __init__(self, trainer: Any) -> None:  # noqa: ANN401
        self.trainer = trainer
        self.score, self.epoch = -np.inf, 0
        self.weights: dict[str, Any] = {}

    def __call__(self, epoch: int, score: float) -> None:
        if score > self.score:
            self.score, self.epoch = score, epoch + 1
            self.weights = copy.deepcopy(self.trainer.model.state_dict())
            self.metrics = dict(self.trainer.best_valid_result)


def final_vectors(model: Any) -> tuple[np.ndarray, np.ndarray]:  # noqa: ANN401
    """Return the user and item vectors whose inner product is the model's score.

    Those of EASE and ItemKNN are train rows and the similarity's columns, both over RecBole's
    own numbering of the items, which the product does not show.
    """
    model.eval()
    name = type(model).__name__
    if name == "EASE":
        return model.interaction_matrix.toarray(), np.asarray(model.item_similarity).T
    if name == "ItemKNN":
        return model.interaction_matrix.toarray(), model.w.toarray().T
    with torch.no_grad():
        if hasattr(model, "get_ego_embeddings"):
            user, item = model.forward()
        else:
            user, item = model.user_embedding.weight, model.item_embedding.weight
    return user.detach().numpy(), item.detach().numpy()


def in_our_order(rows: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Reorder RecBole's rows (row 0 is padding) by the dense ids that its tokens spell."""
    ours = np.empty_like(rows[1:])
    ours[tokens[1:].astype(np.int64)] = rows[1:]
    return ours


def run(job: dict[str, Any]) -> None:
    """Train one model and write its vectors and its record."""
    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation
    from recbole.utils import ModelType, get_model, get_trainer, init_seed

    config = Config(model=job["model"], dataset=job["name"], config_dict=configuration(job))
    init_seed(config["seed"], config["reproducibility"])
    dataset = create_dataset(config)
    train, valid, _ = data_preparation(config, dataset)
    init_seed(config["seed"], config["reproducibility"])
    start = time.process_time()
    model = get_model(config["model"])(config, train.dataset)
    construction = time.process_time() - start
    trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
    training, evaluation = _Clock(trainer, "_train_epoch"), _Clock(trainer, "_valid_epoch")
    best = _Best(trainer)
    if job.get("paced"):
        from memory import peak_gib  # beside this file, which runs as a script
        from pace import Pace

        pace = Pace(sys.stdin, sys.stdout, peak_gib)
        pace.wait()
        trainer.fit(
            train,
            valid,
            verbose=False,
            saved=False,
            callback_fn=lambda _, score: pace.done(float(score)),
        )
        return
    trainer.fit(train, valid, verbose=False, saved=False, callback_fn=best)
    model.load_state_dict(best.weights)
    user, item = final_vectors(model)
    # The constructor of a closed form solves it; its one epoch does nothing.
    solved = config["MODEL_TYPE"] == ModelType.TRADITIONAL
    out = Path(job["out"])
    np.savez(
        out.with_suffix(".npz"),
        user=in_our_order(user, dataset.field2id_token["user_id"]),
        item=in_our_order(item, dataset.field2id_token["item_id"]),
    )
    record = {
        "cost": {
            "epochs": training.calls,
            "best_epoch": best.epoch,
            "evaluations": evaluation.calls,
            "cpu_seconds_training": construction if solved else training.seconds,
            "cpu_seconds_evaluation": evaluation.seconds,
        },
        "reported": {k: float(best.metrics[k]) for k in ("recall@20", "ndcg@20")},
    }
    out.with_suffix(".json").write_text(json.dumps(record), encoding="utf-8")


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    sys.argv = sys.argv[:1]  # RecBole reads the command line by itself
    run(json.loads(sys.stdin.readline()))
