"""NGCF: neural graph collaborative filtering."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmrec_pl.data.dataset import InteractionDataset
from llmrec_pl.data.features import FeatureStore
from llmrec_pl.errors import ConfigError
from llmrec_pl.graph import BipartiteGraph
from llmrec_pl.models.base import OptimizerCallable, Recommender, Representations, SchedulerCallable


class NGCFLayer(nn.Module):
    """Add the messages of a node's neighbours and of itself, and activate the sum.

    ``LeakyReLU((L E + E) W1 + (L E * E) W2 + b)``.

    Source: Eq. (7) of Wang et al., "Neural Graph Collaborative Filtering", SIGIR 2019.
    Deviations: a bias, as in the released code, whose two biases a layer add up to one here.

    Args:
        dim: width of the nodes' rows, before and after.
        negative_slope: of the LeakyReLU; 1 leaves the layer without an activation.
    """

    def __init__(self, dim: int, negative_slope: float) -> None:
        super().__init__()
        self.sum = nn.Linear(dim, dim)
        self.product = nn.Linear(dim, dim, bias=False)
        nn.init.xavier_uniform_(self.sum.weight)
        nn.init.xavier_uniform_(self.product.weight)
        nn.init.zeros_(self.sum.bias)
        self.negative_slope = negative_slope

    def forward(self, node: Tensor, neighbours: Tensor) -> Tensor:
        """Return the next rows of some nodes.

        Args:
            node: E, ``[n, dim]``.
            neighbours: L E, the weighted sum over each node's neighbours, ``[n, dim]``.

        Returns:
            ``[n, dim]``.
        """
        message = self.sum(neighbours + node) + self.product(neighbours * node)
        return F.leaky_relu(message, self.negative_slope)


class NGCF(Recommender):
    """Concatenate the embeddings of 0..L non-linear propagations over the interaction graph.

    ``E(l+1) = LeakyReLU((L + I) E(l) W1 + (L E(l)) * E(l) W2)`` with ``L = D^-1/2 A D^-1/2``;
    vectors are layer 0 beside the L2-normalised layers 1..L, of width ``d * (L + 1)``.

    Source: Eq. (7), (9) and (11), Sec. 2.2.2 and 2.4 of Wang et al., "Neural Graph Collaborative
    Filtering", SIGIR 2019.

    Deviations:
        activation: one around the sum, as Eq. (7); the released code activates both terms apart.
        graph: symmetric without self-loops, as Eq. (8); the released code's default is
            ``D^-1 (A + I)``, and adds no further I.
        normalisation: of what a layer gives to the output, not of what the next layer reads, as
            in the released code; the paper mentions none.
        message dropout: on a layer's output, as in the released code.
        node dropout: a node sends no messages to others in a layer, as the paper's text; the
            released code drops single edges.
        L2: on the batch's ego embeddings; the paper takes all parameters, the released code the
            batch's final vectors.
        optimizer: AdamW instead of Adam.

    Parameters: ``user_embedding.weight``, ``item_embedding.weight``, and for each layer l from 0
    ``layers.<l>.sum.weight`` (W1) and ``.bias``, ``layers.<l>.product.weight`` (W2).

    Args:
        n_layers: L; with 0 layers the model is MF.
        embedding_dim: width d of each layer.
        negative_slope: of the LeakyReLU.
        message_dropout: rate on each layer's output, in [0, 1).
        node_dropout: share of nodes that a layer hears nothing of, in [0, 1).
        l2_weight: weight of the L2 term on the batch's ego embeddings.
        optimizer: see `Recommender`.
        lr_scheduler: see `Recommender`.

    Raises:
        ConfigError: a value is out of range.
    """

    layers: nn.ModuleList

    def __init__(
        self,
        n_layers: int = 3,
        embedding_dim: int = 64,
        negative_slope: float = 0.2,
        message_dropout: float = 0.1,
        node_dropout: float = 0.0,
        l2_weight: float = 1e-4,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        lr_scheduler: SchedulerCallable | None = None,
    ) -> None:
        super().__init__(embedding_dim, l2_weight, optimizer, lr_scheduler)
        if n_layers < 0:
            raise ConfigError(f"`n_layers` must not be negative, got {n_layers}.")
        for name, rate in (("message_dropout", message_dropout), ("node_dropout", node_dropout)):
            if not 0 <= rate < 1:
                raise ConfigError(f"`{name}` must be in [0, 1), got {rate!r}.")
        self.n_layers, self.negative_slope = n_layers, negative_slope
        self.message_dropout, self.node_dropout = message_dropout, node_dropout

    def build(self, dataset: InteractionDataset, features: FeatureStore) -> None:
        """Create the embedding tables, the layers and the symmetric graph."""
        self.make_embeddings(dataset)
        self.layers = nn.ModuleList(
            NGCFLayer(self.embedding_dim, self.negative_slope) for _ in range(self.n_layers)
        )
        self.graph = BipartiteGraph(
            dataset.graph_edges(), dataset.n_users, dataset.n_items, "symmetric"
        )

    def encode(self) -> Representations:
        """Propagate L times and concatenate the layers."""
        user, item = self.user_embedding.weight, self.item_embedding.weight
        users, items = [user], [item]
        for layer in self.layers:
            to_user, to_item = self.graph.propagate(self._heard(user), self._heard(item))
            user = F.dropout(layer(user, to_user), self.message_dropout, self.training)
            item = F.dropout(layer(item, to_item), self.message_dropout, self.training)
            users.append(F.normalize(user, dim=1))
            items.append(F.normalize(item, dim=1))
        return Representations(torch.cat(users, dim=1), torch.cat(items, dim=1))

    def encode_rows(self, users: Tensor, items: Tensor) -> Representations:
        """Propagate over the rows that these users and items need.

        Dropout is drawn for these rows, so in training it is other than that of `encode`.
        """
        frontier = self.graph.frontier(users, items, self.n_layers)
        user, item = self.user_embedding.weight, self.item_embedding.weight
        blocks = [frontier.asked(0, user, item)]
        for number, layer in enumerate(self.layers):
            heard = self._heard(user), self._heard(item)
            to_user, to_item = frontier.propagate(number, *heard)
            user, item = frontier.kept(number, user, item)
            user = F.dropout(layer(user, to_user), self.message_dropout, self.training)
            item = F.dropout(layer(item, to_item), self.message_dropout, self.training)
            rows = frontier.asked(number + 1, user, item)
            blocks.append((F.normalize(rows[0], dim=1), F.normalize(rows[1], dim=1)))
        user, item = (torch.cat(parts, dim=1) for parts in zip(*blocks, strict=True))
        return Representations(*frontier.repeated(user, item))

    def _heard(self, node: Tensor) -> Tensor:
        """Silence whole nodes at random, in training, ``[n, d]``."""
        if not (self.training and self.node_dropout):
            return node
        return node * F.dropout(node.new_ones(len(node), 1), self.node_dropout)
