"""The all-ranking evaluator: every item is ranked for every user with held-out items.

Never touches parameters or the loss, and knows no model: it needs user rows and an item matrix.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import lightning as L
import numpy as np
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torchmetrics import Metric

from llmrec_pl.errors import ConfigError
from llmrec_pl.evaluation.candidates import (
    CANDIDATES,
    Candidates,
    candidate_items,
    check_candidates,
    train_popularity,
)
from llmrec_pl.evaluation.groups import ITEM_GROUPS, item_groups
from llmrec_pl.evaluation.metrics import (
    PROFILES,
    ExposureMetrics,
    ProfileName,
    RankingMetrics,
    per_user_metrics,
)
from llmrec_pl.evaluation.ranking import sparse_rows, top_k
from llmrec_pl.evaluation.record import log_test_opening, write_record

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from llmrec_pl.data.dataset import InteractionDataset

Stage = Literal["val", "test"]


class _PerUser(Metric):
    """Keeps (user, value...) rows of every process, to be written once."""

    full_state_update = False
    is_differentiable = False
    rows: list[Tensor]

    def __init__(self, n_columns: int) -> None:
        super().__init__()
        self.add_state("rows", [], "cat")
        self.n_columns = n_columns

    def update(self, rows: Tensor) -> None:
        self.rows.append(rows)

    def pad(self) -> None:
        """Add no row: all processes need tensors of one rank and dtype to be gathered."""
        self.update(torch.zeros(0, self.n_columns, dtype=torch.float64, device=self.device))

    def compute(self) -> Tensor:
        rows = self.rows
        stacked: Tensor = torch.cat(rows) if isinstance(rows, list) else rows
        return stacked[stacked[:, 0].argsort()]


class AllRankingEvaluator(L.Callback):
    """Ranks the whole catalogue for every user with held-out items, and sums metrics.

    When validating, train items are removed from the ranking; when testing, train and
    validation items (unless the profile says otherwise). Scores are float32, ties go to the
    lower item id, and neither the tiles nor the number of processes change a result.

    While fitting, the metrics are logged as ``val/recall@20``. ``validate`` and ``test`` also
    give coverage, popularity, Gini, and the metrics of item and user groups, and write
    ``metrics/<stage>.json`` and ``metrics/<stage>_per_user.parquet`` beside the checkpoint, with
    ``_cold`` or ``_warm`` behind the stage where only these items are candidates.

    Args:
        ks: list lengths K.
        profile: conventions: "standard", "llmrec" (the released code) or "recbole".
        item_tile: items scored at once; with `data.eval_batch_size` it bounds the memory.
        cold_user_max: users with at most this many train interactions form the group
            ``cold_users``.
        candidates: "all" ranks the whole catalogue; "cold" ranks the items without a train
            interaction among themselves, "warm" the others. Held-out items that are no
            candidates do not count.

    Raises:
        ConfigError: `ks` is empty, not positive or larger than the number of candidates;
            `profile` or `candidates` is unknown; `item_tile` is not positive; there are no
            candidates, or none is held out.
    """

    def __init__(
        self,
        ks: list[int] = [10, 20, 50],  # noqa: B006 (never mutated)
        profile: ProfileName = "standard",
        item_tile: int = 32_768,
        cold_user_max: int = 5,
        candidates: Candidates = "all",
    ) -> None:
        if not ks or min(ks) < 1:
            raise ConfigError(f"`evaluation.ks` needs positive list lengths, got {ks!r}.")
        if profile not in PROFILES:
            raise ConfigError(
                f"`evaluation.profile` must be one of {list(PROFILES)}, got {profile!r}."
            )
        if item_tile < 1:
            raise ConfigError(f"`evaluation.item_tile` must be positive, got {item_tile}.")
        if candidates not in CANDIDATES:
            raise ConfigError(
                f"`evaluation.candidates` must be one of {list(CANDIDATES)}, got {candidates!r}."
            )
        self.ks, self.profile_name, self.profile = sorted(set(ks)), profile, PROFILES[profile]
        self.item_tile, self.cold_user_max = item_tile, cold_user_max
        self.candidates = candidates
        self.results: dict[str, dict[str, Any]] = {}
        self.history: list[dict[str, float]] = []
        self.test_openings = 0
        self._fitting = False

    # Set-up.

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Check K against the catalogue before anything is trained."""
        self._fitting = stage == "fit"
        self.check_catalogue(datamodule_dataset(trainer), stage)

    def check_catalogue(self, dataset: InteractionDataset, stage: str) -> None:
        """Refuse lists longer than the candidates, and candidates of which none is held out.

        Args:
            dataset: the data set.
            stage: Lightning's name of it, such as "fit".

        Raises:
            ConfigError: naming the setting.
        """
        check_candidates(dataset, self.candidates, max(self.ks), stage)

    def _start(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: Stage) -> None:
        dataset = datamodule_dataset(trainer)
        self.dataset, self.stage = dataset, stage
        self.relevant = dataset.val if stage == "val" else dataset.test
        self.seen = dataset.train
        if stage == "test" and self.profile.mask_val_at_test:
            self.seen = dataset.known_items()
        self.detailed = trainer.state.fn != TrainerFn.FITTING
        degree = np.diff(dataset.train.indptr)
        popularity = train_popularity(dataset)
        self.item_group = item_groups(popularity)
        ranked, self.ranked = candidate_items(popularity, self.candidates), None
        if ranked is not None:
            # From here on the candidates are the catalogue, in the order of their ids.
            self.relevant, self.seen = self.relevant[:, ranked], self.seen[:, ranked]
            popularity, self.item_group = popularity[ranked], self.item_group[ranked]
            self.ranked = torch.from_numpy(ranked).to(pl_module.device)
        # MPS has no float64; the sums are small enough for the CPU.
        on_mps = pl_module.device.type == "mps"
        self.device = torch.device("cpu") if on_mps else pl_module.device
        self.item_group_tensor = torch.from_numpy(self.item_group).to(self.device)
        self.cold_user = degree <= self.cold_user_max
        metrics: dict[str, Any] = {"all": RankingMetrics(self.ks, self.profile)}
        if self.detailed:
            for name in self._group_names():
                metrics[name] = RankingMetrics(self.ks, self.profile)
            metrics["exposure"] = ExposureMetrics(self.ks, torch.from_numpy(popularity))
            metrics["per_user"] = _PerUser(2 + len(metrics["all"].names))
        self.metrics = {name: metric.to(self.device) for name, metric in metrics.items()}
        if self.detailed:
            self.metrics["per_user"].pad()

    @staticmethod
    def _group_names() -> list[str]:
        return [f"{name}_items" for name in ITEM_GROUPS] + ["cold_users", "warm_users"]

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Reset the sums."""
        self._start(trainer, pl_module, "val")

    def on_test_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Reset the sums, and log that the test split is opened."""
        folder = run_directory(trainer) / "metrics"
        if trainer.is_global_zero:
            note = {
                "profile": self.profile_name,
                "candidates": self.candidates,
                "checkpoint": str(trainer.ckpt_path or ""),
            }
            self.test_openings = log_test_opening(folder, note)
        self._start(trainer, pl_module, "test")

    # Ranking.

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,  # noqa: ANN401
        batch: Any,  # noqa: ANN401
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Rank a batch of users and add their metrics."""
        self._rank(outputs.user, outputs.item, batch["user"].cpu().numpy())

    on_test_batch_end = on_validation_batch_end

    def _rank(self, user: Tensor, item: Tensor, users: NDArray[np.int64]) -> None:
        seen = sparse_rows(self.seen, users)
        item = item if self.ranked is None else item[self.ranked]
        ids = top_k(user, item, max(self.ks), seen, self.item_tile)[0].to(self.device)
        row, column = sparse_rows(self.relevant, users)
        hits, relevant = self._hits(ids, row, column), self._per_row(row, len(users))
        counted = relevant > 0
        counted_hits, counted_relevant = hits[counted], relevant[counted]
        values = per_user_metrics(counted_hits, counted_relevant, self.ks, self.profile)
        self.metrics["all"].update(counted_hits, counted_relevant, values)
        if not self.detailed:
            return
        self.metrics["exposure"].update(ids)
        self._update_item_groups(ids, hits, row, column)
        cold = torch.from_numpy(self.cold_user[users]).to(self.device)[counted]
        for name, inside in (("cold_users", cold), ("warm_users", ~cold)):
            of_group = {key: value[inside] for key, value in values.items()}
            self.metrics[name].update(counted_hits[inside], counted_relevant[inside], of_group)
        who = torch.from_numpy(users).to(self.device)[counted]
        named = [who, counted_relevant, *values.values()]
        self.metrics["per_user"].update(torch.stack([v.double() for v in named], dim=1))

    def _hits(self, ids: Tensor, row: NDArray[np.int64], column: NDArray[np.int64]) -> Tensor:
        """Look up which listed items are held out, ``[n, k]`` bool."""
        n, n_items = len(ids), int(self.relevant.shape[1])
        # Rows and their columns are sorted, hence the keys: membership is a binary search. The
        # last key is above all others, so each search ends on a key, also among none.
        keys = torch.from_numpy(np.append(row * n_items + column, n * n_items)).to(self.device)
        listed = torch.arange(n, device=self.device).unsqueeze(1) * n_items + ids.clamp(min=0)
        return (keys[torch.searchsorted(keys, listed)] == listed) & (ids >= 0)

    def _update_item_groups(
        self, ids: Tensor, hits: Tensor, row: NDArray[np.int64], column: NDArray[np.int64]
    ) -> None:
        group = self.item_group_tensor[ids.clamp(min=0)]
        for code, name in enumerate(ITEM_GROUPS):
            inside = row[self.item_group[column] == code]
            self.metrics[f"{name}_items"].update(
                hits & (group == code), self._per_row(inside, len(hits))
            )

    def _per_row(self, row: NDArray[np.int64], n: int) -> Tensor:
        return torch.from_numpy(np.bincount(row, minlength=n)).to(self.device)

    # Results.

    def state_dict(self) -> dict[str, Any]:
        """Keep the metrics of each epoch, so that a resumed run has the whole curve."""
        return {"history": self.history}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the metrics of earlier epochs over, where training goes on from them."""
        if self._fitting:
            self.history = list(state_dict["history"])

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Compute on every process, log, and write the detailed record."""
        self._finish(trainer, pl_module)

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Compute on every process, log, and write the detailed record."""
        self._finish(trainer, pl_module)

    def _finish(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        result = self.metrics["all"].compute()
        means = {k: v for k, v in result.items() if "@" in k and not k.startswith("hits@")}
        # Already equal on all ranks; sync_dist would average averages.
        pl_module.log_dict({f"{self.stage}/{k}": v for k, v in means.items()}, batch_size=1)
        if trainer.sanity_checking:
            return
        if not self.detailed:
            self.history.append({"epoch": trainer.current_epoch, **result})
            return
        detail = {name: m.compute() for name, m in self.metrics.items() if name != "all"}
        per_user = detail.pop("per_user")
        record = {
            "stage": self.stage,
            "model": type(pl_module).__name__,
            "profile": self.profile_name,
            "ks": self.ks,
            "candidates": self.candidates,
            "metrics": result,
            "users_without_held_out_items": int((np.diff(self.relevant.indptr) == 0).sum()),
            "exposure": detail.pop("exposure"),
            "groups": detail,
            "data": {"name": self.dataset.name, "fingerprint": self.dataset.fingerprint},
            "features": list(trainer.datamodule.features),  # type: ignore[attr-defined]
            "augmentation": trainer.datamodule.augmentation_record(),  # type: ignore[attr-defined]
            "checkpoint": str(trainer.ckpt_path) if trainer.ckpt_path else None,
        }
        if self.stage == "test":
            record["test_openings"] = self.test_openings
        self.results[self.stage] = record
        # Asked on every process: the logger's folder is broadcast from the first.
        folder = run_directory(trainer) / "metrics"
        if trainer.is_global_zero:
            names = self.metrics["all"].names
            write_record(folder, record, names, per_user.cpu().numpy(), self.dataset.user_ids)
        trainer.strategy.barrier()


def datamodule_dataset(trainer: L.Trainer) -> InteractionDataset:
    """Return the data set of the trainer's data module.

    Raises:
        ConfigError: the trainer has no data module.
    """
    data = trainer.datamodule  # type: ignore[attr-defined]
    if data is None:
        raise ConfigError(
            "the trainer has no data module; pass `datamodule=RecDataModule(...)` to "
            "`fit`, `validate`, `test` or `predict`."
        )
    dataset: InteractionDataset = data.dataset
    return dataset


def run_directory(trainer: L.Trainer) -> Path:
    """Return the run's folder: that of the logger, else that of the checkpoint in use.

    Call it on every process: the logger's folder is broadcast.
    """
    if trainer.ckpt_path and not trainer.loggers:
        folder = Path(trainer.ckpt_path).resolve().parent
        return folder.parent if folder.name == "checkpoints" else folder
    return Path(trainer.log_dir or trainer.default_root_dir)
