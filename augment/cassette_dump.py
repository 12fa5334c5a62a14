"""Writes a cassette of a store: equal stores give equal bytes, and no key gets into it."""

from __future__ import annotations

import base64
import contextlib
import gzip
import itertools
import json
import os
import tempfile
import zlib
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self, cast

from augment.answers import choose_specs, texts_to_embed
from augment.batch_files import sync_folder
from augment.cassette import FORMAT, POOL_FILES, VERSION, Counts, pools_of
from augment.config import PRESETS
from augment.plan import pool_for, wanted
from augment.plan_rows import plan_row
from augment.specs import RANDOM, canonical_json
from augment.store import State, open_readonly
from augment.store.claims import unpack
from augment.store.lock import StoreLock
from augment.store.vectors import VectorFile
from llmrec_pl.errors import AugmentationError, ConfigError

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Iterator

    from augment.config import AugmentConfig
    from augment.specs import Kind, TaskSpec
    from llmrec_pl.data.dataset import InteractionDataset

    Specs = dict[Kind, tuple[int, TaskSpec]]

_SHORTEST_KEY = 8
_NOT_TRANSPORT: dict[str, Any] = {"base_urls": [], "key_env": None, "prices": None}

_REPLIES = (
    "SELECT r.key, r.spec, r.draw, r.body, a.raw, EXISTS (SELECT 1 FROM result t JOIN verdict v "
    "ON v.attempt = a.id AND v.request = r.id AND v.validator = t.validator AND v.code = "
    "'accepted' WHERE t.request = r.id AND t.attempt > a.id) FROM attempt a CROSS JOIN call_item c "
    "ON c.attempt = a.id CROSS JOIN request r ON r.id = c.request CROSS JOIN spec s ON "
    "s.id = r.spec WHERE a.raw IS NOT NULL AND s.kind <> 'embed' ORDER BY a.id"
)
_REST = (
    "SELECT r.key, r.spec, r.body, r.draw, r.state, ifnull(r.last_code, ''), s.kind FROM request r "
    "JOIN spec s ON s.id = r.spec WHERE s.kind = 'embed' OR NOT EXISTS (SELECT 1 FROM call_item c "
    "JOIN attempt a ON a.id = c.attempt WHERE c.request = r.id AND a.raw IS NOT NULL) ORDER BY r.id"
)


