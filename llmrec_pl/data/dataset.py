"""The canonical data set: sizes, splits as CSR matrices, original ids and one fingerprint.

Reads and validates the folder that ``prepare`` wrote. Knows nothing of Lightning, of sampling
or of raw formats.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import scipy.sparse as sp

from llmrec_pl.edges import edges_to_csr as edges_to_csr
from llmrec_pl.errors import DatasetError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import polars as pl
    from numpy.typing import NDArray

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
FORMAT_VERSION = 1
INTERACTIONS, USERS, ITEMS, META = (
    "interactions.parquet",
    "users.parquet",
    "items.parquet",
    "dataset.json",
)
_AT_ONCE = 1 << 20


def sha256_file(path: Path) -> str:
    """Return the sha256 of a file's bytes as hex, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_fingerprint(
    protocol: Mapping[str, Any],
    user_ids: NDArray[np.str_],
    item_ids: NDArray[np.str_],
    splits: Mapping[Split, sp.csr_array],
) -> str:
    """Hash what a data set means: protocol, ids and the edges of each split.

    The hash is over the arrays, not over the parquet bytes, so it does not depend on the
    version of the library that wrote them.

    Returns:
        A sha256 as hex.
    """
    digest = hashlib.sha256(b"llmrec_pl data set v1\0")
    digest.update(json.dumps(protocol, sort_keys=True, ensure_ascii=False).encode())
    for ids in (user_ids, item_ids):
        for start in range(0, len(ids), _AT_ONCE):
            joined = "\0".join(ids[start : start + _AT_ONCE].tolist())
            digest.update(b"\0" * (start > 0) + joined.encode())
        digest.update(b"\1")
    for split in SPLITS:
        for array in (splits[split].indptr, splits[split].indices):
            for start in range(0, len(array), _AT_ONCE):
                digest.update(array[start : start + _AT_ONCE].astype("<i8"))
    return digest.hexdigest()


