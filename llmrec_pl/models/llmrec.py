"""LLMRec: graph augmentation by a large language model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple, cast, get_args

import torch
import torch.nn.functional as F
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from llmrec_pl import losses
from llmrec_pl.data.dataset import InteractionDataset
from llmrec_pl.data.features import Feature, FeatureStore, Group
from llmrec_pl.errors import ConfigError
from llmrec_pl.graph import BipartiteGraph, Norm
from llmrec_pl.losses import PruneKeep
from llmrec_pl.models.base import OptimizerCallable, Recommender, Representations, SchedulerCallable
from llmrec_pl.models.feature_paths import (
    Asked,
    FeaturePath,
    MaskSpace,
    Propagated,
)
from llmrec_pl.models.frozen import Storage
from llmrec_pl.models.layers import ByFeature, MaskedRows, MaskToken, draw_mask
from llmrec_pl.models.lean_paths import choose_path
from llmrec_pl.tensors import take_rows

Propagation = Literal["auto", "plain"]
Regulariser = Literal["l2", "inverted"]
MASKED_GROUPS: tuple[Group, ...] = ("profile", "attribute")
"""The LLM's features F_A; modalities are never masked."""
SHARED = "attribute"
"""Name of the projection that all attributes share."""


class Triplets(NamedTuple):
    """Where a batch's users and items stand among the rows of a step, each ``[n]``."""

    user: Tensor
    pos_item: Tensor
    neg_item: Tensor


