"""Loaders over the canonical data set: keyed triplets to train on, every user once to evaluate."""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import lightning as L
import numpy as np
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from llmrec_pl.data.augmentation import Augmentation, load_augmentation
from llmrec_pl.data.dataset import InteractionDataset
from llmrec_pl.data.features import Feature, FeatureStore
from llmrec_pl.data.llm_modalities import as_item_modalities
from llmrec_pl.data.provenance import check_same_data, data_record
from llmrec_pl.data.shares import batch_share
from llmrec_pl.data.triplets import Sampling, TripletSampler, batches_an_epoch
from llmrec_pl.errors import CheckpointMismatchError, ConfigError, DatasetError

if TYPE_CHECKING:
    from numpy.typing import NDArray

Batch = dict[str, torch.Tensor]
LLMPart = Literal["edges", "profiles", "attributes"]
_PROCESSES = "number of processes"
_REMEDY = {_PROCESSES: " with the same `--trainer.devices` times `--trainer.num_nodes`"}


class _TripletDataset(Dataset[Batch]):
    """Maps a key (epoch, step) to a whole batch; the workers of a loader share no state."""

    def __init__(self, sampler: TripletSampler, rank: int) -> None:
        self.sampler, self.rank = sampler, rank

    def __getitem__(self, key: tuple[int, int]) -> Batch:
        triplets = self.sampler.batch(*key, rank=self.rank)
        fields = dataclasses.fields(triplets)
        return {f.name: torch.from_numpy(getattr(triplets, f.name)) for f in fields}

    def __len__(self) -> int:
        return self.sampler.n_batches


class _KeySampler(DistributedSampler[Any]):
    """Yields (epoch, step) from where training stands; Lightning leaves the subclass alone.

    The position is read from the count of batches that were started over the whole run, the
    only counter that was right after every kind of checkpoint, with and without workers.
    """

    def __init__(self, dataset: _TripletDataset, trainer: L.Trainer) -> None:
        super().__init__(dataset, num_replicas=1, rank=0, shuffle=False)
        self.trainer, self.n_batches = trainer, len(dataset)

    def __iter__(self) -> Iterator[Any]:
        started = self.trainer.fit_loop.epoch_loop.batch_progress.total.ready
        # `trainer.num_training_batches` is not known yet when workers ask for their first keys.
        limit = self.trainer.limit_train_batches
        used = int(limit * self.n_batches) if isinstance(limit, float) else limit
        epoch, step = divmod(started, min(used or self.n_batches, self.n_batches))
        yield from ((epoch, s) for s in range(step, self.n_batches))

    def __len__(self) -> int:
        return self.n_batches


class _StatelessLoader(DataLoader[Batch]):
    """A loader whose position is derived from the trainer, so none is saved or restored."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        del state


class UserSampler(DistributedSampler[Any]):
    """Gives each rank its users without padding, so that none is counted twice."""

    def __init__(self, dataset: Dataset[Any], num_replicas: int, rank: int) -> None:
        super().__init__(dataset, num_replicas=num_replicas, rank=rank, shuffle=False)
        self.length = len(range(rank, len(dataset), num_replicas))  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Any]:
        return iter(range(self.rank, len(self.dataset), self.num_replicas))  # type: ignore[arg-type]

    def __len__(self) -> int:
        return self.length


class _UserDataset(Dataset[torch.Tensor]):
    def __init__(self, users: NDArray[np.int64]) -> None:
        self.users = torch.from_numpy(users)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.users[index]

    def __getitems__(self, indices: list[int]) -> torch.Tensor:
        """Return a whole batch, which torch's loaders ask for where they can."""
        return self.users[indices]

    def __len__(self) -> int:
        return len(self.users)