@dataclasses.dataclass(frozen=True)
class InteractionDataset:
    """Interactions of ``n_users`` users with ``n_items`` items, split into train, val and test.

    The test split is sealed: reading ``test`` raises unless the data set was loaded with
    ``open_test=True``, which only the ``test`` subcommand does.

    Attributes:
        name: name of the data set.
        splits: one boolean CSR matrix ``[n_users, n_items]`` a split; ``test`` only if opened.
        user_ids: original user ids, ``[n_users]`` strings.
        item_ids: original item ids, ``[n_items]`` strings.
        fingerprint: sha256 over protocol, ids and edges.
        meta: the content of ``dataset.json``.
        root: the canonical folder, None for a data set made in memory.
        extra_edges: further user-item edges for message passing, ``[2, n]``; not targets.
    """

    name: str
    splits: Mapping[Split, sp.csr_array]
    user_ids: NDArray[np.str_]
    item_ids: NDArray[np.str_]
    fingerprint: str
    meta: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    root: Path | None = None
    extra_edges: NDArray[np.int64] | None = None

    @property
    def n_users(self) -> int:
        """Number of users."""
        return len(self.user_ids)

    @property
    def n_items(self) -> int:
        """Number of items in the catalogue; all of them are ranked."""
        return len(self.item_ids)

    @property
    def train(self) -> sp.csr_array:
        """Train interactions, boolean CSR ``[n_users, n_items]``."""
        return self.splits["train"]

    @property
    def val(self) -> sp.csr_array:
        """Validation interactions, boolean CSR ``[n_users, n_items]``."""
        return self.splits["val"]

    @property
    def test(self) -> sp.csr_array:
        """Test interactions, boolean CSR ``[n_users, n_items]``.

        Raises:
            DatasetError: the split is sealed.
        """
        if "test" not in self.splits:
            raise DatasetError(
                f"the test split of {self.name!r} is sealed; only `python -m llmrec_pl test` opens "
                "it. Select models on `val`."
            )
        return self.splits["test"]

    def known_items(self) -> sp.csr_array:
        """Return train and validation interactions together, with sorted indices."""
        known = sp.csr_array(self.train + self.val)
        known.sort_indices()
        return known

    def graph_edges(self) -> NDArray[np.int64]:
        """Return the edges for message passing: train, and ``extra_edges`` where given.

        Returns:
            Distinct (user, item) pairs ``[2, n_edges]``, sorted by user, then item.
        """
        matrix = self.train
        if self.extra_edges is not None:
            train = matrix.tocoo()
            users = np.concatenate([train.coords[0], self.extra_edges[0]])
            items = np.concatenate([train.coords[1], self.extra_edges[1]])
            matrix = edges_to_csr(users, items, self.n_users, self.n_items)
        edges = np.empty((2, matrix.nnz), dtype=np.int64)
        edges[0] = np.repeat(np.arange(self.n_users), np.diff(matrix.indptr))
        edges[1] = matrix.indices
        return edges

    def users_frame(self) -> pl.DataFrame:
        """Return the user table (``user``, ``user_id``, text columns), ordered by dense id."""
        return self._frame(USERS, "user", self.user_ids)

    def items_frame(self) -> pl.DataFrame:
        """Return the item table (``item``, ``item_id``, text columns), ordered by dense id."""
        return self._frame(ITEMS, "item", self.item_ids)

    def titles(self) -> list[str]:
        """Return one readable label an item: title and year, else its original id."""
        frame = self.items_frame()
        titles = frame["title"] if "title" in frame.columns else [None] * frame.height
        years = frame["year"] if "year" in frame.columns else [None] * frame.height
        return [
            (f"{title} ({year})" if year else str(title)) if title else str(item_id)
            for title, year, item_id in zip(titles, years, self.item_ids, strict=True)
        ]

    def _frame(self, file: str, column: str, ids: NDArray[np.str_]) -> pl.DataFrame:
        import polars as pl

        if self.root is None:
            return pl.DataFrame({column: np.arange(len(ids)), f"{column}_id": ids.tolist()})
        return pl.read_parquet(self.root / file).sort(column)

    @classmethod
    def from_edges(
        cls,
        name: str,
        n_users: int,
        n_items: int,
        train: NDArray[Any],
        val: NDArray[Any] | None = None,
        test: NDArray[Any] | None = None,
    ) -> InteractionDataset:
        """Build a data set in memory, mostly for tests and notebooks.

        Args:
            name: name of the data set.
            n_users: number of users.
            n_items: number of items.
            train: (user, item) pairs, ``[2, n]``.
            val: the same for validation; empty by default.
            test: the same for test; empty by default, and open.
        """
        empty = np.zeros((2, 0), dtype=np.int64)
        parts = {"train": train, "val": val, "test": test}
        splits: dict[Split, sp.csr_array] = {}
        for split in SPLITS:
            part = parts[split]
            pairs = empty if part is None else np.asarray(part, dtype=np.int64)
            splits[split] = edges_to_csr(pairs[0], pairs[1], n_users, n_items)
        user_ids = np.array([str(u) for u in range(n_users)], dtype=np.str_)
        item_ids = np.array([str(i) for i in range(n_items)], dtype=np.str_)
        fingerprint = content_fingerprint({"name": name}, user_ids, item_ids, splits)
        return cls(name, splits, user_ids, item_ids, fingerprint)

    @classmethod
    def load(
        cls, root: Path | str, *, open_test: bool = False, verify: bool = True
    ) -> InteractionDataset:
        """Read a canonical folder and check it.

        Args:
            root: the folder that ``prepare`` wrote.
            open_test: also give access to the test split.
            verify: compare file hashes and the fingerprint with ``dataset.json``.

        Raises:
            DatasetError: a file is missing, damaged or inconsistent, or train is empty.
        """
        root = Path(root)
        meta = read_meta(root)
        if verify:
            _verify_files(root, meta)
        user_ids = _read_ids(root, USERS, "user", meta["n_users"])
        item_ids = _read_ids(root, ITEMS, "item", meta["n_items"])
        splits = _read_splits(root, len(user_ids), len(item_ids))
        if verify:
            found = content_fingerprint(meta["protocol"], user_ids, item_ids, splits)
            if found != meta["fingerprint"]:
                raise DatasetError(
                    f"data set {str(root)!r} has fingerprint {found[:12]}… but `{META}` says "
                    f"{meta['fingerprint'][:12]}…; the folder was edited. Run `prepare` again."
                )
        if splits["train"].nnz == 0:
            raise DatasetError(
                f"data set {str(root)!r} has no train interactions; loosen the filters of "
                "`prepare`."
            )
        _check_disjoint(splits, item_ids, user_ids, root)
        if not open_test:
            del splits["test"]
        return cls(meta["name"], splits, user_ids, item_ids, meta["fingerprint"], meta, root)


def read_meta(root: Path) -> dict[str, Any]:
    """Read ``dataset.json`` of a canonical folder.

    Raises:
        DatasetError: the folder or the file is missing, or not of this format.
    """
    path = root / META
    if not path.is_file():
        raise DatasetError(
            f"no data set at {str(root)!r} (`{META}` is missing). Make it with "
            f"`python -m llmrec_pl prepare DATASET --out {root}`; its --help lists them."
        )
    try:
        meta: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise DatasetError(
            f"{str(path)!r} is not valid JSON ({error}). Run `prepare` again."
        ) from error
    if meta.get("format") != FORMAT_VERSION:
        raise DatasetError(
            f"{str(path)!r} has format {meta.get('format')!r}, this version reads "
            f"{FORMAT_VERSION}. Run `prepare` again."
        )
    return meta