class LLMRec(Recommender):
    """Add projected, propagated features to graph embeddings, and train on LLM edges too.

    ``h = e + sum_k w1_k * f_k / ||f_k||`` for users and items, where e is the mean over the
    layers of a light graph encoder and f_k a feature after projection and propagation. An
    item-side feature goes ``u = A_u f, i = A_i u``, a user-side one ``i = A_i f, u = A_u i``.
    The loss is the noise-pruned BPR on h over observed and LLM triplets, plus BPR in every
    attribute space (user side: the profile) and every modality, feature L2, restoration of
    masked features and L2.

    Source: Sec. 3.2.2 and 3.3, Eq. (6) to (9) of Wei et al., "LLMRec", WSDM 2024, and the
    released code. Symbols of the paper: w1 `feature_weight`, w2 `l2_weight`, w3
    `data.llm_edge_rate`, w4 `prune_rate`, gamma `restoration_gamma`, |C| `n_candidates`.

    Deviations:
        pruning: `prune_keep="hardest"` as Eq. (7) and the released code; "easiest" is the text.
        graph norm: `graph_norm="row"` with `final_softmax` as the released code; "symmetric"
            without softmax is LightGCN's.
        regulariser: `regulariser="l2"` is the paper's; "inverted" the released code's.
        masking: `mask_space="projected"` masks a copy after projection, in training only, and
            the masked copy feeds h; "raw" masks a copy of the stored features, as the released
            code would without its in-place writes; "none" leaves it out. The restoration
            target is detached, else the projection could satisfy it by collapsing.
        token: `mask_token="learned"`, option "mean" (the released code).
        attribute BPR: where no profile exists, its user side is the propagated attribute.
        unknown rows: a user or item without a feature contributes zeros, no projection bias.

    Parameters: ``user_embedding.weight``, ``item_embedding.weight``,
    ``projection.<feature>.weight`` and ``.bias`` (``projection.attribute`` for all attributes
    while `share_attribute_projection`), ``decoder.<same name>``, ``mask.<same name>.token``.

    Args:
        embedding_dim: d.
        n_layers: layers of the graph encoder.
        graph_norm: see `llmrec_pl.graph.normalise`.
        final_softmax: softmax over d in the last layer, on users, then on items.
        feature_weight: w1 for each group of features.
        share_attribute_projection: one projection for all attributes, as in the paper.
        dropout: rate on projected features.
        attribute_bpr_weight: weight of BPR in each attribute space.
        modality_bpr_weight: weight of BPR in each modality's space.
        feature_l2_weight: weight of the L2 of propagated modalities.
        prune_rate: w4, share of triplets dropped from every BPR term, in [0, 1).
        prune_keep: which triplets survive.
        mask_rate: share of nodes whose features are masked, in [0, 1).
        mask_space: where masking happens.
        mask_token: what replaces a masked row.
        restoration_weight: weight of the restoration loss.
        restoration_gamma: gamma of Eq. (9).
        l2_weight: w2.
        regulariser: which L2 term.
        propagation: "auto" projects as few rows a step as it can, with the same result; "plain"
            projects and propagates every row in every step. See `llmrec_pl.models.lean_paths`.
        feature_storage: type in which frozen features are kept; "float16" halves the memory and
            rounds them. Without effect where the plain way is taken.
        optimizer: see `Recommender`.
        lr_scheduler: see `Recommender`.

    Raises:
        ConfigError: a value is out of range, or attributes of unequal width share a projection.
    """

    graph: BipartiteGraph
    paths: ByFeature
    projection: ByFeature
    mask: ByFeature
    decoder: ByFeature

    def __init__(
        self,
        embedding_dim: int = 64,
        n_layers: int = 2,
        graph_norm: Norm = "row",
        final_softmax: bool = True,
        feature_weight: dict[str, float] = {  # noqa: B006 (never mutated)
            "modality": 0.02,
            "profile": 2.8,
            "attribute": 0.005,
        },
        share_attribute_projection: bool = True,
        dropout: float = 0.0,
        attribute_bpr_weight: float = 0.012,
        modality_bpr_weight: float = 1e-4,
        feature_l2_weight: float = 1e-5,
        prune_rate: float = 0.71,
        prune_keep: PruneKeep = "hardest",
        mask_rate: float = 0.1,
        mask_space: MaskSpace = "projected",
        mask_token: MaskToken = "learned",
        restoration_weight: float = 0.1,
        restoration_gamma: float = 2.0,
        l2_weight: float = 1e-5,
        regulariser: Regulariser = "l2",
        propagation: Propagation = "auto",
        feature_storage: Storage = "float32",
        optimizer: OptimizerCallable = torch.optim.AdamW,
        lr_scheduler: SchedulerCallable | None = None,
    ) -> None:
        super().__init__(embedding_dim, l2_weight, optimizer, lr_scheduler)
        self._check(self.init_arguments())
        self.n_layers, self.graph_norm, self.final_softmax = n_layers, graph_norm, final_softmax
        self.feature_weight = dict(feature_weight)
        self.share_attribute_projection, self.dropout_rate = share_attribute_projection, dropout
        self.attribute_bpr_weight = attribute_bpr_weight
        self.modality_bpr_weight = modality_bpr_weight
        self.feature_l2_weight, self.regulariser = feature_l2_weight, regulariser
        self.prune_rate, self.prune_keep = prune_rate, prune_keep
        self.mask_rate, self.mask_token = mask_rate, mask_token
        self.mask_space: MaskSpace = mask_space if mask_rate > 0 else "none"
        self.restoration_weight, self.restoration_gamma = restoration_weight, restoration_gamma
        self.propagation, self.feature_storage = propagation, feature_storage

    @staticmethod
    def _check(values: Mapping[str, object]) -> None:
        for name in ("prune_rate", "mask_rate", "dropout"):
            rate = values[name]
            if not 0 <= rate < 1:  # type: ignore[operator]
                raise ConfigError(f"`{name}` must be in [0, 1), got {rate!r}.")
        for name in ("restoration_gamma", "n_layers"):
            if values[name] < 1:  # type: ignore[operator]
                raise ConfigError(f"`{name}` must be at least 1, got {values[name]!r}.")
        groups = set(values["feature_weight"])  # type: ignore[call-overload]
        if groups != set(get_args(Group)):
            raise ConfigError(
                f"`feature_weight` needs the groups {list(get_args(Group))}, got {sorted(groups)}."
            )

    # Building.

    def build(self, dataset: InteractionDataset, features: FeatureStore) -> None:
        """Create embeddings, graph, and for each feature in use its table and projection."""
        self.make_embeddings(dataset)
        self.graph = BipartiteGraph(
            dataset.graph_edges(), dataset.n_users, dataset.n_items, self.graph_norm
        )
        has_attributes = bool(features.group("attribute"))
        used = [f for f in features.values() if self._is_used(f, has_attributes)]
        self.groups: dict[Group, list[str]] = {
            group: [f.name for f in used if f.group == group] for group in get_args(Group)
        }
        self.projection_of = {f.name: self._projection_name(f) for f in used}
        self.projection = ByFeature()
        self.mask = ByFeature()
        self.decoder = ByFeature()
        for feature in used:
            self._add_projection(feature)
        self.paths = ByFeature({f.name: self._path(f) for f in used})
        _say_which(self.paths)

    def _path(self, feature: Feature) -> FeaturePath:
        return choose_path(
            feature,
            self.graph,
            rows_a_step=3 * self.expected_batch_size,
            mask_rate=self.mask_rate if self.projection_of[feature.name] in self.mask else 0.0,
            dropout=self.dropout_rate,
            storage=self.feature_storage,
            normed=feature.group == "modality" and self.feature_l2_weight > 0,
            plain=self.propagation == "plain",
        )

    def _is_used(self, feature: Feature, has_attributes: bool) -> bool:
        # What nothing reads is not built: unused parameters abort distributed training.
        by_loss = {
            "modality": self.modality_bpr_weight + self.feature_l2_weight,
            "attribute": self.attribute_bpr_weight,
            "profile": self.attribute_bpr_weight if has_attributes else 0.0,
        }
        return self.feature_weight[feature.group] + by_loss[feature.group] > 0

    def _projection_name(self, feature: Feature) -> str:
        shared = self.share_attribute_projection and feature.group == "attribute"
        return SHARED if shared else feature.name

    def _add_projection(self, feature: Feature) -> None:
        name, width = self.projection_of[feature.name], self.embedding_dim
        if name in self.projection:
            if self.projection[name].in_features != feature.dim:
                raise ConfigError(
                    f"attribute {feature.name!r} has {feature.dim} dimensions, the shared "
                    f"projection {self.projection[name].in_features}; embed all attributes with "
                    "one encoder or set `share_attribute_projection: false`."
                )
            return
        projection = nn.Linear(feature.dim, width)
        nn.init.xavier_uniform_(projection.weight)
        self.projection[name] = projection
        if self.mask_space == "none" or feature.group not in MASKED_GROUPS:
            return
        masked_width = width if self.mask_space == "projected" else feature.dim
        self.mask[name] = MaskedRows(masked_width, self.mask_token)
        if self.restoration_weight > 0:
            self.decoder[name] = nn.Linear(width, masked_width)

    # Forward pass.

    def encode(self) -> Representations:
        """Return h of all users and items, without masks."""
        return self._incorporate(self._encode_ids(Asked()), self._encode_features(Asked()))

    def encode_rows(self, users: Tensor, items: Tensor) -> Representations:
        """Return h of some users and items, without masks."""
        asked = Asked(users, items)
        return self._incorporate(self._encode_ids(asked), self._encode_features(asked))

    def _encode_ids(self, asked: Asked) -> Representations:
        user, item = self.user_embedding.weight, self.item_embedding.weight
        users, items = [user], [item]
        for layer in range(self.n_layers):
            last = layer == self.n_layers - 1
            user = self.graph.to_user(item)
            user = user.softmax(dim=-1) if last and self.final_softmax else user
            if last and asked.item is not None:
                item = self.graph.to_item.rows(user, asked.item)
            else:
                item = self.graph.to_item(user)
            item = item.softmax(dim=-1) if last and self.final_softmax else item
            users.append(user)
            items.append(item)
        if asked.user is not None:
            users = [take_rows(x, asked.user) for x in users]
        if asked.item is not None:
            items = [*(take_rows(x, asked.item) for x in items[:-1]), items[-1]]
        return Representations(torch.stack(users).mean(dim=0), torch.stack(items).mean(dim=0))

    def _encode_features(self, asked: Asked) -> dict[str, Propagated]:
        """Project and propagate every feature."""
        encoded = {}
        for name, path in self.paths.items():
            key = self.projection_of[name]
            token = self.mask[key] if key in self.mask else None  # noqa: SIM401 (no `get`)
            encoded[name] = path(self.projection[key], asked, token, self.mask_space)
        return encoded

    def _incorporate(
        self, ids: Representations, features: Mapping[str, Propagated]
    ) -> Representations:
        user, item = ids
        for group, names in self.groups.items():
            weight = self.feature_weight[group]
            for name in names if weight else ():
                user = user + weight * F.normalize(features[name].user, dim=1)
                item = item + weight * F.normalize(features[name].item, dim=1)
        return Representations(user, item)

    # Losses.

    def losses(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the weighted terms of the whole objective; see the class docstring."""
        asked, triplets = self._ask(batch)
        features = self._encode_features(asked)
        h = self._incorporate(self._encode_ids(asked), features)
        terms = {"bpr": self._bpr(h.user, h.item, triplets)}
        for name in self.groups["modality"] if self.modality_bpr_weight else ():
            bpr = self._bpr(features[name].user, features[name].item, triplets)
            terms[f"bpr_{name}"] = self.modality_bpr_weight * bpr
        for name in self.groups["attribute"] if self.attribute_bpr_weight else ():
            profiles = [features[p].user for p in self.groups["profile"]]
            user = torch.stack(profiles).sum(dim=0) if profiles else features[name].user
            bpr = self._bpr(user, features[name].item, triplets)
            terms[f"bpr_{name}"] = self.attribute_bpr_weight * bpr
        if self.feature_l2_weight and self.groups["modality"]:
            squares = [features[name].squared_norm() for name in self.groups["modality"]]
            feature_l2 = losses.feature_l2_loss(self.item_embedding.num_embeddings, *squares)
            terms["feature_l2"] = self.feature_l2_weight * feature_l2
        if self.decoder:
            terms["restoration"] = self.restoration_weight * self._restoration(features)
        if self.l2_weight:
            terms["l2"] = self.l2_weight * self._regularise(h, batch, triplets)
        return terms

    def _ask(self, batch: Mapping[str, Tensor]) -> tuple[Asked, Triplets]:
        """Return the distinct rows of a batch with the masks of this step, and who is where."""
        n = len(batch["user"])
        user, user_place = torch.unique(batch["user"], return_inverse=True)
        items = torch.cat([batch["pos_item"], batch["neg_item"]])
        item, item_place = torch.unique(items, return_inverse=True)
        triplets = Triplets(user_place, item_place[:n], item_place[n:])
        return Asked(user, item, self._draw_masks(), restored=bool(self.decoder)), triplets

    def _bpr(self, user: Tensor, item: Tensor, triplets: Triplets) -> Tensor:
        u, i, j = triplets
        rows = take_rows(user, u), take_rows(item, i), take_rows(item, j)
        return losses.pruned_bpr_loss(*rows, self.prune_rate, self.prune_keep)

    def _draw_masks(self) -> dict[str, Tensor]:
        if not (self.training and self.mask):
            return {}
        sizes = {
            "user": self.user_embedding.num_embeddings,
            "item": self.item_embedding.num_embeddings,
        }
        return {side: draw_mask(n, self.mask_rate, self.device) for side, n in sizes.items()}

    def _restoration(self, features: Mapping[str, Propagated]) -> Tensor:
        terms = []
        for name, feature in features.items():
            key = self.projection_of[name]
            if key not in self.decoder:
                continue
            if feature.at_masked is None or feature.target is None:
                # Nothing is masked in eval mode; the decoder still takes part.
                nothing = self.item_embedding.weight[:0]
                terms.append(self.decoder[key](nothing).sum())
                continue
            decoder = cast("nn.Linear", self.decoder[key])
            restored = decoder(feature.at_masked.to(decoder.weight.dtype))
            terms.append(losses.restoration_loss(restored, feature.target, self.restoration_gamma))
        return torch.stack(terms).sum()

    def _regularise(
        self, h: Representations, batch: Mapping[str, Tensor], triplets: Triplets
    ) -> Tensor:
        if self.regulariser == "l2":
            return losses.l2_loss(*self.ego_rows(batch))
        u, i, j = triplets
        n_observed = int((batch["source"] == 0).sum())
        return losses.inverted_l2_loss(n_observed, h.user[u], h.item[i], h.item[j])


def _say_which(paths: ByFeature) -> None:
    """Log which way each feature takes."""
    ways: dict[str, list[str]] = {}
    for name, path in paths.items():
        ways.setdefault(type(path).__name__, []).append(name)
    if ways:
        text = "; ".join(f"{way} for {', '.join(names)}" for way, names in ways.items())
        rank_zero_info(f"feature propagation: {text}")
