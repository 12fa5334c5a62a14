"""MMSSL: learned relations of users and items per modality, held to reality by an adversary."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmrec_pl import losses
from llmrec_pl.data.dataset import InteractionDataset
from llmrec_pl.data.features import FeatureStore
from llmrec_pl.errors import ConfigError
from llmrec_pl.graph import BipartiteGraph
from llmrec_pl.models.adversary import Critic, adversarial_losses, perturbed_rows
from llmrec_pl.models.base import OptimizerCallable, Recommender, Representations, SchedulerCallable
from llmrec_pl.models.layers import ByFeature, FeatureTable, item_modalities
from llmrec_pl.models.relations import ModalityAttention, RelationGraph

if TYPE_CHECKING:
    from numpy.typing import NDArray


def critic_optimizer(parameters: Any) -> torch.optim.Optimizer:  # noqa: ANN401
    """Return Adam with the values of the released code."""
    return torch.optim.Adam(parameters, lr=3e-4, betas=(0.5, 0.9))


class View(NamedTuple):
    """One modality's side of users and items.

    Attributes:
        feature: projected features, ``[n_users, d]`` and ``[n_items, d]``.
        identity: identities after the modality's relations, of the same shapes; None where
            nothing uses them.
    """

    feature: Representations
    identity: Representations | None


class MMSSL(Recommender):
    """Enrich graph embeddings with relations that each modality suggests.

    Per modality, item features are projected and summed into users; the cosines of users and
    items are learned relations. Identities pass over the strongest of them, attend to each other
    across modalities, and join the ego embeddings before a light graph encoder; features join
    after it. A critic compares rows of relations with perturbed rows of interactions, and users
    are contrasted with their views.

    Source: Sec. 3 of Wei et al., "Multi-Modal Self-Supervised Learning for Recommendation",
    WWW 2023, and the released code.

    Deviations:
        relations: each user's `n_neighbours` strongest, found anew every epoch in tiles, weighted
            with gradient by their cosine. The released code collects them over batches and drops
            them: from the third batch, or always, its relation graphs are empty.
        adversary: see `llmrec_pl.models.adversary`; rows of at most `n_critic_users` users of the
            batch. The auxiliary signal is the cosine of final representations, detached.
        graph: symmetric normalisation everywhere, as the paper; the released code divides by the
            root of the row's degree alone.
        propagation: both sides at once and linear; the released code's items hear the new users,
            and its last layer is a softmax over d.
        features: an item's is its own projected feature; the released code's comes back from
            users, so that items without interactions have none. No L2 on features.
        contrast: users of the batch only, as the released code.
        missing features: an item without a feature has a zero row, relation 0 and no bias.

    Parameters: ``user_embedding.weight``, ``item_embedding.weight``,
    ``projection.<modality>.weight`` and ``.bias``, ``attention.query.weight``,
    ``attention.key.weight``, ``attention.output.weight``, ``critic.layers.*``. Persistent
    buffers: ``relations.<modality>.projection_weight`` and ``.projection_bias``.

    Args:
        embedding_dim: d.
        n_layers: layers of the graph encoder.
        n_heads: heads of the attention across modalities, a divisor of d.
        n_neighbours: items that a user is related to in each modality.
        view_weight: eta, weight of the fused, normalised views in the encoder's input.
        feature_weight: omega, weight of each modality's normalised features in the output.
        dropout: rate on projected features.
        contrastive_weight: weight of the InfoNCE between users and their views.
        contrastive_temperature: tau' of the InfoNCE.
        generator_weight: weight of the generator's loss; with 0 there is no adversary.
        penalty_weight: weight of the gradient penalty in the critic's loss.
        gumbel_temperature: tau of the perturbed rows.
        auxiliary_weight: zeta, weight of the auxiliary signal in the perturbed rows.
        critic_width: width of the critic.
        n_critic_users: users whose rows the critic sees in a step, at most.
        l2_weight: weight of the L2 term on the batch's ego embeddings.
        optimizer: see `Recommender`; it moves all but the critic.
        discriminator_optimizer: a callable from the critic's parameters to its optimizer.
        lr_scheduler: see `Recommender`; it steers `optimizer`.

    Raises:
        ConfigError: a value is out of range, or, in `build`, there is no item modality.
    """

    graph: BipartiteGraph
    tables: ByFeature
    projection: ByFeature
    relations: ByFeature
    edge_user: Tensor
    edge_item: Tensor

    def __init__(
        self,
        embedding_dim: int = 64,
        n_layers: int = 2,
        n_heads: int = 4,
        n_neighbours: int = 10,
        view_weight: float = 0.55,
        feature_weight: float = 0.55,
        dropout: float = 0.2,
        contrastive_weight: float = 0.03,
        contrastive_temperature: float = 0.5,
        generator_weight: float = 1e-4,
        penalty_weight: float = 0.3,
        gumbel_temperature: float = 0.5,
        auxiliary_weight: float = 0.1,
        critic_width: int = 64,
        n_critic_users: int = 256,
        l2_weight: float = 1e-4,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        discriminator_optimizer: OptimizerCallable = critic_optimizer,
        lr_scheduler: SchedulerCallable | None = None,
    ) -> None:
        super().__init__(embedding_dim, l2_weight, optimizer, lr_scheduler)
        self._check(self.init_arguments())
        self.n_layers, self.n_heads, self.n_neighbours = n_layers, n_heads, n_neighbours
        self.view_weight, self.feature_weight = view_weight, feature_weight
        self.dropout = nn.Dropout(dropout)
        self.contrastive_weight = contrastive_weight
        self.contrastive_temperature = contrastive_temperature
        self.generator_weight, self.penalty_weight = generator_weight, penalty_weight
        self.gumbel_temperature, self.auxiliary_weight = gumbel_temperature, auxiliary_weight
        self.critic_width, self.n_critic_users = critic_width, n_critic_users
        self.discriminator_optimizer = discriminator_optimizer
        self.automatic_optimization = generator_weight == 0

    @staticmethod
    def _check(values: Mapping[str, Any]) -> None:
        at_least = {"n_layers": 0, "n_heads": 1, "n_neighbours": 1, "n_critic_users": 1}
        at_least |= {name: 0 for name in values if name.endswith("_weight")} | {"critic_width": 2}
        for name, least in at_least.items():
            if values[name] < least:
                raise ConfigError(f"`{name}` must be at least {least}, got {values[name]!r}.")
        for name in ("contrastive_temperature", "gumbel_temperature"):
            if values[name] <= 0:
                raise ConfigError(f"`{name}` must be positive, got {values[name]!r}.")
        if not 0 <= values["dropout"] < 1:
            raise ConfigError(f"`dropout` must be in [0, 1), got {values['dropout']!r}.")
        if values["embedding_dim"] % values["n_heads"]:
            raise ConfigError(
                f"`n_heads` must divide `embedding_dim`, got {values['n_heads']} and "
                f"{values['embedding_dim']}."
            )

    # Building.

    @property
    def _has_views(self) -> bool:
        return self.view_weight + self.contrastive_weight > 0

    def build(self, dataset: InteractionDataset, features: FeatureStore) -> None:
        """Create embeddings, graph, projections, and what the weights above zero need."""
        self.make_embeddings(dataset)
        edges = dataset.graph_edges()
        self.graph = BipartiteGraph(edges, dataset.n_users, dataset.n_items, "symmetric")
        self.tables, self.projection = ByFeature(), ByFeature()
        self.relations = ByFeature()
        # What nothing reads is not built: unused parameters abort distributed training.
        if self._has_views or self.feature_weight + self.generator_weight > 0:
            for feature in item_modalities(features, type(self).__name__):
                projection = nn.Linear(feature.dim, self.embedding_dim)
                nn.init.xavier_uniform_(projection.weight)
                self.tables[feature.name] = FeatureTable(feature)
                self.projection[feature.name] = projection
                if self._has_views:
                    self.relations[feature.name] = RelationGraph(
                        projection, dataset.n_users, dataset.n_items, self.n_neighbours
                    )
        if self.view_weight > 0:
            self.attention = ModalityAttention(
                self.embedding_dim, self.n_heads, len(self.projection)
            )
        if self.generator_weight > 0:
            self.critic = Critic(dataset.n_items, self.critic_width)
            for name, ids in zip(("edge_user", "edge_item"), _by_user(edges), strict=True):
                self.register_buffer(name, torch.from_numpy(ids), persistent=False)
        self._find_neighbours()

    def configure_optimizers(self) -> Any:  # noqa: ANN401 (Lightning's union of types)
        """Return the generator's optimizer with its scheduler, and the critic's if there is one."""
        if self.generator_weight == 0:
            return super().configure_optimizers()
        others = [p for n, p in self.named_parameters() if not n.startswith("critic.")]
        optimizer = self.optimizer(others)
        schedulers = [] if self.lr_scheduler is None else [self.lr_scheduler(optimizer)]
        return [optimizer, self.discriminator_optimizer(self.critic.parameters())], schedulers

    def refresh(self) -> None:
        """Find each user's neighbours under the projections of now."""
        for name in self.relations:
            self._relation(name).remember(cast("nn.Linear", self.projection[name]))
        self._find_neighbours()

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        """Load weights, and find the neighbours that belong to them."""
        result = super().load_state_dict(*args, **kwargs)
        self._find_neighbours()
        return result

    def _find_neighbours(self) -> None:
        for name in self.relations:
            relation, table = self._relation(name), self._table(name)
            with torch.no_grad(), torch.autocast(table.values.device.type, enabled=False):
                item = table.expand(relation.project(table.values))
                relation.find(self.graph.to_user(item), item)

    def _relation(self, name: str) -> RelationGraph:
        return cast("RelationGraph", self.relations[name])

    def _table(self, name: str) -> FeatureTable:
        return cast("FeatureTable", self.tables[name])

    # Forward pass.

    def encode(self) -> Representations:
        """Return the final representations of all users and items."""
        return self._encode(self._views())

    def _views(self) -> dict[str, View]:
        views = {}
        for name in self.projection:
            table = self._table(name)
            projected = self.projection[name](table.values).to(self.user_embedding.weight.dtype)
            item = self.dropout(table.expand(projected))
            feature = Representations(self.graph.to_user(item), item)
            identity = None
            if name in self.relations:
                relation = self._relation(name)
                identity = relation.propagate(
                    self.user_embedding.weight,
                    self.item_embedding.weight,
                    relation.weights(*feature),
                )
            views[name] = View(feature, identity)
        return views

    def _encode(self, views: Mapping[str, View]) -> Representations:
        user, item = self.user_embedding.weight, self.item_embedding.weight
        if self.view_weight > 0:
            identities = [v.identity for v in views.values() if v.identity is not None]
            fused_user = self.attention([identity.user for identity in identities])
            fused_item = self.attention([identity.item for identity in identities])
            user = user + self.view_weight * F.normalize(fused_user)
            item = item + self.view_weight * F.normalize(fused_item)
        user_sum, item_sum = user, item
        for _ in range(self.n_layers):
            user, item = self.graph.propagate(user, item)
            user_sum, item_sum = user_sum + user, item_sum + item
        user, item = user_sum / (self.n_layers + 1), item_sum / (self.n_layers + 1)
        for view in views.values() if self.feature_weight > 0 else ():
            user = user + self.feature_weight * F.normalize(view.feature.user)
            item = item + self.feature_weight * F.normalize(view.feature.item)
        return Representations(user, item)

    # Losses.

    def losses(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the generator's terms, and the critic's, whose gradients do not mix."""
        views = self._views()
        h = self._encode(views)
        user = h.user[batch["user"]]
        pos_item, neg_item = h.item[batch["pos_item"]], h.item[batch["neg_item"]]
        terms = {"bpr": losses.bpr_loss(user, pos_item, neg_item)}
        distinct = torch.unique(batch["user"])
        if self.contrastive_weight > 0:
            contrast = [
                losses.two_view_contrast_loss(
                    view.identity.user[distinct], h.user[distinct], self.contrastive_temperature
                )
                for view in views.values()
                if view.identity is not None
            ]
            terms["contrastive"] = self.contrastive_weight * torch.stack(contrast).sum()
        if self.generator_weight > 0:
            terms |= self._adversarial(views, h, distinct)
        if self.l2_weight > 0:
            terms["l2"] = self.l2_weight * losses.l2_loss(*self.ego_rows(batch))
        return terms

    def _adversarial(
        self, views: Mapping[str, View], h: Representations, users: Tensor
    ) -> dict[str, Tensor]:
        # The gradient of a gradient does not survive half precision.
        with torch.autocast(users.device.type, enabled=False):
            if len(users) > self.n_critic_users:
                # From the CPU's generator, so that every device draws the same users.
                order = torch.randperm(len(users))[: self.n_critic_users]
                users = users[order.to(users.device)]
            real = perturbed_rows(self._interactions(users), self.gumbel_temperature)
            with torch.no_grad():
                real = real + self.auxiliary_weight * _cosines(h.user[users], h.item)
            found = [
                adversarial_losses(self.critic, real, _cosines(f.user[users], f.item))
                for f, _ in views.values()
            ]
            generator, critic, penalty = (torch.stack(x).mean() for x in zip(*found, strict=True))
        return {
            "generator": self.generator_weight * generator,
            "critic": critic,
            "penalty": self.penalty_weight * penalty,
        }

    def _interactions(self, users: Tensor) -> Tensor:
        """Return rows of the interaction matrix, 0 or 1, ``[n, n_items]``."""
        start = torch.searchsorted(self.edge_user, users)
        count = torch.searchsorted(self.edge_user, users, right=True) - start
        row = torch.repeat_interleave(count)
        place = torch.arange(len(row), device=users.device) - (count.cumsum(0) - count)[row]
        weight = self.item_embedding.weight
        rows = weight.new_zeros(len(users), len(weight))
        rows[row, self.edge_item[start[row] + place]] = 1
        return rows


def _by_user(edges: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.ascontiguousarray(edges[:, np.argsort(edges[0], kind="stable")])


def _cosines(user: Tensor, item: Tensor) -> Tensor:
    return F.normalize(user) @ F.normalize(item).T