def dump(
    store: Path,
    config: AugmentConfig,
    dataset: InteractionDataset,
    out: Path,
    progress: Callable[[int], None] = lambda _: None,
) -> Counts:
    """Write all replies of a store, and beside them the pools that were asked about.

    Args:
        store: folder of the journal, on which nobody works meanwhile.
        config: what a replay runs and exports; other tasks' replies are kept too.
        dataset: the data set.
        out: ``NAME.jsonl.gz``, or ``NAME.jsonl`` without compression.
        progress: is told the number of lines written.

    Raises:
        AugmentationError: a key in use stands in a reply, a vector is missing, or the store holds
            no answers for this config.
        ConfigError: `out` has another ending.
        LockedStop: somebody works on the store.
    """
    if not out.name.endswith((".jsonl", ".jsonl.gz")):
        raise ConfigError(
            f"cannot write {str(out)!r}: a cassette's name ends in .jsonl.gz (or .jsonl)."
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    counts = Counts()
    with contextlib.ExitStack() as closing:
        db = closing.enter_context(contextlib.closing(open_readonly(store)))
        lock = StoreLock(store)
        closing.callback(lock.release)
        db.execute("BEGIN")
        vectors = closing.enter_context(contextlib.closing(VectorFile(store, readonly=True)))
        specs = choose_specs(db, config, dataset)
        header = _header(store, config, dataset, specs)
        writer = closing.enter_context(_Writer(out, live_keys(config)))
        writer.write(header)
        found = itertools.chain(_entries(db, vectors), _never_planned(db, config, dataset, specs))
        for entry in found:
            counts.add(entry)
            writer.write(entry)
            progress(1)
        if "pairs" in specs:
            _copy_pools(config, out)
        writer.finish()
    return counts


def live_keys(config: AugmentConfig) -> list[str]:
    """Return the keys that this process's environment holds for any provider."""
    names = {config.provider.key_env, *(preset.get("key_env") for preset in PRESETS.values())}
    values = (os.environ.get(name, "").strip() for name in names if name)
    return [value for value in values if len(value) >= _SHORTEST_KEY]


def _header(
    store: Path,
    config: AugmentConfig,
    dataset: InteractionDataset,
    specs: Specs,
) -> dict[str, Any]:
    from augment.export import export

    with tempfile.TemporaryDirectory(prefix="cassette-") as folder:
        made = export(store, config, dataset, out=Path(folder) / "export")
    return {
        "format": FORMAT,
        "version": VERSION,
        "config": _portable(config, dataset),
        "dataset": {"name": dataset.name, "fingerprint": dataset.fingerprint},
        "specs": {kind: spec.model_dump() for kind, (_, spec) in specs.items()},
        "export": {"content_id": made.content_id, "files": made.manifest["files"]},
    }


def _portable(config: AugmentConfig, dataset: InteractionDataset) -> dict[str, Any]:
    """Return a config without this machine's addresses and places."""
    plain = config.model_dump(mode="json")
    place = Path("data") / dataset.name if config.dataset.is_absolute() else config.dataset
    plain |= {"dataset": place.as_posix(), "store": "replay.store", "out": "replay"}
    plain["provider"] |= _NOT_TRANSPORT
    pairs = plain["tasks"]["pairs"]
    if pairs is not None and pairs["pool"] not in ("", RANDOM):
        pairs["pool"] = POOL_FILES[0]
    return plain


def _copy_pools(config: AugmentConfig, out: Path) -> None:
    task = config.tasks.pairs
    if task is None or task.pool in ("", RANDOM):
        return
    folder = pools_of(out)
    folder.mkdir(exist_ok=True)
    for name in POOL_FILES:
        (folder / name).write_bytes((Path(task.pool).parent / name).read_bytes())


def _entries(db: sqlite3.Connection, vectors: VectorFile) -> Iterator[dict[str, Any]]:
    about = {
        spec: json.loads(text) for spec, text in db.execute("SELECT id, json FROM spec").fetchall()
    }

    def head(key: bytes, spec: int, draw: int, body: bytes) -> dict[str, Any]:
        said = about[spec]
        return {
            "key": key.hex(),
            "provider": said["provider"],
            "endpoint": said["endpoint"],
            "draw": draw,
            "body": unpack(body),
        }

    for key, spec, draw, body, raw, extra in db.execute(_REPLIES):
        flag = {"extra": True} if extra else {}
        yield {**head(key, spec, draw, body), **_text(zlib.decompress(raw)), **flag}
    for key, spec, body, draw, state, code, kind in db.execute(_REST):
        if kind != "embed":
            yield {**head(key, spec, draw, body), "none": code or State(state).name.lower()}
            continue
        # A text's key has no draw; the column holds the number of its field.
        vector = vectors.get(key) if state == State.DONE else None
        if state == State.DONE and vector is None:
            raise AugmentationError(
                f"the vector of request {key.hex()[:12]}… is missing from `vectors.sqlite`; see "
                "`python -m augment doctor`."
            )
        if vector is None:
            said: dict[str, Any] = {"none": code or State(state).name.lower()}
        else:
            said = {"vector": base64.b64encode(vector.tobytes()).decode(), "dim": len(vector)}
        yield {**head(key, spec, 0, body), **said}


def _never_planned(
    db: sqlite3.Connection, config: AugmentConfig, dataset: InteractionDataset, specs: Specs
) -> Iterator[dict[str, Any]]:
    """Yield what a run to the end would ask and this store never did, such as texts to embed."""
    for kind, (spec_id, spec) in specs.items():
        row = db.execute("SELECT planned FROM spec WHERE id = ?", (spec_id,)).fetchone()
        if row[0]:
            continue
        texts: list[Iterator[tuple[int, int, str]]] = []
        if kind == "embed":
            asked = [k for k in ("profiles", "attributes") if k in specs]
            fields = spec.settings["fields"]
            texts = [texts_to_embed(db, k, specs[k][0], fields) for k in asked]
        pool = pool_for(kind, config, dataset)
        for want in wanted(spec, dataset, pool, itertools.chain(*texts)):
            planned = plan_row(spec, want)
            known = db.execute("SELECT 1 FROM request WHERE key = ?", (planned.key,)).fetchone()
            if want.body is None or known:
                continue
            yield {
                "key": planned.key.hex(),
                "provider": spec.provider,
                "endpoint": spec.endpoint,
                "draw": 0 if kind == "embed" else want.field,
                "body": want.body,
                "none": "never_planned",
            }


def _text(raw: bytes) -> dict[str, str]:
    try:
        return {"raw": raw.decode()}
    except UnicodeDecodeError:
        return {"raw_b64": base64.b64encode(raw).decode()}


class _Writer:
    """Writes lines under a temporary name, equal lines as equal bytes."""

    def __init__(self, path: Path, secrets: list[str]) -> None:
        self.path, self.n = path, 0
        self._secrets = [secret.encode() for secret in secrets]
        self._temporary = path.with_name(f"{path.name}.tmp")
        self._raw = self._temporary.open("wb")
        self._file: IO[bytes] = self._raw
        if path.suffix == ".gz":
            packed = gzip.GzipFile(filename="", mode="wb", fileobj=self._raw, mtime=0)
            self._file = cast("IO[bytes]", packed)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._file.close()
        self._raw.close()
        self._temporary.unlink(missing_ok=True)

    def write(self, entry: dict[str, Any]) -> None:
        """Write a line.

        Raises:
            AugmentationError: it holds a key in use.
        """
        line = canonical_json(entry).encode()
        hidden = base64.b64decode(entry["raw_b64"]) if "raw_b64" in entry else b""
        if any(secret in line or secret in hidden for secret in self._secrets):
            raise AugmentationError(
                f"the reply to request {str(entry.get('key'))[:12]}… holds the value of a key that "
                "this environment has; no cassette is written. Revoke that key, and unset it here "
                "to write the cassette all the same."
            )
        self._file.write(line + b"\n")
        self.n += 1

    def finish(self) -> None:
        """Write the last line, and give the file its name."""
        self.write({"end": True, "lines": self.n + 1})
        if self._file is not self._raw:
            self._file.close()
        self._raw.flush()
        os.fsync(self._raw.fileno())
        self._temporary.rename(self.path)
        sync_folder(self.path.parent)
