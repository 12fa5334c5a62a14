"""The adversary of MMSSL: real interaction rows, a critic of rows, and their losses."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call


class Critic(nn.Module):
    """Score rows of a user-item matrix, high for real ones.

    The first layer is the only part that grows with the catalogue, in proportion.

    Source: the discriminator of Sec. 3.1 of Wei et al., "MMSSL", WWW 2023.
    Deviations: no sigmoid at the end, which a Wasserstein critic must not have; LayerNorm
    instead of BatchNorm, which couples the rows whose gradients the penalty takes one by one
    (Gulrajani et al., NeurIPS 2017, Sec. 4); a fixed width instead of n_items / 4, which would be
    quadratic in items; no dropout.

    Args:
        n_items: length of a row.
        width: width of the first hidden layer, half of it in the second.
    """

    def __init__(self, n_items: int, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(n_items, width),
            nn.LeakyReLU(0.2),
            nn.LayerNorm(width),
            nn.Linear(width, width // 2),
            nn.LeakyReLU(0.2),
            # A constant cancels between real and generated rows, so it would never learn.
            nn.LayerNorm(width // 2, bias=False),
            nn.Linear(width // 2, 1, bias=False),
        )

    def forward(self, rows: Tensor) -> Tensor:
        """Return one score a row, ``[n, n_items]`` to ``[n]``."""
        scores: Tensor = self.layers(rows)
        return scores.squeeze(1)

    def frozen(self, rows: Tensor) -> Tensor:
        """Return the same scores, with gradient for the rows and none for the critic."""
        fixed = {name: p.detach() for name, p in self.named_parameters()}
        scores: Tensor = functional_call(self, fixed, (rows,))
        return scores


class AdversarialLosses(NamedTuple):
    """Scalars; the generator minimises the first, the critic the sum of the others.

    Attributes:
        generator: minus the mean score of generated rows, without gradient for the critic.
        critic: mean score of generated rows less that of real rows, without gradient for the
            generator.
        penalty: mean squared distance of the critic's gradient norm from 1.
    """

    generator: Tensor
    critic: Tensor
    penalty: Tensor


def adversarial_losses(critic: Critic, real: Tensor, generated: Tensor) -> AdversarialLosses:
    """Return what generator and critic minimise; no term has gradients for both.

    So one backward pass of the sum serves both, as distributed training needs.

    Source: WGAN-GP of Sec. 3.1 of Wei et al., WWW 2023, after Gulrajani et al., NeurIPS 2017.
    Deviations: both players move at once instead of in turns.

    Args:
        critic: the critic.
        real: rows of the interaction matrix, perturbed, ``[n, n_items]``.
        generated: rows of learned relations, with gradient, ``[n, n_items]``.
    """
    fixed = generated.detach()
    share = torch.rand(len(real), 1, device=real.device, dtype=real.dtype)
    between = (share * real + (1 - share) * fixed).requires_grad_()
    (slope,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    return AdversarialLosses(
        -critic.frozen(generated).mean(),
        critic(fixed).mean() - critic(real).mean(),
        (slope.norm(dim=1) - 1).square().mean(),
    )


def perturbed_rows(rows: Tensor, temperature: float) -> Tensor:
    """Make binary rows dense with Gumbel noise and a softmax over the items.

    Source: the Gumbel-based transformation of Sec. 3.1 of Wei et al., WWW 2023.
    Deviations: none.

    Args:
        rows: interactions, 0 or 1, ``[n, n_items]``.
        temperature: low ones leave a single item a row.
    """
    exponential = torch.empty_like(rows).exponential_().clamp(min=torch.finfo(rows.dtype).tiny)
    return ((rows - exponential.log()) / temperature).softmax(dim=1)
