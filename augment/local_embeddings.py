"""Embeddings in this process, for those who have no server: MiniLM, or hashed n-grams.

Both are functions of one text alone, so what a text gets does not depend on its neighbours.
"""

from __future__ import annotations

import asyncio
import base64
import json
from typing import TYPE_CHECKING

import numpy as np

from augment.wire import Call, Reply
from llmrec_pl.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

_BUCKETS = 2**16
_HASHED_DIM = 256
_PROJECTION_SEED = 20_240_304


class LocalEmbeddings:
    """Answers embeddings calls without a network.

    Args:
        model: "minilm" (384 numbers; needs the extra `features` and its weights) or
            "hashing-256" (256 numbers, no weights).

    Raises:
        ConfigError: no such model.
        DatasetError: MiniLM's packages are missing.
    """

    def __init__(self, model: str) -> None:
        self._encode: Callable[[Sequence[str]], NDArray[np.float32]]
        if model == "hashing-256":
            self._encode = _Hashing().encode
        elif model == "minilm":
            from llmrec_pl.data.encoders.text import minilm

            encoder = minilm()
            self._encode = encoder.encode
        else:
            raise ConfigError(f"no embedding model {model!r} in this process.")
        self._one_at_a_time = asyncio.Lock()

    async def send(self, call: Call, journal: Callable[[bytes], None]) -> Reply:
        """Embed the texts of a call."""
        try:
            async with self._one_at_a_time:
                rows = await asyncio.to_thread(self._encode, call.body["input"])
        except Exception as error:  # an answerer raises nothing
            return Reply(status=None, error=error)
        data = [
            {"index": i, "embedding": base64.b64encode(row.astype("<f4").tobytes()).decode()}
            for i, row in enumerate(np.asarray(rows))
        ]
        usage = {"prompt_tokens": 0, "total_tokens": 0}
        body = json.dumps({"model": call.body["model"], "data": data, "usage": usage}).encode()
        journal(body)
        return Reply(status=200, body=body)

    async def close(self) -> None:
        """Nothing to give back."""


class _Hashing:
    """Words and parts of words, hashed and projected by fixed random signs."""

    def __init__(self) -> None:
        from sklearn.feature_extraction.text import HashingVectorizer

        common = {"n_features": _BUCKETS, "norm": None, "alternate_sign": True}
        self._words = HashingVectorizer(ngram_range=(1, 2), **common)
        self._parts = HashingVectorizer(analyzer="char_wb", ngram_range=(3, 5), **common)
        rng = np.random.default_rng(_PROJECTION_SEED)
        self._signs = rng.integers(0, 2, (_BUCKETS, _HASHED_DIM), dtype=np.int8) * 2 - 1

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        rows = np.empty((len(texts), _HASHED_DIM), dtype=np.float32)
        counts = self._words.transform(texts) + 0.5 * self._parts.transform(texts)
        counts.sort_indices()
        for i in range(len(texts)):  # row by row, so that sums never depend on the batch
            begin, end = counts.indptr[i], counts.indptr[i + 1]
            signs = self._signs[counts.indices[begin:end]].astype(np.float64)
            row = counts.data[begin:end] @ signs if end > begin else signs.sum(axis=0)
            norm = float(np.sqrt((row * row).sum()))
            # A text without any letter still is a text: it gets a fixed direction.
            rows[i] = row / norm if norm else np.full(_HASHED_DIM, _HASHED_DIM**-0.5)
        return rows
