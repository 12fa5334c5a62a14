"""What a person sees of an evaluation: rich tables with original ids and titles."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich import box
from rich.markup import escape
from rich.table import Table

from llmrec_pl.evaluation.metrics import METRICS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_HEADINGS = {
    "recall": "Recall",
    "ndcg": "NDCG",
    "precision": "Prec.",
    "hit": "Hit",
    "mrr": "MRR",
    "map": "MAP",
}


def metrics_table(record: Mapping[str, Any], title: str) -> Table:
    """Show the metrics of one evaluation, one row a K.

    Args:
        record: what `AllRankingEvaluator` writes as ``metrics/<stage>.json``.
        title: heading of the table.
    """
    metrics, ks = record["metrics"], record["ks"]
    caption = (
        f"{metrics['users']:,} users evaluated, "
        f"{record['users_without_held_out_items']:,} without held-out items; "
        f"{record['candidates']} items ranked, profile {record['profile']}"
    )
    names = record.get("features") or []
    caption += f"; features at hand: {escape(', '.join(names) or 'none')}"
    augmentation = record.get("augmentation") or {}
    if augmentation.get("path"):
        caption += (
            f"; augmentation by {escape(str(augmentation['provider']))}, model "
            f"{escape(str(augmentation['model']))}, with w3 = {augmentation['llm_edge_rate']}"
        )
    else:
        caption += "; no LLM augmentation (w3 = 0)"
    if "test_openings" in record:
        caption += f"; test split opened {record['test_openings']} time(s) by this run"
    table = Table(
        title=escape(title),
        caption=caption,
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        collapse_padding=True,  # ten columns fit into a terminal of 80
    )
    table.add_column("K", justify="right", style="bold")
    for name in METRICS:
        table.add_column(_HEADINGS[name], justify="right", no_wrap=True)
    for name in ("hits", "cover", "gini"):
        table.add_column(name, justify="right", style="dim", no_wrap=True)
    for k in ks:
        exposure = record["exposure"]
        table.add_row(
            str(k),
            *(f"{metrics[f'{name}@{k}']:.4f}" for name in METRICS),
            f"{metrics[f'hits@{k}']:,}",
            f"{exposure[f'coverage@{k}']:.3f}",
            f"{exposure[f'gini@{k}']:.3f}",
        )
    return table


def groups_table(record: Mapping[str, Any], title: str) -> Table:
    """Show recall and NDCG of each group of items and users.

    Args:
        record: what `AllRankingEvaluator` writes as ``metrics/<stage>.json``.
        title: heading of the table.
    """
    table = Table(
        title=escape(title), title_justify="left", box=box.SIMPLE_HEAD, collapse_padding=True
    )
    table.add_column("group", no_wrap=True)
    table.add_column("users", justify="right")
    for name in ("recall", "ndcg"):
        for k in record["ks"]:
            table.add_column(f"{name[0].upper()}@{k}", justify="right", no_wrap=True)
    for group, metrics in record["groups"].items():
        if metrics["users"] == 0:
            continue
        values = [metrics[f"{n}@{k}"] for n in ("recall", "ndcg") for k in record["ks"]]
        table.add_row(
            group.replace("_", " "), f"{metrics['users']:,}", *(f"{v:.4f}" for v in values)
        )
    return table


def recommendations_table(
    user_id: str,
    history: Sequence[tuple[str, str]],
    recommended: Sequence[tuple[str, str, float]],
    about: str = "",
) -> Table:
    """Show a user's recommendations beside what the user liked.

    Args:
        user_id: original id.
        history: (original item id, title) pairs.
        recommended: (original item id, title, score) in rank order.
        about: a word on the user, such as age and occupation.
    """
    table = Table(title=escape(f"user {user_id}{about}"), title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("liked so far", style="dim", overflow="fold", ratio=2)
    table.add_column("rank", justify="right", style="bold")
    table.add_column("recommended", overflow="fold", ratio=2)
    table.add_column("item id", justify="right", style="dim")
    table.add_column("score", justify="right")
    for row, (item_id, title, score) in enumerate(recommended):
        liked = history[row][1] if row < len(history) else ""
        # Titles are data: "[safe]" is a film, not a style.
        table.add_row(escape(liked), str(row + 1), escape(title), escape(item_id), f"{score:.3f}")
    if len(history) > len(recommended):
        table.add_row(f"… and {len(history) - len(recommended)} more")
    return table
