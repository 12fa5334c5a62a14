"""Judges the reply to an embeddings call, text by text; pure."""

from __future__ import annotations

import base64
import json
import math
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

from augment.specs import Verdict

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from augment.specs import TaskSpec


def embedding_verdicts(spec: TaskSpec, raw: bytes, n: int) -> list[Verdict]:
    """Judge the reply to an embeddings call, in the order the texts were sent.

    Rows are put where their `index` says. One bad vector costs its own text only; rows that
    cannot be told apart cost the whole call.

    Args:
        spec: the task; `params["dimensions"]`, if given, must be met, else the usual length of
            the call.
        raw: the exact body.
        n: number of texts sent.

    Returns:
        Verdicts whose value is a float32 vector.
    """
    rows = _rows(raw, n)
    if isinstance(rows, Verdict):
        return [rows] * n
    vectors = [_vector(row.get("embedding")) for row in rows]
    lengths = Counter(len(vector) for vector in vectors if vector is not None)
    usual = lengths.most_common(1)[0][0] if lengths else 0
    wanted = int(spec.params.get("dimensions") or usual)
    return [_judged(vector, wanted) for vector in vectors]


def _rows(raw: bytes, n: int) -> list[dict[str, Any]] | Verdict:
    """Return the rows in the order sent, or why there are none."""
    if not raw.strip():
        return Verdict("empty_body", detail="the reply has no body")
    try:
        reply = json.loads(raw)
    except (ValueError, RecursionError):
        looks = raw.lstrip()[:1] == b"{"
        return Verdict("bad_json" if looks else "not_json", detail="the reply is no whole JSON")
    data = reply.get("data") if isinstance(reply, dict) else None
    if not isinstance(data, list) or not all(isinstance(row, dict) for row in data):
        return Verdict("no_data", detail="the reply holds no embeddings")
    placed = {row["index"]: row for row in data if type(row.get("index")) is int}
    if len(data) != n or set(placed) != set(range(n)):
        return Verdict("wrong_count", detail=f"{len(placed)} numbered vectors for {n} texts")
    return [placed[place] for place in range(n)]


def _vector(value: object) -> NDArray[np.float32] | None:
    """Return a vector given as base64 or as a list of numbers; None if it is neither."""
    try:
        if isinstance(value, str):
            return np.frombuffer(base64.b64decode(value, validate=True), dtype="<f4")
    except ValueError:
        return None
    if isinstance(value, list) and all(type(number) in (int, float) for number in value):
        with np.errstate(over="ignore"):  # what overflows is infinite, and rejected as such
            return np.array([_float(number) for number in value], dtype=np.float64).astype("<f4")
    return None


def _float(number: float) -> float:
    try:
        return float(number)
    except OverflowError:
        return math.inf


def _judged(vector: NDArray[np.float32] | None, dim: int) -> Verdict:
    if vector is None:
        return Verdict("bad_vector", detail="neither base64 of float32 nor a list of numbers")
    if len(vector) != dim or not dim:
        return Verdict("bad_vector", detail=f"{len(vector)} dimensions, expected {dim}")
    if not np.isfinite(vector).all() or not vector.any():
        return Verdict("bad_vector", detail="NaN, infinite or all zero")
    return Verdict("accepted", vector)
