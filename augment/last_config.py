"""The config that a store was last run with, for commands that go on with what is there."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from pydantic import ValidationError

from augment.config import AugmentConfig
from augment.store import open_readonly
from llmrec_pl.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path


def last_config(folder: Path) -> AugmentConfig:
    """Return the config of a store's last run, with this folder as its store.

    Raises:
        AugmentationError: there is no store.
        ConfigError: it was never run, or by a program with other keys in its config.
    """
    with contextlib.closing(open_readonly(folder)) as db:
        row = db.execute(
            "SELECT config FROM run WHERE config IS NOT NULL ORDER BY id DESC LIMIT 1"
        ).fetchone()
    with contextlib.suppress(ValidationError):
        if row is not None:
            return AugmentConfig.model_validate_json(row[0]).model_copy(update={"store": folder})
    raise ConfigError(
        f"store {str(folder)!r} does not say which config it was run with; name it by `--config`."
    )
