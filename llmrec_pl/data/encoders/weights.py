"""Where the weights of an encoder lie: a local folder, an installed package, or the hub.

Pickled weights are not accepted from the hub: only safetensors are fetched.
"""

from __future__ import annotations

import contextlib
import hashlib
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from llmrec_pl.data.dataset import sha256_file
from llmrec_pl.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

MODEL_FILES = ("*.json", "*.txt", "*.model", "*.safetensors")
_OTHER_RUNTIMES = ("onnx/*", "openvino/*", "coreml/*")


def require(module: str, purpose: str, install: str) -> ModuleType:
    """Import an optional library.

    Raises:
        ConfigError: it is not installed, or broken; the message says how to install it.
    """
    try:
        return import_module(module)
    except (ImportError, RuntimeError, OSError) as error:
        # a torchvision built for another torch fails with RuntimeError, a missing .so with OSError
        raise ConfigError(
            f"{purpose} needs `{module}`, which cannot be imported ({error}); install it with "
            f"`{install}` or choose another `--encoder`."
        ) from error


def package_folder(module: str, purpose: str, install: str) -> Path:
    """Return the folder of an installed package without importing it.

    Raises:
        ConfigError: the package is not installed.
    """
    found = find_spec(module)
    if found is None or not found.submodule_search_locations:
        raise ConfigError(
            f"{purpose} needs the weights in the package `{module}`, which is not installed; "
            f"install it with `{install}` or choose another `--encoder`."
        )
    return Path(next(iter(found.submodule_search_locations)))


def model_folder(spec: str) -> Path:
    """Find the files of a model, fetching them from the hub if they are not on this machine.

    Args:
        spec: a local folder, or a hub id such as "sentence-transformers/all-MiniLM-L6-v2".

    Returns:
        A folder that holds ``config.json``.

    Raises:
        ConfigError: no such folder, an unknown encoder name, or the hub cannot be reached and
            the model was never fetched.
    """
    folder = Path(spec).expanduser()
    if not folder.is_dir():
        if spec.startswith((".", "~", "/")) or spec.count("/") != 1:
            raise ConfigError(
                f"encoder {spec!r} is neither a name this program knows nor a folder; give "
                "`auto`, `tfidf`, `minilm` or `efficientnet-lite0`, the path of a folder with "
                "`config.json`, or a hub id written `owner/model`."
            )
        folder = _from_hub(spec)
    if not (folder / "config.json").is_file():
        raise ConfigError(
            f"model folder {str(folder)!r} has no `config.json`; give the folder that "
            "`save_pretrained` wrote."
        )
    return folder


def _from_hub(spec: str) -> Path:
    hub = require("huggingface_hub", f"encoder {spec!r}", "pip install 'llmrec_pl[features]'")
    try:
        return Path(
            hub.snapshot_download(
                spec, allow_patterns=list(MODEL_FILES), ignore_patterns=list(_OTHER_RUNTIMES)
            )
        )
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(
            f"the weights of encoder {spec!r} are neither a folder here nor in the hub's cache, "
            f"and cannot be fetched ({reason}). Without network: copy the model folder from a "
            "machine that has it and give its path, or use `--encoder minilm` or `--encoder "
            "tfidf` for text and `--encoder efficientnet-lite0` for images, whose weights come "
            "with pip or are not needed."
        ) from error


def folder_hash(folder: Path) -> str:
    """Return one sha256 over the files that decide a model's vectors: weights and settings."""
    digest = hashlib.sha256()
    files = {path for pattern in MODEL_FILES for path in folder.rglob(pattern) if path.is_file()}
    for path in sorted(files):
        name = path.relative_to(folder).as_posix()
        digest.update(f"{name}\0{sha256_file(path)}\n".encode())
    return digest.hexdigest()


def pick_device(device: str) -> str:
    """Resolve "auto" to "cuda" where there is one, else "cpu"."""
    if device != "auto":
        return device
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


@contextlib.contextmanager
def quiet_transformers(transformers: ModuleType) -> Iterator[None]:
    """Hide the library's own loading bars and remarks; they would tear ours."""
    log = transformers.utils.logging
    verbosity, bar = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(verbosity)
        if bar:
            log.enable_progress_bar()
