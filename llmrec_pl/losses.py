"""Loss terms as pure functions; none logs, none regularises on the side."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from llmrec_pl.errors import ConfigError
from llmrec_pl.tensors import at_least_float32

PruneKeep = Literal["hardest", "easiest"]
_ROWS_PER_CANDIDATE = 64


def inner_product(user: Tensor, item: Tensor) -> Tensor:
    """Score pairs of rows, ``[n, d]`` and ``[n, d]`` to ``[n]``."""
    return (user * item).sum(dim=-1)


def candidate_scores(user: Tensor, rows: Tensor, place: Tensor) -> Tensor:
    """Score several candidates of each row by inner products, ``[n, m]``.

    Candidates come from few distinct rows again and again. While these are not many times more
    than m, one product with all of them costs less than gathering ``[n, m, d]`` numbers, which
    is what is done otherwise. Runs outside autocast.

    Args:
        user: ``[n, d]``.
        rows: distinct candidates, ``[n_rows, d]``.
        place: row of each candidate, int64 ``[n, m]``.
    """
    with torch.autocast(user.device.type, enabled=False):
        user, rows = at_least_float32(user), at_least_float32(rows)
        if len(rows) <= _ROWS_PER_CANDIDATE * place.shape[1]:
            return (user @ rows.T).gather(1, place)
        return inner_product(user.unsqueeze(1), rows[place])


def bpr_log_likelihood(user: Tensor, pos_item: Tensor, neg_item: Tensor) -> Tensor:
    """Return log sigmoid(y_ui - y_uj) of each triplet.

    Source: BPR-Opt, Rendle et al., UAI 2009.
    Deviations: none; `logsigmoid` keeps large differences finite.

    Args:
        user: ``[n, d]``.
        pos_item: ``[n, d]``.
        neg_item: ``[n, d]``.

    Returns:
        Log likelihoods in nats, ``[n]``, float32 or wider also under autocast.
    """
    # One inner product instead of two.
    user, pos_item, neg_item = (at_least_float32(x) for x in (user, pos_item, neg_item))
    return F.logsigmoid(inner_product(user, pos_item - neg_item))


def bpr_loss(user: Tensor, pos_item: Tensor, neg_item: Tensor) -> Tensor:
    """Return the mean negative BPR log likelihood, a scalar in nats.

    Source: BPR-Opt, Rendle et al., UAI 2009.
    Deviations: mean over the batch instead of the sum, so the learning rate does not depend on
    the batch size.
    """
    return -bpr_log_likelihood(user, pos_item, neg_item).mean()


def pruned_bpr_loss(
    user: Tensor,
    pos_item: Tensor,
    neg_item: Tensor,
    prune_rate: float,
    keep: PruneKeep = "hardest",
) -> Tensor:
    """Return the BPR loss over the part of the triplets that noise pruning keeps.

    Source: Eq. (7), Sec. 3.3.1 of Wei et al., WSDM 2024.
    Deviations: the mean over the N kept triplets instead of the sum (as the released code), and
    at least one triplet is kept. Eq. (7) keeps the N smallest log likelihoods, the hardest
    triplets, although the text calls large-gradient triplets noise; ``keep="easiest"`` does
    what the text says.

    Args:
        user: ``[n, d]``.
        pos_item: ``[n, d]``.
        neg_item: ``[n, d]``.
        prune_rate: w4, share of triplets that is dropped, in [0, 1).
        keep: which end of the order survives.

    Raises:
        ConfigError: `keep` is unknown.
    """
    if keep not in get_args(PruneKeep):
        raise ConfigError(f"`prune_keep` must be one of {get_args(PruneKeep)}, got {keep!r}.")
    log_likelihood = bpr_log_likelihood(user, pos_item, neg_item)
    n_kept = max(1, int((1 - prune_rate) * len(log_likelihood)))
    if n_kept == len(log_likelihood):
        return -log_likelihood.mean()
    return -log_likelihood.topk(n_kept, largest=keep == "easiest", sorted=False).values.mean()


def sampled_softmax_loss(positive: Tensor, negative: Tensor, temperature: float) -> Tensor:
    """Return the mean negative log likelihood of the positive among itself and its negatives.

    ``-log exp(y_ui / t) / (exp(y_ui / t) + sum_j exp(y_uj / t))``; with one negative and
    temperature 1 it is `bpr_loss`.

    Source: Eq. (4) of Wu et al., "On the Effectiveness of Sampled Softmax Loss for Item
    Recommendation", 2022; as an estimate of mutual information, Eq. (1) of van den Oord et al.,
    "Contrastive Predictive Coding", 2018.
    Deviations: no correction for the sampling probabilities, because ours are uniform.

    Args:
        positive: scores ``[n]``.
        negative: scores ``[n, n_negatives]``; -inf leaves one out.
        temperature: t, positive.

    Returns:
        A scalar in nats; finite for finite `positive`.
    """
    positive, negative = at_least_float32(positive), at_least_float32(negative)
    scores = torch.cat([positive.unsqueeze(1), negative], dim=1) / temperature
    return -scores.log_softmax(dim=1)[:, 0].mean()


def cosine_contrastive_loss(
    positive: Tensor, negative: Tensor, margin: float, negative_weight: float
) -> Tensor:
    """Pull positives to a cosine of 1, and push those negatives away that are above a margin.

    ``1 - y_ui + w * mean_j max(0, y_uj - m)``, the mean over the batch.

    Source: Eq. (2), CCL, of Mao et al., "SimpleX", CIKM 2021.
    Deviations: none.

    Args:
        positive: cosines ``[n]``.
        negative: cosines ``[n, n_negatives]``.
        margin: m.
        negative_weight: w.
    """
    positive, negative = at_least_float32(positive), at_least_float32(negative)
    pushed = (negative - margin).clamp(min=0.0).mean(dim=1)
    return (1.0 - positive + negative_weight * pushed).mean()


def squared_norm(*tensors: Tensor) -> Tensor:
    """Return the squared norm of all numbers of some tensors, a scalar in float32 or wider."""
    return torch.stack([at_least_float32(t).square().sum() for t in tensors]).sum()


def l2_loss(*rows: Tensor) -> Tensor:
    """Return half the squared norm of embedding rows, averaged over the batch.

    Source: w2 * ||Theta||^2 of Eq. (6), Wei et al., WSDM 2024, on the batch's rows as in LightGCN.
    Deviations: a half and the mean over the batch, as in LightGCN's reference.

    Args:
        rows: tensors ``[n, d]`` of equal n.
    """
    return squared_norm(*rows) / (2 * len(rows[0]))


def inverted_l2_loss(batch_size: int, *rows: Tensor) -> Tensor:
    """Return the regulariser of the released LLMRec code, which shrinks nothing.

    Source: the released code: ``sum 1 / (2 ||rows||^2 + 1e-8) / batch_size``.
    Deviations: none; it differs from the paper's w2 term, which `l2_loss` is.

    Args:
        batch_size: B, observed triplets.
        rows: tensors ``[n, d]``.
    """
    return torch.stack([1.0 / (2 * squared_norm(r) + 1e-8) for r in rows]).sum() / batch_size


def feature_l2_loss(n_items: int, *squared_norms: Tensor) -> Tensor:
    """Return half the squared norms of whole propagated feature matrices per item.

    Source: the released LLMRec code (`feat_reg`); the paper does not mention it.
    Deviations: none.

    Args:
        n_items: number of items, the divisor.
        squared_norms: scalars, one a matrix.
    """
    return torch.stack(squared_norms).sum() / (2 * n_items)


def restoration_loss(restored: Tensor, target: Tensor, gamma: float) -> Tensor:
    """Return the scaled cosine error of restored features.

    Source: Eq. (9), Sec. 3.3.2 of Wei et al., WSDM 2024.
    Deviations: none. The distance is clamped at 0: rounding makes 1 - cos slightly negative,
    and its non-integer power NaN.

    Args:
        restored: decoder outputs of the masked nodes, ``[n, d]``.
        target: the features before masking, ``[n, d]``.
        gamma: the power, at least 1.

    Returns:
        A scalar; zero where nothing is masked.
    """
    if len(restored) == 0:
        return restored.sum()
    cosine = F.cosine_similarity(at_least_float32(restored), at_least_float32(target), dim=-1)
    return (1.0 - cosine).clamp(min=0.0).pow(gamma).mean()


class _TwoViewContrast(torch.autograd.Function):
    """The loss with its gradient for the cosines, in one matrix ``[n, 2 n]`` that is kept.

    Left to autograd, ten passes over such matrices take two thirds of the time.
    """

    @staticmethod
    def forward(ctx: Any, view: Tensor, other: Tensor, temperature: float) -> Tensor:  # noqa: ANN401
        n = len(view)
        both = torch.cat([other, view])
        share = (view @ both.T).div_(temperature)
        share[:, n:].fill_diagonal_(-torch.inf)
        highest = share.amax(dim=1, keepdim=True)
        positive = share.diagonal().clone()
        total = share.sub_(highest).exp_().sum(dim=1)
        loss = (total.log() + highest.squeeze(1) - positive).mean()
        share.div_(total.unsqueeze(1)).diagonal().sub_(1)
        ctx.save_for_backward(share.div_(n * temperature), both)
        return loss

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:  # noqa: ANN401
        share, both = ctx.saved_tensors
        n = len(share)
        columns = share.T @ both[n:]
        return gradient * (share @ both + columns[n:]), gradient * columns[:n], None


def two_view_contrast_loss(view: Tensor, other: Tensor, temperature: float) -> Tensor:
    """Return the InfoNCE between two views of the same nodes, with negatives of both.

    With cosines s, the mean over n of ``-log exp(s(v_n, o_n) / t) / Z_n``, where Z_n sums
    ``exp(s(v_n, o_m) / t)`` over all m and ``exp(s(v_n, v_m) / t)`` over m other than n.

    Source: Zhu et al., "Deep Graph Contrastive Representation Learning", 2020, Eq. (1), as the
    released MICRO code uses it.
    Deviations: one direction only, views are not projected.

    Args:
        view: anchors, ``[n, d]``.
        other: their counterparts, ``[n, d]``.
        temperature: t.

    Returns:
        A scalar in nats; takes memory in n squared, so n is a batch.
    """
    with torch.autocast(view.device.type, enabled=False):
        v = F.normalize(at_least_float32(view), dim=1)
        o = F.normalize(at_least_float32(other), dim=1)
        loss: Tensor = _TwoViewContrast.apply(v, o, temperature)  # type: ignore[no-untyped-call]
    return loss