def write_meta(root: Path, meta: Mapping[str, Any]) -> None:
    """Replace ``dataset.json`` in one step."""
    temporary = root / f"{META}.tmp"
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(meta, file, indent=1, ensure_ascii=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(root / META)


def _check_disjoint(
    splits: Mapping[Split, sp.csr_array],
    item_ids: NDArray[np.str_],
    user_ids: NDArray[np.str_],
    root: Path,
) -> None:
    """Refuse a pair in two splits: it would be masked and still counted as held out."""
    for first, second in (("train", "val"), ("train", "test"), ("val", "test")):
        both = sp.coo_array(splits[first].multiply(splits[second]))  # type: ignore[index]
        if both.nnz:
            user, item = (int(c[0]) for c in both.coords)
            raise DatasetError(
                f"{both.nnz} interactions of {str(root)!r} are in {first!r} and in {second!r}, the "
                f"first of user {str(user_ids[user])!r} with item {str(item_ids[item])!r}; run "
                "`prepare` again."
            )


def _verify_files(root: Path, meta: Mapping[str, Any]) -> None:
    for name, expected in meta["files"].items():
        path = root / name
        if not path.is_file():
            raise DatasetError(f"data set file {str(path)!r} is missing. Run `prepare` again.")
        found = sha256_file(path)
        if found != expected:
            raise DatasetError(
                f"data set file {str(path)!r} is damaged or edited: sha256 is {found[:12]}…, "
                f"`{META}` says {expected[:12]}…. Run `prepare` again."
            )


def _read_parquet(
    path: Path, columns: list[str], query: Callable[[pl.LazyFrame], pl.LazyFrame] = lambda x: x
) -> pl.DataFrame:
    """Read columns, or what a query makes of them, without holding more than its result."""
    import polars as pl

    try:
        return query(pl.scan_parquet(path).select(columns)).collect(engine="streaming")
    except (pl.exceptions.PolarsError, OSError) as error:
        first = str(error).splitlines()[0]
        raise DatasetError(
            f"cannot read columns {columns} of {str(path)!r}: {first}. The file is missing, "
            "truncated or of another format; run `prepare` again."
        ) from error


def _read_ids(root: Path, file: str, column: str, n: int) -> NDArray[np.str_]:
    frame = _read_parquet(root / file, [column, f"{column}_id"]).sort(column)
    if not np.array_equal(frame[column].to_numpy(), np.arange(n)):
        raise DatasetError(
            f"`{file}` in {str(root)!r} must number its rows 0..{n - 1} in column `{column}`; "
            f"it has {frame.height} rows. Run `prepare` again."
        )
    return np.array(frame[f"{column}_id"].to_list(), dtype=np.str_)


def _read_splits(root: Path, n_users: int, n_items: int) -> dict[Split, sp.csr_array]:
    import polars as pl

    path, columns = root / INTERACTIONS, ["user", "item", "split"]
    ids, split = pl.col("user", "item"), pl.col("split")
    bounds = ids.min().name.suffix("_low"), ids.max().name.suffix("_high")
    said = _read_parquet(
        path, columns, lambda frame: frame.select(*bounds, split.unique().implode())
    ).row(0, named=True)
    for column, n in (("user", n_users), ("item", n_items)):
        low, high = said[f"{column}_low"] or 0, said[f"{column}_high"] or 0
        if said["split"] and (low < 0 or high >= n):
            bad = high if high >= n else low
            raise DatasetError(
                f"`{INTERACTIONS}` in {str(root)!r} has {column} {bad} but n_{column}s={n}; "
                f"ids must be in 0..{n - 1}. Run `prepare` again."
            )
    unknown = set(said["split"]) - set(SPLITS)
    if unknown:
        raise DatasetError(
            f"`{INTERACTIONS}` in {str(root)!r} has split {sorted(map(str, unknown))}; "
            f"expected {list(SPLITS)}. Run `prepare` again."
        )
    splits: dict[Split, sp.csr_array] = {}
    for name in SPLITS:
        wanted = split == name
        part = _read_parquet(path, columns, lambda frame, w=wanted: frame.filter(w).select(ids))  # type: ignore[misc]
        splits[name] = edges_to_csr(
            part["user"].to_numpy(), part["item"].to_numpy(), n_users, n_items
        )
    return splits
