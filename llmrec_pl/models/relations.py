"""Parts of MMSSL: graphs of learned relations, and attention across modalities."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmrec_pl.graph import weighted_sum
from llmrec_pl.models.base import Representations

_TILE_SCORES = 2**24
"""Relations computed at once when neighbours are sought."""


class RelationGraph(nn.Module):
    """The strongest relations of each user in one modality, as a graph with learned weights.

    A relation is the cosine of user and item features, cut at zero. Which items are neighbours
    stays fixed between two calls of `find`; how strongly they are related has gradients.
    Neighbours follow from the projection at the last `find`, and a checkpoint holds that
    projection instead of them: it is smaller and does not depend on how items are numbered.

    Args:
        projection: the projection of the modality.
        n_users: number of users.
        n_items: number of items.
        n_neighbours: k, items that each user is joined to.
    """

    projection_weight: Tensor
    projection_bias: Tensor
    neighbours: Tensor
    by_item: Tensor
    item_offsets: Tensor

    def __init__(
        self, projection: nn.Linear, n_users: int, n_items: int, n_neighbours: int
    ) -> None:
        super().__init__()
        self.n_items, self.k = n_items, min(n_neighbours, n_items)
        self.register_buffer("projection_weight", projection.weight.detach().clone())
        self.register_buffer("projection_bias", projection.bias.detach().clone())
        n_edges = n_users * self.k
        for name, shape in (
            ("neighbours", (n_users, self.k)),
            ("by_item", (n_edges,)),
            ("item_offsets", (n_items,)),
        ):
            self.register_buffer(name, torch.zeros(shape, dtype=torch.int64), persistent=False)

    @torch.no_grad()
    def remember(self, projection: nn.Linear) -> None:
        """Keep a projection, from which the next `find` takes its features."""
        self.projection_weight.copy_(projection.weight)
        self.projection_bias.copy_(projection.bias)

    def project(self, values: Tensor) -> Tensor:
        """Apply the projection that was remembered."""
        return F.linear(values, self.projection_weight, self.projection_bias)

    @torch.no_grad()
    def find(self, user: Tensor, item: Tensor) -> None:
        """Join each user to the k items of the largest cosine, in tiles of users.

        Args:
            user: features of users ``[n_users, d]``.
            item: features of items ``[n_items, d]``.
        """
        user, item = F.normalize(user), F.normalize(item)
        rows = max(1, _TILE_SCORES // self.n_items)
        for start in range(0, len(user), rows):
            relation = user[start : start + rows] @ item.T
            self.neighbours[start : start + rows] = relation.topk(self.k, dim=1).indices
        flat = self.neighbours.flatten()
        self.by_item.copy_(flat.argsort(stable=True))
        count = flat.bincount(minlength=self.n_items)
        self.item_offsets.copy_(count.cumsum(0) - count)

    def weights(self, user: Tensor, item: Tensor) -> Tensor:
        """Return relation / sqrt(degree of user * degree of item), ``[n_users, k]``.

        Only positive relations count as edges.
        """
        user, item = F.normalize(user), F.normalize(item)
        relation = (user.unsqueeze(1) * item[self.neighbours]).sum(dim=2).relu()
        edge = (relation > 0).to(relation.dtype)
        of_item = edge.new_zeros(self.n_items)
        of_item = of_item.index_add(0, self.neighbours.flatten(), edge.flatten())
        degrees = edge.sum(dim=1, keepdim=True) * of_item[self.neighbours]
        return relation * degrees.clamp(min=1).rsqrt()

    def propagate(self, user: Tensor, item: Tensor, weight: Tensor) -> Representations:
        """Pass identities both ways once."""
        return Representations(
            weighted_sum(self.neighbours, weight, item),
            weighted_sum(
                self.by_item // self.k, weight.flatten()[self.by_item], user, self.item_offsets
            ),
        )


class ModalityAttention(nn.Module):
    """Let the views of a node attend to each other, and average them.

    Source: the multi-head self-attention of Sec. 3.2 of Wei et al., WWW 2023.
    Deviations: a linear map brings the H concatenated heads back to d, as in the released code;
    the paper leaves their width open. One view has nothing to attend to: only that map is built.

    Args:
        dim: d.
        n_heads: H, a divisor of d.
        n_views: number of modalities.
    """

    def __init__(self, dim: int, n_heads: int, n_views: int) -> None:
        super().__init__()
        self.n_heads = n_heads if n_views > 1 else 1
        self.query = nn.Linear(dim, dim, bias=False) if n_views > 1 else None
        self.key = nn.Linear(dim, dim, bias=False) if n_views > 1 else None
        self.output = nn.Linear(self.n_heads * dim, dim, bias=False)

    def forward(self, views: Sequence[Tensor]) -> Tensor:
        """Return the fused views, M times ``[n, d]`` to ``[n, d]``."""
        x = torch.stack(list(views), dim=1)
        # A node without relations is a zero row, whose normalisation has gradients beyond half.
        with torch.autocast(x.device.type, enabled=False):
            if self.query is not None and self.key is not None:
                x = self._mix(x, self.query(x), self.key(x))
            fused: Tensor = self.output(x).mean(dim=1)
        return fused

    def _mix(self, x: Tensor, query: Tensor, key: Tensor) -> Tensor:
        """Return each view as every head sees it, ``[n, M, d]`` to ``[n, M, H * d]``."""
        query, key = (y.view(*y.shape[:2], self.n_heads, -1) for y in (query, key))
        score = torch.einsum("nmhc,nkhc->nhmk", query, key) / query.shape[-1] ** 0.5
        return torch.einsum("nhmk,nkd->nmhd", score.softmax(dim=-1), x).flatten(2)
