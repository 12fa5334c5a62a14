"""RecBole as a counterpart: its own environment, our split in its format, one trial a process."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.trials import Outcome
from llmrec_pl.errors import LLMRecError

if TYPE_CHECKING:
    from benchmarks.trials import Trial
    from llmrec_pl.data.dataset import InteractionDataset

VERSION = "1.2.1"
DATA_NAME = "our-split"  # a name RecBole ships itself would make it read its own files
REQUIREMENTS = (
    "torch==2.13.0",
    "numpy==1.26.4",  # RecBole uses `np.float_`, which NumPy 2 removed
    "scipy==1.12.0",  # and a private method of `dok_matrix`, gone in 1.13
    "pandas==2.2.3",
    "scikit-learn==1.5.2",
    "colorlog==4.7.2",
    "colorama",
    "plotly",
    "psutil",
    "pyyaml",
    "tabulate",
    "tensorboard",
    "texttable",
    "thop",
    "tqdm",
)
WORKER = Path(__file__).with_name("recbole_worker.py")


def prepare_environment(folder: Path) -> Path:
    """Make RecBole's environment unless it is there, and return its interpreter.

    Args:
        folder: of the environment; made, or made anew where an earlier attempt broke off.

    Raises:
        LLMRecError: a package cannot be installed.
    """
    python = folder.absolute() / ("Scripts" if os.name == "nt" else "bin") / "python"
    done = folder / "recbole-ready"
    if done.exists() and done.read_text(encoding="utf-8") == VERSION:
        return python
    if not (3, 8) <= sys.version_info[:2] <= (3, 12):
        raise LLMRecError(
            f"RecBole {VERSION} needs NumPy 1 and hence Python 3.12 or older, this is "
            f"{sys.version.split()[0]}; run the benchmark with Python 3.11."
        )
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, with_pip=True)
    for arguments in (REQUIREMENTS, ("--no-deps", f"recbole=={VERSION}")):
        command = [str(python), "-m", "pip", "install", "--quiet", *arguments]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode:
            raise LLMRecError(
                f"cannot make RecBole's environment in {str(folder)!r}: "
                f"{result.stderr.strip().splitlines()[-1]}. Give `--skip-recbole` to do without."
            )
    done.write_text(VERSION, encoding="utf-8")
    return python


def write_atomic_files(dataset: InteractionDataset, folder: Path) -> Path:
    """Write our split as RecBole benchmark files, ids as they are in our data set.

    The ``.user`` and ``.item`` files list every id, so that RecBole's catalogue is ours even
    where an item has no interaction. Train and validation are real; RecBole never gets the test
    interactions, in whose place one train edge stands, since it insists on a test file.

    Args:
        dataset: the test split may stay sealed.
        folder: ``<folder>/<DATA_NAME>/`` is written.

    Returns:
        `folder`.
    """
    target = folder / DATA_NAME
    target.mkdir(parents=True, exist_ok=True)
    for side, n in (("user", dataset.n_users), ("item", dataset.n_items)):
        rows = "".join(f"{i}\n" for i in range(n))
        (target / f"{DATA_NAME}.{side}").write_text(f"{side}_id:token\n{rows}", encoding="utf-8")
    for split, matrix in (("train", dataset.train), ("valid", dataset.val)):
        _write_edges(target / f"{DATA_NAME}.{split}.inter", np.stack(matrix.tocoo().coords))
    _write_edges(target / f"{DATA_NAME}.test.inter", np.stack(dataset.train.tocoo().coords)[:, :1])
    return folder


def _write_edges(path: Path, edges: np.ndarray) -> None:
    rows = "".join(f"{user}\t{item}\n" for user, item in edges.T.tolist())
    path.write_text(f"user_id:token\titem_id:token\n{rows}", encoding="utf-8")


def train(trial: Trial, python: Path, data: Path, out: Path) -> Outcome:
    """Run one trial in RecBole's environment.

    Args:
        trial: ``settings`` holds RecBole's own names, and ``lr`` and ``batch_size`` for a model
            trained by gradients.
        python: interpreter of the environment.
        data: folder of the atomic files.
        out: path without suffix for the worker's two files, which are removed.

    Raises:
        LLMRecError: the worker failed.
    """
    job = {
        "data": str(data.resolve()),
        "name": DATA_NAME,
        "model": trial.model,
        "settings": trial.settings,
        "budget": dataclasses.asdict(trial.budget),
        "out": str(out.resolve()),
    }
    result = subprocess.run(
        [str(python), str(WORKER)],
        input=json.dumps(job),
        capture_output=True,
        text=True,
        check=False,
        cwd=out.parent,  # RecBole writes its logs into the working directory
    )
    record = out.with_suffix(".json")
    if result.returncode or not record.exists():
        last = (result.stderr.strip().splitlines() or ["no message"])[-1]
        raise LLMRecError(f"RecBole failed on {trial.label()!r}: {last}")
    content = json.loads(record.read_text(encoding="utf-8"))
    with np.load(out.with_suffix(".npz")) as arrays:
        outcome = Outcome(arrays["user"], arrays["item"], content["cost"], content["reported"])
    record.unlink()
    out.with_suffix(".npz").unlink()
    return outcome
