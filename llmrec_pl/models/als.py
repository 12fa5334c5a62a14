"""Implicit-feedback ALS, solved by the library `implicit`."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from llmrec_pl.data.dataset import InteractionDataset
from llmrec_pl.data.features import FeatureStore
from llmrec_pl.errors import ConfigError
from llmrec_pl.models.base import Representations
from llmrec_pl.models.closed_form import ClosedForm


class ALS(ClosedForm):
    """Factorise the train matrix, with a confidence for what was seen, by alternating solves.

    Minimises ``sum_ui c_ui (x_ui - p_u . q_i)^2 + l2_weight (||P||^2 + ||Q||^2)`` over all pairs,
    with ``c_ui = 1 + alpha`` where x is 1 and 1 elsewhere. One epoch solves all users, then all
    items.

    Source: Eq. (3) to (5) of Hu, Koren and Volinsky, "Collaborative Filtering for Implicit
    Feedback Datasets", ICDM 2008; conjugate gradients of Takacs, Pilaszy and Tikk, RecSys 2011.
    Deviations: `implicit` counts the confidence itself as ``alpha``; here it is 1 + alpha, as in
    the paper.

    Args:
        embedding_dim: width d of the factors.
        alpha: confidence that an interaction adds, positive.
        l2_weight: lambda, weight of the squared norms.
        exact: solve each row exactly (Cholesky) instead of three conjugate-gradient steps.

    Raises:
        ConfigError: a value is out of range.
    """

    solves_once = False
    user_factors: Tensor
    item_factors: Tensor

    def __init__(
        self,
        embedding_dim: int = 64,
        alpha: float = 3.0,
        l2_weight: float = 30.0,
        exact: bool = False,
    ) -> None:
        super().__init__(embedding_dim, l2_weight)
        if alpha <= 0 or l2_weight <= 0:
            raise ConfigError(
                f"`alpha` and `l2_weight` must be positive, got {alpha} and {l2_weight}."
            )
        self.alpha, self.exact = alpha, exact

    def build(self, dataset: InteractionDataset, features: FeatureStore) -> None:
        """Draw small factors, and keep the confidences."""
        user, item = dataset.graph_edges()
        confidence = np.full(len(user), 1 + self.alpha, dtype=np.float32)
        shape = dataset.n_users, dataset.n_items
        self.confidence = sp.csr_matrix((confidence, (user, item)), shape=shape)
        for name, n in (("user_factors", dataset.n_users), ("item_factors", dataset.n_items)):
            self.register_buffer(name, 0.01 * torch.randn(n, self.embedding_dim))

    def solve(self) -> None:
        """Run one sweep from the factors at hand.

        Raises:
            ConfigError: the library is missing.
        """
        try:
            from implicit.cpu.als import AlternatingLeastSquares
            from threadpoolctl import threadpool_limits
        except ImportError as error:
            raise ConfigError(
                "ALS needs the library `implicit`; install it with `pip install 'llmrec_pl[als]'`."
            ) from error
        user, item = (x.cpu().numpy() for x in (self.user_factors, self.item_factors))
        # The library parallelises over rows; threads of BLAS below it only wait for each other.
        with threadpool_limits(1, "blas"):
            solver = AlternatingLeastSquares(
                factors=self.embedding_dim,
                regularization=self.l2_weight,
                dtype=user.dtype,
                use_cg=not self.exact,
                iterations=1,
                num_threads=torch.get_num_threads(),
            )
            solver.user_factors, solver.item_factors = user, item
            solver.fit(self.confidence, show_progress=False)
        self.user_factors.copy_(torch.from_numpy(solver.user_factors))
        self.item_factors.copy_(torch.from_numpy(solver.item_factors))

    def encode(self) -> Representations:
        """Return the factors."""
        return Representations(self.user_factors, self.item_factors)
