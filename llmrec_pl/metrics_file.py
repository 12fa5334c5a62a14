"""The curve of a training run as ``metrics.csv``, whole also where the run was resumed."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

if TYPE_CHECKING:
    from collections.abc import Mapping

_Row = dict[str, Any]


class MetricsFile(Logger):
    """Writes each set of logged metrics as a row of ``metrics.csv``.

    Lightning's `CSVLogger` deletes the file when a run goes on in its folder. Here its rows stay,
    but for those of the steps that are trained again.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.folder = folder
        self._rows: list[_Row] | None = None
        self._columns: list[str] = []

    @property
    def name(self) -> str:
        """Nothing: the folder has the run's name."""
        return ""

    @property
    def version(self) -> str:
        """Nothing: the folder is the run's own."""
        return ""

    @property
    def save_dir(self) -> str:
        """The run's folder."""
        return self.folder

    @property
    def log_dir(self) -> str:
        """The run's folder."""
        return self.folder

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        """Write nothing: the run's ``config.yaml`` has them."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append a row; the first one of a process takes the place of rows from its step on.

        Args:
            metrics: name to value.
            step: number of the batch.
        """
        row: _Row = {**metrics, "step": 0 if step is None else step}
        path = Path(self.folder) / "metrics.csv"
        whole = self._rows is None or not row.keys() <= set(self._columns)
        if self._rows is None:
            self._rows = [r for r in _read(path) if int(r["step"]) < row["step"]]
        self._rows.append(row)
        if not whole:
            with path.open("a", encoding="utf-8", newline="") as file:
                csv.DictWriter(file, self._columns).writerow(row)
            return
        self._columns = sorted({key for r in self._rows for key in r})
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.tmp")
        with temporary.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, self._columns)
            writer.writeheader()
            writer.writerows(self._rows)
        temporary.replace(path)


def _read(path: Path) -> list[_Row]:
    """Return the rows of an earlier process; a last one that was cut off is left out."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    whole = [line for line in lines if line.endswith("\n")]
    return [row for row in csv.DictReader(whole) if str(row.get("step")).isdigit()]