def _restore_signals(worker: int) -> None:
    """Let a loader process end as usual; it inherits handlers that keep training alive."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _collate_users(users: Any) -> Batch:  # noqa: ANN401 (a tensor, typed as a list by torch)
    return {"user": users}


class RecDataModule(L.LightningDataModule):
    """Merges observed and LLM edges at a per-batch rate, and serves users for evaluation.

    Args:
        root: canonical folder that ``prepare`` wrote.
        augmentation: folder that stage 1 exported, or None to train without an LLM.
        llm_edge_rate: w3 of the paper: LLM triplets per observed triplet of a batch, in [0, 1].
            Without an augmentation that brings edges the rate in effect is 0.
        llm_parts: which parts of the augmentation are used: "edges", "profiles", "attributes".
        llm_edges_in_graph: also let the LLM's positives pass messages in the graph.
        llm_features_as_modalities: give the LLM's profiles and attributes to models as item
            modalities instead; see `as_item_modalities`.
        invalid: what to do with invalid LLM edges: "error", or "drop" and report.
        exclude_features: names of features to leave out.
        sampling: "edge" visits each interaction once an epoch, "user" draws distinct users.
        batch_size: observed triplets a step and rank.
        n_negatives: sampled negatives a triplet, for losses that contrast several.
        eval_batch_size: users scored at once.
        num_workers: loader processes; batches are the same for any number.
        seed: key of all sampling; the command line links it to ``seed_everything``.
        verify: check file hashes at the start.

    Raises:
        ConfigError: a value is out of range.
        DatasetError, AugmentationError: in `setup`, where the data are damaged or do not fit.
    """

    def __init__(
        self,
        root: str,
        augmentation: str | None = None,
        llm_edge_rate: float = 0.1,
        llm_parts: list[LLMPart] = ["edges", "profiles", "attributes"],  # noqa: B006
        llm_edges_in_graph: bool = False,
        llm_features_as_modalities: bool = False,
        invalid: Literal["error", "drop"] = "error",
        exclude_features: list[str] = [],  # noqa: B006 (never mutated)
        sampling: Sampling = "edge",
        batch_size: int = 1024,
        n_negatives: int = 1,
        eval_batch_size: int = 1024,
        num_workers: int = 0,
        seed: int = 2026,
        verify: bool = True,
    ) -> None:
        super().__init__()
        # More processes than users is no mistake: some have nothing to evaluate.
        self.allow_zero_length_dataloader_with_multiple_devices = True
        if not 0 <= llm_edge_rate <= 1:
            raise ConfigError(
                f"`data.llm_edge_rate` (w3) must be in [0, 1], got {llm_edge_rate!r}."
            )
        if batch_size < 1 or eval_batch_size < 1:
            raise ConfigError(
                f"`data.batch_size` and `data.eval_batch_size` must be positive, got {batch_size} "
                f"and {eval_batch_size}."
            )
        if n_negatives < 1:
            raise ConfigError(f"`data.n_negatives` must be positive, got {n_negatives}.")
        self.save_hyperparameters(logger=False)
        # Plain data for the checkpoint's own record, not Lightning's entry, which overrules YAML.
        self.arguments = dict(self.hparams)
        self.root, self.verify, self.seed = Path(root), verify, seed
        self.augmentation_path, self.invalid = augmentation, invalid
        self.llm_edge_rate, self.llm_parts = llm_edge_rate, list(llm_parts)
        self.llm_edges_in_graph, self.exclude_features = llm_edges_in_graph, exclude_features
        self.llm_features_as_modalities = llm_features_as_modalities
        self.sampling, self.batch_size, self.n_negatives = sampling, batch_size, n_negatives
        self.eval_batch_size, self.num_workers = eval_batch_size, num_workers
        self._dataset: InteractionDataset | None = None
        self._features: FeatureStore | None = None
        self.augmentation: Augmentation | None = None
        self.features_in_use: list[str] | None = None
        """Names to keep, such as those a checkpoint was trained with; None keeps all."""

    @property
    def dataset(self) -> InteractionDataset:
        """The data set; `setup` reads it."""
        if self._dataset is None:
            self.setup("fit")
        assert self._dataset is not None
        return self._dataset

    @property
    def features(self) -> FeatureStore:
        """The features of the data set and of the augmentation, less the excluded ones."""
        if self._features is None:
            self.setup("fit")
        assert self._features is not None
        return self._features

    @property
    def llm_edges(self) -> NDArray[np.int64] | None:
        """(user, positive, negative) of the augmentation ``[3, n]`` where they are used."""
        used = self.augmentation is not None and "edges" in self.llm_parts
        if not used or self.augmentation.edges.shape[1] == 0:  # type: ignore[union-attr]
            return None
        return self.augmentation.edges  # type: ignore[union-attr]

    @property
    def effective_llm_edge_rate(self) -> float:
        """w3, or 0 where there are no LLM edges."""
        return 0.0 if self.llm_edges is None else self.llm_edge_rate

    def setup(self, stage: str | None = None) -> None:
        """Read data set, features and augmentation; open the test split for ``test`` only."""
        open_test = stage == "test"
        if self._dataset is not None and open_test == ("test" in self._dataset.splits):
            return
        dataset = InteractionDataset.load(self.root, open_test=open_test, verify=self.verify)
        features = FeatureStore.load(self.root, verify=self.verify)
        wanted: list[Feature] = []
        if self.augmentation_path is not None:
            self.augmentation = load_augmentation(
                Path(self.augmentation_path), dataset, invalid=self.invalid, verify=self.verify
            )
            groups = {"profile": "profiles", "attribute": "attributes"}
            wanted = [
                f for f in self.augmentation.features if groups.get(f.group) in self.llm_parts
            ]
        if self.llm_features_as_modalities:
            wanted = as_item_modalities(wanted, dataset.train)
        features = features.merged(wanted)
        if self.exclude_features:
            features = features.without(self.exclude_features)
        if self.features_in_use is not None:
            features = features.only(self.features_in_use)
        if self.llm_edges_in_graph and self.llm_edges is not None:
            dataset = dataclasses.replace(dataset, extra_edges=self.llm_edges[:2])
        self._dataset, self._features = dataset, features

    def make_sampler(self, world_size: int = 1) -> TripletSampler:
        """Return the triplet sampler for a number of ranks."""
        return TripletSampler(
            self.dataset.train,
            self.batch_size,
            self.seed,
            self.sampling,
            self.llm_edges,
            self.effective_llm_edge_rate,
            world_size,
            self.n_negatives,
        )

    def train_dataloader(self) -> DataLoader[Batch]:
        """Return the loader of keyed triplet batches."""
        if self.trainer is None:
            raise ConfigError("`train_dataloader` needs a trainer; use `make_sampler` without one.")
        share = batch_share(self.trainer)
        dataset = _TripletDataset(self.make_sampler(share.size), share.rank)
        return _StatelessLoader(
            dataset,
            batch_size=None,
            sampler=_KeySampler(dataset, self.trainer),
            num_workers=self.num_workers,
            worker_init_fn=_restore_signals,
        )

    def val_dataloader(self) -> DataLoader[Any]:
        """Return the users with validation items, each once over all ranks."""
        return self._user_loader(np.flatnonzero(np.diff(self.dataset.val.indptr)), "val")

    def test_dataloader(self) -> DataLoader[Any]:
        """Return the users with test items, each once over all ranks."""
        return self._user_loader(np.flatnonzero(np.diff(self.dataset.test.indptr)), "test")

    def predict_dataloader(self) -> DataLoader[Any]:
        """Return all users, each once over all ranks."""
        return self._user_loader(np.arange(self.dataset.n_users), "predict")

    def _user_loader(self, users: NDArray[np.int64], split: str) -> DataLoader[Any]:
        if len(users) == 0:
            raise DatasetError(
                f"no user of {self.dataset.name!r} has interactions in split {split!r}, so there "
                "is nothing to evaluate; run `prepare` with a split that holds some out."
            )
        dataset = _UserDataset(users.astype(np.int64))
        return DataLoader(
            dataset,
            batch_size=self.eval_batch_size,
            sampler=UserSampler(dataset, *batch_share(self.trainer)),
            collate_fn=_collate_users,
        )

    def augmentation_record(self) -> dict[str, Any]:
        """Return what of an LLM's is used, as plain values; w3 is 0 without LLM edges."""
        used = self.augmentation
        return {
            "path": str(used.path) if used else None,
            "content_id": used.content_id if used else None,
            "provider": used.manifest.get("provider") if used else None,
            "model": used.manifest.get("model") if used else None,
            "llm_parts": list(self.llm_parts) if used else [],
            "llm_edge_rate": self.effective_llm_edge_rate,
            "dropped_edges": dict(used.dropped) if used else {},
        }

    def summary(self, world_size: int = 1) -> dict[str, Any]:
        """Return what a person should know of the data in use, as plain values."""
        dataset = self.dataset
        llm = "none (w3 = 0)"
        if self.augmentation is not None:
            by = self.augmentation.manifest["provider"]
            llm = f"{self.augmentation.path} by {by} (w3 = {self.effective_llm_edge_rate})"
            if self.augmentation.dropped:
                counts = ", ".join(f"{n:,} {why}" for why, n in self.augmentation.dropped.items())
                llm += f"; invalid edges dropped: {counts}"
        batches = f"{self.sampling} sampling, {self.batch_size} triplets"
        batches += f" of {self.n_negatives} negatives" if self.n_negatives > 1 else ""
        features = ", ".join(f"{f.name} {f.dim}-d" for f in self.features.values())
        padding = self.make_sampler(world_size).n_padding
        batches += f"; {padding} repeated to fill the last batch" if padding else ""
        return {
            "data set": f"{dataset.name} ({dataset.fingerprint[:12]})",
            "users x items": f"{dataset.n_users:,} x {dataset.n_items:,}",
            "train / val": f"{dataset.train.nnz:,} / {dataset.val.nnz:,}",
            "features": features or "none; `python -m llmrec_pl features` makes some",
            "augmentation": llm,
            "batches": batches,
        }

    # What a checkpoint says of the data.

    def checkpoint_record(self, trainer: L.Trainer) -> dict[str, Any]:
        """Return the plain values that `check_record` compares."""
        return {
            **data_record(self.dataset, self.features),
            "augmentation": self.augmentation.content_id if self.augmentation else None,
            "data_arguments": self.arguments,
            "plan": self._plan(trainer),
        }

    def _plan(self, trainer: L.Trainer) -> dict[str, Any]:
        return {
            "`data.batch_size`": self.batch_size,
            "`data.sampling`": self.sampling,
            "`data.n_negatives`": self.n_negatives,
            "`data.llm_edge_rate` in effect": self.effective_llm_edge_rate,
            "`data.llm_parts`": sorted(self.llm_parts),
            "`data.llm_features_as_modalities`": self.llm_features_as_modalities,
            "`seed_everything`": self.seed,
            _PROCESSES: batch_share(trainer).size,
            "`trainer.limit_train_batches`": trainer.limit_train_batches,
            "`trainer.accumulate_grad_batches`": trainer.accumulate_grad_batches,
            "batches an epoch": batches_an_epoch(
                self.dataset.train.nnz, self.batch_size, batch_share(trainer).size
            ),
        }

    def check_record(self, record: Mapping[str, Any], trainer: L.Trainer) -> None:
        """Refuse a checkpoint that was made with other data, or other batches if resuming.

        Raises:
            CheckpointMismatchError: naming what the checkpoint has and what is given.
        """
        trained = record["data_arguments"].get("llm_features_as_modalities", False)
        if trained != self.llm_features_as_modalities:
            raise CheckpointMismatchError(
                f"the checkpoint was trained with `data.llm_features_as_modalities` = {trained}, "
                f"now it is {self.llm_features_as_modalities}; use the config.yaml of its run."
            )
        check_same_data(record, self.dataset, self.features)
        found = self.checkpoint_record(trainer)
        if record["augmentation"] != found["augmentation"]:
            raise CheckpointMismatchError(
                f"the checkpoint was trained with augmentation {record['augmentation']}, now it is "
                f"{found['augmentation']}; give `--data.augmentation` the one it was trained with, "
                "or train anew."
            )
        if trainer.state.fn != TrainerFn.FITTING:
            return
        for key, value in record["plan"].items():
            if found["plan"][key] != value:
                raise CheckpointMismatchError(
                    f"cannot resume: the checkpoint was made with {key} = {value}, now it is "
                    f"{found['plan'][key]}, so the remaining batches would be others. Use the "
                    f"run's own config.yaml{_REMEDY.get(key, '')}, or train anew."
                )
