"""Runs a cassette through the whole engine: plan, journal, validation, repairs and export.

Nothing is sent. What the original run was answered is answered again in the same order, so the
same store comes of it, and the same export.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from augment.cassette import POOL_FILES, Cassette, pools_of
from augment.clock import SystemClock
from augment.config import AugmentConfig
from augment.errors import ReplayMissError
from augment.export import export
from augment.local_replies import answered, refused
from augment.names import Names
from augment.plan import pool_for
from augment.probe import form_key
from augment.reply_index import ReplyIndex
from augment.runner import Options, Runner, Watcher
from augment.specs import RANDOM, TaskSpec
from augment.store import State, Store, open_readonly
from augment.wire import Reply
from llmrec_pl.data.dataset import InteractionDataset
from llmrec_pl.errors import AugmentationError, ConfigError

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable

    from augment.wire import Call
    from llmrec_pl.data.augmentation import Augmentation

_OPEN_AGAIN = 500


@dataclass(frozen=True, slots=True)
class Replayed:
    """What came of a replay.

    Attributes:
        content_id: of its export.
        expected: of the run that made the cassette.
        unanswered: requests for which the cassette has no (further) reply.
        different: files of the export that differ.
    """

    content_id: str
    expected: str
    unanswered: int
    different: list[str]

    @property
    def same(self) -> bool:
        """Whether the exports are equal, byte for byte."""
        return self.content_id == self.expected


class NotAnsweredError(Exception):
    """What a replay says where the original run got no answer."""


class ReplayAnswerer:
    """Answers from a cassette; see `Answerer`.

    Args:
        index: its replies.
        about: says what a request is for, by its key.
    """

    def __init__(self, index: ReplyIndex, about: Callable[[bytes], str]) -> None:
        self._index, self._about = index, about
        self.unanswered = 0

    async def send(self, call: Call, journal: Callable[[bytes], None]) -> Reply:
        """Answer a call.

        Raises:
            ReplayMissError: the cassette does not know a request, so this program asks something
                else than the one that made it. It ends the run, as any reason to stop.
        """
        begin = time.monotonic()
        if call.endpoint == "embeddings":
            return self._embedded(call, journal, begin)
        raw = self._known(call.keys[0], self._index.take)
        if raw is None:
            return self._nothing(begin)
        journal(raw)
        return Reply(200, {"content-type": "application/json"}, raw)

    def _embedded(self, call: Call, journal: Callable[[bytes], None], begin: float) -> Reply:
        vectors = [self._known(key, self._index.vector) for key in call.keys]
        if None in vectors:  # the engine halves the call until only that text is left
            return self._nothing(begin)
        rows = [
            {"object": "embedding", "index": i, "embedding": base64.b64encode(v or b"").decode()}
            for i, v in enumerate(vectors)
        ]
        content = {"object": "list", "model": call.body.get("model"), "data": rows}
        return answered(content, journal, begin)

    def _nothing(self, begin: float) -> Reply:
        self.unanswered += 1
        return refused(NotAnsweredError("the cassette holds no further answer"), begin)

    def _known(self, key: bytes, find: Callable[[bytes], bytes | None]) -> bytes | None:
        try:
            return find(key)
        except KeyError:
            raise ReplayMissError(
                f"the cassette does not know request {key.hex()}, {self._about(key)}."
            ) from None

    async def close(self) -> None:
        """Nothing is open."""


class Replay:
    """A cassette with the data set and the pools that it needs.

    Args:
        path: the cassette.
        dataset: data set folder; by default the one that the cassette names.
        pool: candidates.parquet; by default the one beside the cassette.

    Raises:
        AugmentationError: no cassette, or made for another data set or pool.
        ConfigError: the data set or the pool is not there.
    """

    def __init__(
        self, path: Path, *, dataset: Path | None = None, pool: Path | None = None
    ) -> None:
        self.path, self.cassette = path, Cassette(path)
        self.config = _config(self.cassette, path, dataset, pool)
        self.dataset = _dataset(self.cassette, self.config.dataset)
        self.specs = {
            kind: TaskSpec.model_validate(spec)
            for kind, spec in self.cassette.header["specs"].items()
        }
        self._check_pool()

    def run(
        self,
        store: Path | None = None,
        out: Path | None = None,
        *,
        watcher: Watcher | None = None,
    ) -> Replayed:
        """Replay, export, and hold the export against the original's.

        Args:
            store: folder for a new store to keep; a temporary one by default.
            out: folder for the export to keep.
            watcher: shows progress.

        Raises:
            AugmentStop: the cassette does not know a request, or the disk is full.
            AugmentationError: there is a store already.
        """
        with tempfile.TemporaryDirectory(prefix="replay-") as folder:
            place = store or Path(folder) / "store"
            if (place / "main.sqlite").exists():
                raise AugmentationError(
                    f"there is a store at {str(place)!r} already; a replay needs a new one."
                )
            index = ReplyIndex(self.cassette, Path(folder))
            with contextlib.closing(index), Store(place, create=True) as opened:
                answerer = ReplayAnswerer(index, self._about(opened))
                self._run(opened, index, answerer, watcher)
            made = export(
                place, self.config, self.dataset, out=out or Path(folder) / "export", overwrite=True
            )
        return self._compared(made, answerer.unanswered)

    def _run(
        self, store: Store, index: ReplyIndex, answerer: ReplayAnswerer, watcher: Watcher | None
    ) -> None:
        store.do(self._tell_forms)
        runner = Runner(
            self.config,
            self.dataset,
            store,
            Options(only=frozenset(self.specs), max_reject_rate=1.0),
            clock=SystemClock(),
            watcher=watcher,
            answerers=lambda _: answerer,
        )
        asyncio.run(runner.run())
        # The original may have asked more often: under another policy, or after `retry-failed`.
        while self._open_again(store, index):
            asyncio.run(runner.run())

    @staticmethod
    def _open_again(store: Store, index: ReplyIndex) -> int:
        keys, opened = index.left_over(), 0
        while some := list(islice(keys, _OPEN_AGAIN)):
            opened += store.do(partial(_open_again, keys=some))
        return opened

    def _tell_forms(self, db: sqlite3.Connection) -> None:
        """Write down which forms of answer the server took; nobody is there to be asked."""
        for spec in self.specs.values():
            name = form_key(spec.provider, spec.model)
            if spec.kind != "embed":
                db.execute("INSERT OR IGNORE INTO meta VALUES (?, ?)", (name, spec.structured))

    def _about(self, store: Store) -> Callable[[bytes], str]:
        def describe(key: bytes) -> str:
            with contextlib.closing(open_readonly(store.folder)) as db:
                kind, entity, number, text = _wanter(db, key)
            spec = TaskSpec.model_validate_json(text)
            who = Names(self.dataset).of(kind, entity, number)
            return f"which asks {kind} for {who}{_difference(self.specs.get(spec.kind), spec)}"

        return describe

    def _check_pool(self) -> None:
        spec = self.specs.get("pairs")
        if spec is None:
            return
        pool = pool_for("pairs", self.config, self.dataset)
        if pool is not None and pool.sha256 != spec.settings["pool"]:
            raise AugmentationError(
                f"the candidate pool has sha256 {pool.sha256[:12]}…, the cassette was made with "
                f"{spec.settings['pool'][:12]}…; give the one it was made with by `--pool`."
            )

    def _compared(self, made: Augmentation, unanswered: int) -> Replayed:
        said = self.cassette.header["export"]
        ours, theirs = made.manifest["files"], said["files"]
        names = sorted({*ours, *theirs})
        return Replayed(
            content_id=made.content_id,
            expected=said["content_id"],
            unanswered=unanswered,
            different=[name for name in names if ours.get(name) != theirs.get(name)],
        )


def _config(
    cassette: Cassette, path: Path, dataset: Path | None, pool: Path | None
) -> AugmentConfig:
    """Return the config of the original, without cost, rates and addresses.

    Raises:
        ConfigError: the pool is not there.
    """
    values = cassette.header["config"]
    values["provider"] |= {"free": True, "rpm": None, "tpm": None}
    values["max_usd"] = None
    if dataset is not None:
        values["dataset"] = str(dataset)
    pairs = values["tasks"]["pairs"]
    if pairs is not None and pairs["pool"] != RANDOM:
        pairs["pool"] = str(pool or pools_of(path) / POOL_FILES[0])
        if not Path(pairs["pool"]).is_file():
            raise ConfigError(
                f"the cassette's candidate pool is not at {pairs['pool']!r}; copy the folder "
                f"{pools_of(path).name!r} with the cassette, or say `--pool FILE`."
            )
    return AugmentConfig.model_validate(values)


def _dataset(cassette: Cassette, folder: Path) -> InteractionDataset:
    said = cassette.header["dataset"]
    if not folder.is_dir():
        raise ConfigError(
            f"no data set at {str(folder)!r}; say with `--dataset DIR` where {said['name']!r} "
            f"(fingerprint {said['fingerprint'][:12]}…) lies, `python -m llmrec_pl prepare` makes "
            "it."
        )
    dataset = InteractionDataset.load(folder)
    if dataset.fingerprint != said["fingerprint"]:
        raise AugmentationError(
            f"data set {str(folder)!r} has fingerprint {dataset.fingerprint[:12]}…, the cassette "
            f"was made with {said['fingerprint'][:12]}… ({said['name']!r}); give that by "
            "`--dataset`."
        )
    return dataset


def _open_again(db: sqlite3.Connection, keys: list[bytes]) -> int:
    """Plan those requests again that were set aside too early; returns how many."""
    marks = ", ".join("?" * len(keys))
    return db.execute(
        "UPDATE request SET state = ?, tries = 0, rejects = 0 WHERE state = ? AND "
        f"key IN ({marks})",
        (State.PLANNED, State.QUARANTINED, *keys),
    ).rowcount


def _wanter(db: sqlite3.Connection, key: bytes) -> tuple[str, int, int, str]:
    """Return task, entity, field and spec of a request, or of the one it follows up."""
    request, parent, kind, text = db.execute(
        "SELECT r.id, r.parent, s.kind, s.json FROM request r JOIN spec s ON s.id = r.spec "
        "WHERE r.key = ?",
        (key,),
    ).fetchone()
    while parent is not None:
        request = parent
        (parent,) = db.execute("SELECT parent FROM request WHERE id = ?", (request,)).fetchone()
    entity, number = db.execute(
        "SELECT entity, field FROM wanted WHERE request = ? ORDER BY entity, field", (request,)
    ).fetchone()
    return kind, entity, number, text


def _difference(theirs: TaskSpec | None, ours: TaskSpec) -> str:
    """Say in what the task differs from that of the cassette."""
    if theirs is None or theirs == ours:
        return ""
    before: dict[str, Any] = theirs.model_dump()
    names = [name for name, value in ours.model_dump().items() if value != before[name]]
    told = ", ".join(f"{name} was {json.dumps(before[name])[:80]}" for name in names)
    return f" (another task than in the cassette: {told})"
