"""The contract of all models: build, encode, encode_rows, losses, and optionally refresh.

Knows no model in particular, no K, no mask and no metric.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import operator
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from llmrec_pl import __version__, losses
from llmrec_pl.checkpoints import CHECKPOINT_KEY, read_checkpoint
from llmrec_pl.configs import as_list
from llmrec_pl.data.dataset import InteractionDataset
from llmrec_pl.data.features import FeatureStore
from llmrec_pl.data.provenance import check_same_data
from llmrec_pl.data.shares import batch_share
from llmrec_pl.errors import CheckpointMismatchError, ConfigError
from llmrec_pl.models.layers import EmbeddingTable
from llmrec_pl.models.ranking_steps import RankingSteps
from llmrec_pl.models.ranking_steps import Representations as Representations  # for authors
from llmrec_pl.optimizers import check_gradients, clip_sparse, process_backend
from llmrec_pl.sharding import clip_sharded, full, shard_tables
from llmrec_pl.tensors import take_rows

OptimizerCallable = Callable[[Iterable[Any]], Optimizer]
SchedulerCallable = Callable[[Optimizer], torch.optim.lr_scheduler.LRScheduler]
_DROPOUT_STREAM = 4  # streams 1 to 3 belong to the sampler


class Recommender(RankingSteps):
    """A two-tower recommender; a subclass implements `build` and `encode`.

    Models trained by gradients have the parameters ``user_embedding.weight`` and
    ``item_embedding.weight``, made by `make_embeddings`; see `closed_form` for the others.

    Args:
        embedding_dim: width d of the embeddings.
        l2_weight: weight of the L2 term on the batch's ego embeddings.
        optimizer: a callable from parameters to an optimizer; AdamW at its defaults if None.
        lr_scheduler: a callable from the optimizer to a scheduler stepped once an epoch.
    """

    user_embedding: nn.Embedding
    item_embedding: nn.Embedding
    expected_batch_size: int = 1024
    """Observed triplets a step: a hint to `build` for what is faster, never for a result."""
    sparse_gradients = False
    """Whether `make_embeddings` makes tables with sparse gradients, for a lazy optimizer."""

    def __init__(
        self,
        embedding_dim: int = 64,
        l2_weight: float = 1e-4,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        lr_scheduler: SchedulerCallable | None = None,
    ) -> None:
        super().__init__()
        if embedding_dim < 1:
            raise ConfigError(f"`embedding_dim` must be positive, got {embedding_dim}.")
        arguments = inspect.signature(type(self).__init__).parameters
        callables = [n for n in arguments if n.endswith(("optimizer", "lr_scheduler"))]
        self.save_hyperparameters(ignore=callables)
        self.embedding_dim, self.l2_weight = embedding_dim, l2_weight
        self.optimizer, self.lr_scheduler = optimizer, lr_scheduler
        self._built = False
        self._logged: dict[str, Tensor] = {}
        self._n_logged = 0

    # What a model author writes.

    def build(self, dataset: InteractionDataset, features: FeatureStore) -> None:
        """Create parameters and graph buffers; called once, before weights are restored.

        Args:
            dataset: sizes and train interactions.
            features: named matrices of users and items.
        """
        raise NotImplementedError

    def encode(self) -> Representations:
        """Return all users ``[n_users, d]`` and items ``[n_items, d]``: the full forward pass.

        Pure and deterministic in eval mode.
        """
        raise NotImplementedError

    def encode_rows(self, users: Tensor, items: Tensor) -> Representations:
        """Return the rows of `encode` for some users ``[n]`` and items ``[m]``.

        A model may override it to do less work; values and gradients stay those of `encode`.
        """
        representations = self.encode()
        user, item = representations
        return Representations(take_rows(user, users), take_rows(item, items))

    def losses(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the named loss terms of a batch, already weighted; their sum is minimised.

        Args:
            batch: ``user``, ``pos_item``, ``neg_item`` (int64 ``[B + L]``) and ``source``.
        """
        user, positive, negative = batch["user"], batch["pos_item"], batch["neg_item"]
        rows = self.encode_rows(user, torch.cat([positive, negative]))
        terms = {"bpr": losses.bpr_loss(rows.user, *rows.item.chunk(2))}
        if self.l2_weight > 0:
            terms["l2"] = self.l2_weight * losses.l2_loss(*self.ego_rows(batch))
        return terms

    def refresh(self) -> None:
        """Recompute what is kept for an epoch; called before its first step."""

    # What the base gives.

    def make_embeddings(self, dataset: InteractionDataset) -> None:
        """Create ``user_embedding`` and ``item_embedding`` with Xavier-uniform weights."""
        width, sparse = self.embedding_dim, self.sparse_gradients
        self.user_embedding = EmbeddingTable(dataset.n_users, width, sparse=sparse)
        self.item_embedding = EmbeddingTable(dataset.n_items, width, sparse=sparse)
        nn.init.xavier_uniform_(self.user_embedding.weight)
        nn.init.xavier_uniform_(self.item_embedding.weight)

    def ego_rows(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Return the embeddings of a batch before any propagation, three times ``[n, d]``."""
        return (
            self.user_embedding(batch["user"]),
            self.item_embedding(batch["pos_item"]),
            self.item_embedding(batch["neg_item"]),
        )

    def build_seeded(self, dataset: InteractionDataset, features: FeatureStore, seed: int) -> None:
        """Call `build` once, with initial weights that depend on `seed` alone.

        Whatever the trainer's device and precision: Lightning moves and converts the model later.
        """
        if self._built:
            return
        # Lightning calls `configure_model` with the GPU as default device, where new tensors
        # would meet graphs and features on the CPU, and be drawn by another generator.
        dtype = torch.get_default_dtype()
        torch.set_default_dtype(torch.float32)
        try:
            with torch.random.fork_rng(devices=[]), torch.device("cpu"):
                torch.manual_seed(seed)
                self.build(dataset, features)
        finally:
            torch.set_default_dtype(dtype)
        self._built = True

    def configure_model(self) -> None:
        """Build from the trainer's data module, after its `setup`, before weights load."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if data is None:
            raise ConfigError(
                "the trainer has no data module; pass `datamodule=RecDataModule(...)` to `fit`."
            )
        self.expected_batch_size = data.batch_size
        self.build_seeded(data.dataset, data.features, data.seed)
        # Before weights are restored: Lightning converts later, and would round those of a
        # double-precision checkpoint to float32 first.
        self.trainer.precision_plugin.convert_module(self)
        if self.device_mesh is not None:
            shard_tables(self, self.device_mesh["tensor_parallel"])
        # Every process has these from the data. Sent in each step, as DDP does with buffers, they
        # made a step of LLMRec four times as long.
        kept = self.state_dict().keys()
        constant = [name for name, _ in self.named_buffers() if name not in kept]
        ignore = DistributedDataParallel._set_params_and_buffers_to_ignore_for_model
        ignore(self, constant)  # type: ignore[no-untyped-call]

    def configure_optimizers(self) -> Any:  # noqa: ANN401 (Lightning's union of types)
        """Return the optimizer, and the scheduler where one is configured."""
        optimizer = self.optimizer(self.parameters())
        check_gradients(self, optimizer, process_backend())
        if self.lr_scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": self.lr_scheduler(optimizer)}

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:  # noqa: ANN401
        """Seed dropout and masks from (seed, epoch, step, rank); refresh at step 0."""
        epoch, step = self._position()
        seed = self.trainer.datamodule.seed  # type: ignore[attr-defined]
        rank = batch_share(self.trainer).rank
        key = np.random.SeedSequence([seed, _DROPOUT_STREAM, epoch, step, rank])
        _seed(int(key.generate_state(1, np.uint64)[0] >> 1), self.device)
        if step == 0:
            self.refresh()

    def _position(self) -> tuple[int, int]:
        """Return epoch and step of the batch in training."""
        # Neither `current_epoch` nor `batch_idx` is right after every kind of resume.
        started = self.trainer.fit_loop.epoch_loop.batch_progress.total.ready - 1
        return divmod(started, int(self.trainer.num_training_batches))

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        """Sum the loss terms and add each to what `on_train_epoch_end` logs.

        A model with several optimizers turns ``automatic_optimization`` off; each of them then
        takes a step here.
        """
        terms = self.losses(batch)
        total = functools.reduce(operator.add, (term.float() for term in terms.values()))
        self._add_to_means({**terms, "loss": total}, len(batch["user"]))
        if not self.automatic_optimization:
            self._step_each_optimizer(total)
        return total

    def _add_to_means(self, terms: Mapping[str, Tensor], n: int) -> None:
        # Lightning's own bookkeeping in each step takes as long as a small model's step does.
        self._n_logged += n
        for name, term in terms.items():
            value = term.detach().float() * n
            self._logged[name] = self._logged[name] + value if name in self._logged else value

    def on_train_epoch_end(self) -> None:
        """Log each term's mean over the epoch, or over what a resumed run saw of it."""
        several, n = self.trainer.world_size > 1, self._n_logged
        means = {f"train/{name}": total / n for name, total in self._logged.items()}
        self.log_dict(means, sync_dist=several, batch_size=max(n, 1))
        self._logged, self._n_logged = {}, 0

    def _step_each_optimizer(self, total: Tensor) -> None:
        """Go back through the sum of all terms once, then step every optimizer.

        Once, because distributed training waits in each backward pass for the gradients of all
        parameters: terms whose gradients must not mix detach what is not theirs.
        """
        optimizers = as_list(self.optimizers())
        for optimizer in optimizers:
            optimizer.zero_grad()
        # The step runs under autocast; backward passes must not.
        with torch.autocast(self.device.type, enabled=False):
            self.manual_backward(total)
        for optimizer in optimizers:
            optimizer.step()
        # At the last step, not at the epoch's end, which comes after its checkpoint is written.
        if self._position()[1] + 1 == int(self.trainer.num_training_batches):
            for scheduler in as_list(self.lr_schedulers()):
                scheduler.step()

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip as Lightning does, also where parameters are sharded or gradients sparse."""
        if self.sparse_gradients and gradient_clip_val:
            clip_sparse(self.parameters(), gradient_clip_val, gradient_clip_algorithm)
        elif self.device_mesh is not None and gradient_clip_val:
            clip_sharded(self.parameters(), gradient_clip_val, gradient_clip_algorithm)
        else:
            if gradient_clip_val and getattr(optimizer, "_step_supports_amp_scaling", False):
                self._check_fused_may_clip()
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def _check_fused_may_clip(self) -> None:
        # Lightning refuses too, in the terms of its own code.
        if "mixed" in str(self.trainer.precision):
            raise ConfigError(
                "`trainer.gradient_clip_val` in mixed precision needs an optimizer that is not "
                "fused; add `--model.init_args.optimizer.init_args.fused=false`."
            )

    # Checkpoints.

    def init_arguments(self) -> dict[str, Any]:
        """Return the plain constructor arguments, without optimizer and scheduler."""
        names = inspect.signature(type(self).__init__).parameters
        return {name: value for name, value in self.hparams.items() if name in names}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Record what is needed to rebuild the model and to refuse other data."""
        # Lightning's own entry would overrule YAML and command line silently on resume.
        checkpoint.pop("hyper_parameters", None)
        checkpoint.pop("datamodule_hyper_parameters", None)
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        checkpoint[CHECKPOINT_KEY] = {
            "version": __version__,
            "model_class": f"{type(self).__module__}.{type(self).__qualname__}",
            "init_arguments": self.init_arguments(),
            **data.checkpoint_record(self.trainer),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of other data, before any tensor is copied.

        Raises:
            CheckpointMismatchError: data set, features, model or batch plan differ.
        """
        record = checkpoint[CHECKPOINT_KEY]
        found = f"{type(self).__module__}.{type(self).__qualname__}"
        if record["model_class"] != found:
            raise CheckpointMismatchError(
                f"the checkpoint holds a {record['model_class']}, the config asks for {found}; "
                "use the config.yaml that lies with the checkpoint's run."
            )
        self._check_arguments(record["init_arguments"])
        self.trainer.datamodule.check_record(record, self.trainer)  # type: ignore[attr-defined]

    def _check_arguments(self, trained: Mapping[str, Any]) -> None:
        """Hold the model's arguments against those of the checkpoint."""
        own = self.init_arguments()
        other = {n: (v, own.get(n)) for n, v in trained.items() if own.get(n) != v}
        if not other:
            return
        text = ", ".join(f"{n} = {was!r} (now {now!r})" for n, (was, now) in other.items())
        if self.trainer.state.fn != TrainerFn.FITTING:
            raise CheckpointMismatchError(
                f"the checkpoint was trained with {text}; evaluate it with the config.yaml of its "
                "run."
            )
        rank_zero_warn(f"training goes on with other arguments than before: {text}")

    @classmethod
    def from_checkpoint(
        cls, path: str | Path, dataset: InteractionDataset, features: FeatureStore
    ) -> Self:
        """Rebuild a trained model without a trainer, in eval mode.

        Args:
            path: a checkpoint file.
            dataset: the data set it was trained on.
            features: the features it was trained with.

        Raises:
            CheckpointMismatchError: the file is no checkpoint of a `cls`, or of other data.
        """
        checkpoint = read_checkpoint(path)
        record = checkpoint[CHECKPOINT_KEY]
        features = features.only(record["features"])
        check_same_data(record, dataset, features)
        module, _, name = record["model_class"].rpartition(".")
        model_class = getattr(import_module(module), name, None)
        if not (inspect.isclass(model_class) and issubclass(model_class, cls)):
            raise CheckpointMismatchError(
                f"{str(path)!r} holds a {record['model_class']}, which is no {cls.__name__}."
            )
        model: Self = model_class(**record["init_arguments"])
        model.build_seeded(dataset, features, seed=0)
        model.load_state_dict(checkpoint["state_dict"])
        return model.eval()

    def load_named_weights(self, weights: Mapping[str, Any]) -> None:
        """Copy arrays into parameters and persistent buffers by name, to compare implementations.

        Args:
            weights: name to array; ``user_embedding`` stands for ``user_embedding.weight``.

        Raises:
            ConfigError: a name is unknown or a shape differs.
        """
        held = self.state_dict()
        for name, value in weights.items():
            key = name if name in held else f"{name}.weight"
            tensor = torch.as_tensor(np.asarray(value))
            if key not in held or held[key].shape != tensor.shape:
                shapes = {n: tuple(t.shape) for n, t in held.items()}
                raise ConfigError(
                    f"cannot load weight {name!r} of shape {tuple(tensor.shape)}; the model has "
                    f"{shapes}."
                )
            held[key].copy_(tensor)

    def fingerprint(self) -> str:
        """Return the sha256 of all parameters and persistent buffers; ask on every process."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(name.encode())
            digest.update(full(tensor.detach()).cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()


def _seed(seed: int, device: torch.device) -> None:
    """Seed the CPU's generator and the device's, as `torch.manual_seed` would.

    That function also leaves a note, with a stack trace, for each kind of device that is not in
    use, which costs a step of a small model a third of its time.
    """
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)
