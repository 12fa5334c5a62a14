"""Modules that several models share: feature tables, masking, decoders."""

from __future__ import annotations

from collections.abc import Callable, ItemsView, Iterator, KeysView
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmrec_pl.data.features import Feature, FeatureStore
from llmrec_pl.errors import ConfigError
from llmrec_pl.models.feature_products import stored_rows
from llmrec_pl.models.frozen import read_and_project
from llmrec_pl.tensors import take_rows

MaskToken = Literal["learned", "mean"]
_TOKEN_STD = 0.02


class EmbeddingTable(nn.Embedding):
    """An embedding table whose look-up has a faster backward pass on the CPU."""

    def forward(self, ids: Tensor) -> Tensor:
        """Return rows ``[n, d]``.

        Args:
            ids: int64 ``[n]``.
        """
        return super().forward(ids) if self.sparse else take_rows(self.weight, ids)


class ByFeature(nn.ModuleDict):
    """Modules by feature name, whatever the name: a plain `ModuleDict` refuses "type" or "items".

    A name that is also an attribute of `ModuleDict` is kept, and saved, as ``feature:<name>``.
    """

    @staticmethod
    def _key(name: str) -> str:
        return f"feature:{name}" if hasattr(nn.ModuleDict, name) or name == "training" else name

    def __getitem__(self, key: str) -> nn.Module:
        return super().__getitem__(self._key(key))

    def __setitem__(self, key: str, module: nn.Module) -> None:
        super().__setitem__(self._key(key), module)

    def __contains__(self, key: str) -> bool:
        return super().__contains__(self._key(key))

    def __iter__(self) -> Iterator[str]:
        return (key.removeprefix("feature:") for key in super().__iter__())

    def keys(self) -> KeysView[str]:
        """Return the names."""
        return dict.fromkeys(self).keys()

    def items(self) -> ItemsView[str, nn.Module]:
        """Return the names with their modules."""
        return dict(zip(self, self.values(), strict=True)).items()


class FeatureTable(nn.Module):
    """A frozen feature matrix on the model's device, with repeated rows kept once.

    Buffers are not persistent: a checkpoint holds no features, which come from the data set.

    Args:
        feature: the matrix.
        normalise: scale each row to unit length; zero rows stay.
    """

    values: Tensor
    index: Tensor | None

    def __init__(self, feature: Feature, *, normalise: bool = False) -> None:
        super().__init__()
        values = torch.from_numpy(stored_rows(feature))
        values = F.normalize(values, dim=1) if normalise else values
        self.register_buffer("values", values, persistent=False)
        index = None if feature.index is None else torch.from_numpy(feature.index.copy())
        self.register_buffer("index", index, persistent=False)
        self.dim, self.n_rows = feature.dim, feature.n_rows

    def expand(self, distinct: Tensor) -> Tensor:
        """Give each node the row of its distinct value, zeros where unknown.

        Args:
            distinct: ``[n_distinct, d]``.

        Returns:
            ``[n_rows, d]``.
        """
        if self.index is None:
            return distinct
        rows = distinct[self.index.clamp(min=0)]
        return rows * (self.index >= 0).unsqueeze(1).to(rows.dtype)

    def project_rows(self, nodes: Tensor, project: Callable[[Tensor], Tensor]) -> Tensor:
        """Return ``expand(project(values))[nodes]``, projecting only what these nodes need.

        Args:
            nodes: ``[m]``, repeats allowed.
            project: maps raw rows ``[k, dim]`` to ``[k, d]``, each on its own.

        Returns:
            ``[m, d]``.
        """
        return self._of_distinct(nodes, lambda distinct: project(self.values[distinct]))

    def multiply_rows(self, nodes: Tensor, weight: Tensor) -> Tensor:
        """Return ``dense()[nodes] @ weight.T`` without a copy of the raw rows.

        Args:
            nodes: ``[m]``, repeats allowed.
            weight: ``[d, dim]``; the gradient goes here only.

        Returns:
            ``[m, d]``.
        """
        return self._of_distinct(nodes, partial(read_and_project, weight, self.values))

    def _of_distinct(self, nodes: Tensor, compute: Callable[[Tensor], Tensor]) -> Tensor:
        """Compute each distinct row of some nodes once, zeros where unknown."""
        index = nodes if self.index is None else self.index[nodes]
        distinct, position = torch.unique(index.clamp(min=0), return_inverse=True)
        rows = take_rows(compute(distinct), position)
        return rows if self.index is None else rows * (index >= 0).unsqueeze(1).to(rows.dtype)

    def dense(self) -> Tensor:
        """Return one raw row a node, ``[n_rows, dim]``, zeros where unknown."""
        return self.expand(self.values)

    def visible(self, masked: Tensor) -> Tensor | None:
        """Return 1 for known or masked nodes, else 0, ``[n_rows, 1]``; None if all are known."""
        if self.index is None:
            return None
        shown = self.index >= 0
        shown[masked] = True
        return shown.unsqueeze(1).to(self.values.dtype)

    def known(self, nodes: Tensor) -> Tensor:
        """Return those of some nodes ``[m]`` whose feature is known."""
        return nodes if self.index is None else nodes[self.index[nodes] >= 0]


def item_modalities(features: FeatureStore, model: str) -> list[Feature]:
    """Return the modalities of items, of any number and names, in a fixed order.

    Args:
        features: all features in use.
        model: name of the model, for the message.

    Raises:
        ConfigError: there is none.
    """
    found = features.group("modality", side="item")
    if not found:
        raise ConfigError(
            f"{model} needs at least one item modality (text, image, ...), the data set in use has "
            f"the features {sorted(features)}; make one with `python -m llmrec_pl features`, or "
            "drop it from `data.exclude_features`."
        )
    return found


def draw_mask(n_nodes: int, rate: float, device: torch.device) -> Tensor:
    """Choose ``int(rate * n_nodes)`` nodes at random, from torch's seeded CPU generator.

    Source: the set of masked nodes in Eq. (8) of Wei et al., WSDM 2024.
    """
    return torch.randperm(n_nodes)[: int(rate * n_nodes)].to(device)


class MaskedRows(nn.Module):
    """Replaces rows of a copy by a token; the original stays as it is.

    Source: Eq. (8), Sec. 3.3.2 of Wei et al., WSDM 2024; "a learnable vector or mean pooling".

    Args:
        dim: width of the rows.
        token: "learned" for a parameter, "mean" for the mean row.
    """

    def __init__(self, dim: int, token: MaskToken) -> None:
        super().__init__()
        self.token: nn.Parameter | None = None
        if token == "learned":
            # Not zero: where all neighbours are masked, the propagated token is normalised.
            self.token = nn.Parameter(torch.empty(dim))
            nn.init.normal_(self.token, std=_TOKEN_STD)

    def forward(self, rows: Tensor, nodes: Tensor) -> Tensor:
        """Return the rows ``[n, dim]`` with those of `nodes` ``[m]`` replaced."""
        token = rows.mean(dim=0) if self.token is None else self.token.to(rows.dtype)
        return rows.index_put((nodes,), token.expand(len(nodes), -1))
