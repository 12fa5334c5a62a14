"""The files an evaluation leaves with its run, and how often the test split was opened."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

OPENINGS = "test_openings.json"


def record_name(stage: str, candidates: str = "all") -> str:
    """Return how the files of an evaluation are called: ``val``, or ``val_cold``.

    Args:
        stage: "val" or "test".
        candidates: see `AllRankingEvaluator`.
    """
    return stage if candidates == "all" else f"{stage}_{candidates}"


def log_test_opening(folder: Path, note: Mapping[str, Any]) -> int:
    """Add a line to the run's log of test openings, before anything is ranked.

    Args:
        folder: the run's ``metrics`` folder.
        note: what is evaluated, beside the time.

    Returns:
        How often this run has opened the test split, this time included.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / OPENINGS
    log = json.loads(path.read_text("utf-8")) if path.exists() else []
    log.append({"at": datetime.now(UTC).isoformat(timespec="seconds"), **note})
    _replace(path, json.dumps(log, indent=1))
    return len(log)


def write_record(
    folder: Path,
    record: Mapping[str, Any],
    names: Sequence[str],
    per_user: NDArray[np.float64],
    user_ids: NDArray[np.str_],
) -> None:
    """Write ``<name>.json`` and ``<name>_per_user.parquet``, with the name of `record_name`.

    Args:
        folder: the run's ``metrics`` folder.
        record: the results, with ``stage`` and ``candidates``.
        names: metric names.
        per_user: rows of user, number of relevant items, and one value a name.
        user_ids: original ids by dense id.
    """
    import polars as pl

    folder.mkdir(parents=True, exist_ok=True)
    users = per_user[:, 0].astype(np.int64)
    frame = pl.DataFrame(
        {
            "user": users,
            "user_id": user_ids[users].tolist(),
            "n_relevant": per_user[:, 1].astype(np.int64),
            **{name: per_user[:, 2 + i] for i, name in enumerate(names)},
        }
    )
    name = record_name(record["stage"], record["candidates"])
    frame.write_parquet(folder / f"{name}_per_user.parquet")
    text = json.dumps(_without_nan(record), indent=1, ensure_ascii=False, allow_nan=False)
    _replace(folder / f"{name}.json", text)


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(text + "\n", encoding="utf-8")
    temporary.replace(path)


def _without_nan(value: Any) -> Any:  # noqa: ANN401
    """Put null for the means of empty groups; JSON has no NaN."""
    if isinstance(value, dict):
        return {k: _without_nan(v) for k, v in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value
