"""The raw files of a data set, found in a folder, one folder deeper, or in a .zip.

Nothing is unpacked: members of a zip are read into memory, so a hostile path in an archive
cannot write anywhere.
"""

from __future__ import annotations

import dataclasses
import io
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from llmrec_pl.errors import DatasetError

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclasses.dataclass(frozen=True)
class RawFiles:
    """The files of one level of a folder or zip, by base name.

    Attributes:
        path: the folder or zip that the user named.
        members: base name -> path of the file, or name of the member inside the zip.
    """

    path: Path
    members: dict[str, str]

    def __contains__(self, name: str) -> bool:
        return name in self.members

    def where(self, name: str) -> str:
        """Return how to call a file in a message."""
        if self.path.suffix == ".zip":
            return f"{self.path}:{self.members.get(name, name)}"
        return self.members.get(name, str(self.path / name))

    def file(self, name: str) -> Path | None:
        """Return the path of a file, or None inside a zip."""
        return None if self.path.suffix == ".zip" else Path(self.members[name])

    def read(self, name: str) -> bytes:
        """Return the bytes of a file.

        Raises:
            DatasetError: the file is missing or cannot be read.
        """
        if name not in self.members:
            raise DatasetError(
                f"`{name}` is missing in {str(self.path)!r}; it has {sorted(self.members)[:20]}. "
                "Unpack the data set again."
            )
        try:
            if self.path.suffix == ".zip":
                with zipfile.ZipFile(self.path) as archive:
                    return archive.read(self.members[name])
            return Path(self.members[name]).read_bytes()
        except (OSError, zipfile.BadZipFile, zlib.error, RuntimeError) as error:
            raise DatasetError(
                f"cannot read {self.where(name)!r}: {error}. Fetch or unpack the data set again."
            ) from error


def open_raw(path: Path, markers: set[str]) -> RawFiles:
    """Find the level of a folder or zip that holds one of the expected files.

    Looks in the folder itself first, then in its sub-folders in alphabetical order.

    Args:
        path: a folder or a ``.zip``.
        markers: base names of which at least one must be there.

    Raises:
        DatasetError: the path does not exist, is no folder or zip, or holds none of `markers`.
    """
    levels = _levels(path)
    for members in levels:
        if markers & members.keys():
            return RawFiles(path, members)
    seen = sorted({name for members in levels for name in members})
    raise DatasetError(
        f"{str(path)!r} holds none of {sorted(markers)}; it has {seen[:20]}. Name the unpacked "
        "folder or the .zip of the data set with `--source`."
    )


def open_inter(path: Path) -> tuple[RawFiles, str]:
    """Open a folder or zip with one data set whose interactions lie in ``<name>.inter``.

    Returns:
        The files, and the name of that file.

    Raises:
        DatasetError: there is no such file, or more than one.
    """
    found = sorted(name for name in list_files(path) if name.endswith(".inter"))
    if len(found) != 1:
        raise DatasetError(
            f"{str(path)!r} must hold exactly one `.inter` file, it has {found or 'none'}. Name "
            "the folder of one data set with `--source`."
        )
    return open_raw(path, set(found)), found[0]


def read_matrix(files: RawFiles, name: str) -> NDArray[np.floating[Any]]:
    """Return a ready-made feature matrix, memory-mapped where the file lies in a folder.

    Raises:
        DatasetError: it cannot be read, or is no matrix of floats.
    """
    path = files.file(name)
    try:
        values: NDArray[Any] = (
            np.load(path, mmap_mode="r", allow_pickle=False)
            if path is not None
            else np.load(io.BytesIO(files.read(name)), allow_pickle=False)
        )
    except (ValueError, OSError, EOFError) as error:
        raise DatasetError(
            f"cannot read {files.where(name)!r}: {error}. Fetch it again."
        ) from error
    if values.ndim != 2 or values.dtype.kind != "f":
        raise DatasetError(
            f"{files.where(name)!r} has shape {values.shape} and type {values.dtype}; expected "
            "a matrix of floats with one row an item."
        )
    return values


def list_files(path: Path) -> set[str]:
    """Return the base names of all files that `open_raw` would look at.

    Raises:
        DatasetError: the path does not exist, or is no folder or zip.
    """
    return {name for members in _levels(path) for name in members}


def _levels(path: Path) -> list[dict[str, str]]:
    """List the files of a folder or zip by level, the top level first."""
    if path.is_dir():
        folders = [path, *sorted(p for p in path.iterdir() if p.is_dir())]
        return [{p.name: str(p) for p in sorted(f.iterdir()) if p.is_file()} for f in folders]
    if not path.exists():
        raise DatasetError(
            f"{str(path)!r} does not exist; name a folder or a .zip with `--source`."
        )
    if not zipfile.is_zipfile(path) or path.suffix != ".zip":
        raise DatasetError(
            f"{str(path)!r} is neither a folder nor a readable .zip; fetch it again or name the "
            "unpacked folder with `--source`."
        )
    levels: dict[str, dict[str, str]] = {}
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if not info.is_dir():
                member = PurePosixPath(info.filename)
                levels.setdefault(str(member.parent), {})[member.name] = info.filename
    return [
        levels[k] for k in sorted(levels, key=lambda k: (0 if k == "." else k.count("/") + 1, k))
    ]
