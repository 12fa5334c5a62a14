"""EASE: a linear autoencoder in closed form."""

from __future__ import annotations

from llmrec_pl.errors import ConfigError
from llmrec_pl.models.linear_autoencoder import LinearAutoencoder, ridge_without_self, write_gram


class EASE(LinearAutoencoder):
    """Predict each item of a user from the user's other items, by ridge regression.

    ``B = argmin ||X - X B||^2 + l2_weight ||B||^2`` with ``diag(B) = 0``, scores ``x_u B``.

    Source: Steck, "Embarrassingly Shallow Autoencoders for Sparse Data", WWW 2019.
    Deviations: none.

    Args:
        l2_weight: lambda; the larger, the smoother.

    Raises:
        ConfigError: `l2_weight` is not positive.
    """

    def __init__(self, l2_weight: float = 300.0) -> None:
        super().__init__(l2_weight=l2_weight)
        if l2_weight <= 0:
            raise ConfigError(f"`l2_weight` must be positive, got {l2_weight}.")

    def solve(self) -> None:
        """Turn the Gram matrix of the interactions into B, in place."""
        write_gram(self.item_weights, self.interactions)
        ridge_without_self(self.item_weights, self.l2_weight)
