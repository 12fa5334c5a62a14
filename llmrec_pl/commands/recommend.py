"""Show what a trained model recommends to single users, beside what they liked.

Ids are the original ones of the data set; titles are shown where the data have them. Items the
user is known to like (train and validation) are not recommended again.

Examples:
  python -m llmrec_pl recommend --ckpt_path RUN/checkpoints/best.ckpt --user 196
  python -m llmrec_pl recommend --ckpt_path RUN/checkpoints/best.ckpt --user 196 --user 22 --k 5
  python -m llmrec_pl recommend --ckpt_path RUN/checkpoints/best.ckpt --random 3
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llmrec_pl.errors import ConfigError, DatasetError

if TYPE_CHECKING:
    import argparse

    from rich.table import Table

    from llmrec_pl.data.dataset import InteractionDataset

ABOUT_COLUMNS = ("age", "gender", "occupation")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "--ckpt_path", required=True, metavar="FILE", help="a checkpoint that `fit` wrote"
    )
    parser.add_argument(
        "--user", action="append", default=[], metavar="ID", help="original user id; repeatable"
    )
    parser.add_argument(
        "--random", type=int, default=0, metavar="N", help="N users picked by a fixed seed"
    )
    parser.add_argument("--k", type=int, default=10, help="recommendations a user (default 10)")
    parser.add_argument(
        "--data-root", metavar="DIR", help="where the data set lies now, if it was moved"
    )


def run(args: argparse.Namespace) -> None:
    """Print one table a user.

    Raises:
        ConfigError: no user was named.
        DatasetError: a user id is unknown.
        CheckpointMismatchError: the checkpoint is unreadable or of other data.
    """
    if not args.user and args.random < 1:
        raise ConfigError("name users with `--user ID`, or give `--random 3` for three of them.")
    from rich.console import Console

    console = Console(width=None if Console().is_terminal else 110)
    for table in recommendation_tables(
        args.ckpt_path, args.user, args.random, args.k, args.data_root
    ):
        console.print(table)


def recommendation_tables(
    ckpt_path: str,
    user_ids: list[str],
    n_random: int = 0,
    k: int = 10,
    data_root: str | None = None,
) -> list[Table]:
    """Rank for some users and lay out the results.

    Args:
        ckpt_path: a checkpoint that ``fit`` wrote.
        user_ids: original ids.
        n_random: further users, picked by a fixed seed.
        k: recommendations a user.
        data_root: where the data set lies now, if it was moved.

    Returns:
        One table a user: the recommendations beside the user's history.
    """
    import numpy as np
    import torch

    from llmrec_pl.checkpoints import CHECKPOINT_KEY, read_checkpoint
    from llmrec_pl.data.datamodule import RecDataModule
    from llmrec_pl.evaluation.ranking import sparse_rows, top_k
    from llmrec_pl.evaluation.tables import recommendations_table
    from llmrec_pl.models.base import Recommender

    record = read_checkpoint(ckpt_path, mmap=True)[CHECKPOINT_KEY]
    arguments = record["data_arguments"] | ({"root": data_root} if data_root else {})
    data = RecDataModule(**arguments)
    dataset = data.dataset
    users = _find_users(dataset, user_ids, n_random)
    model = Recommender.from_checkpoint(ckpt_path, dataset, data.features)
    user, item = model.ranking_rows(torch.tensor(users, dtype=torch.int64))
    seen = sparse_rows(dataset.known_items(), np.asarray(users))
    ids, scores = top_k(user, item, k, seen)
    titles, about = dataset.titles(), _about(dataset)
    tables = []
    for row, dense in enumerate(users):
        liked = [(str(dataset.item_ids[i]), titles[i]) for i in _history(dataset, dense)]
        found = [
            (str(dataset.item_ids[i]), titles[i], float(score))
            for i, score in zip(ids[row].tolist(), scores[row].tolist(), strict=True)
            if i >= 0
        ]
        name = str(dataset.user_ids[dense])
        tables.append(recommendations_table(name, liked, found, about(dense)))
    return tables


def _find_users(dataset: InteractionDataset, wanted: list[str], n_random: int) -> list[int]:
    import numpy as np

    number = {user_id: dense for dense, user_id in enumerate(dataset.user_ids.tolist())}
    for user_id in wanted:
        if user_id not in number:
            raise DatasetError(
                f"no user {user_id!r} in data set {dataset.name!r}; its ids are like "
                f"{dataset.user_ids[:3].tolist()} (a filter may have left this user out)."
            )
    random = np.random.default_rng(0)
    active = np.flatnonzero(np.diff(dataset.train.indptr))
    drawn = random.choice(active, size=min(n_random, len(active)), replace=False)
    return [number[u] for u in wanted] + sorted(drawn.tolist())


def _history(dataset: InteractionDataset, user: int) -> list[int]:
    """Train items of a user, the latest first where the data have times."""
    import polars as pl

    start, stop = dataset.train.indptr[user], dataset.train.indptr[user + 1]
    items: list[int] = dataset.train.indices[start:stop].tolist()
    assert dataset.root is not None
    rows = pl.scan_parquet(dataset.root / "interactions.parquet").filter(
        (pl.col("user") == user) & (pl.col("split") == "train")
    )
    if "timestamp" not in rows.collect_schema().names():
        return items
    latest = rows.sort(["timestamp", "item"], descending=[True, False]).collect()
    return [int(i) for i in latest["item"]]


def _about(dataset: InteractionDataset) -> Any:  # noqa: ANN401 (a function of the dense id)
    frame = dataset.users_frame()
    columns = [c for c in ABOUT_COLUMNS if c in frame.columns]

    def describe(user: int) -> str:
        values = [str(v) for c in columns if (v := frame[c][user]) is not None]
        return f" ({', '.join(values)})" if values else ""

    return describe
