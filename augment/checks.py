"""What `doctor` looks at: versions, the store's place, content and ledger, the key, the address."""

from __future__ import annotations

import contextlib
import importlib.metadata
import platform
import shutil
import sqlite3
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

from augment.budget import read_ledger, recompute
from augment.money import format_usd
from augment.redact import check_base_url, read_key, redact
from augment.status import lock_holder
from augment.store import MAIN, open_readonly
from augment.store.place import network_filesystem
from augment.store.spool import Spool
from llmrec_pl.errors import LLMRecError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from augment.config import AugmentConfig

PACKAGES = ("llmrec_pl", "openai", "httpx2", "pydantic", "polars", "numpy", "rich")
FIXED_SQLITE = ((3, 44, 6), (3, 50, 7), (3, 51, 3))
"""First releases without the WAL-reset bug, each of its line; what follows the last has none."""
_LOW_SPACE = 2**30


@dataclass(frozen=True, slots=True)
class Check:
    """One thing looked at.

    Attributes:
        name: what.
        verdict: "ok", "warn" (works, but look), "fail" (will not work, or is damaged).
        text: what was found, and what to do.
    """

    name: str
    verdict: Literal["ok", "warn", "fail"]
    text: str


def has_wal_reset_bug(version: tuple[int, ...]) -> bool:
    """Return whether two connections that write or checkpoint could corrupt a WAL database."""
    for fixed in FIXED_SQLITE[:-1]:
        if version[:2] == fixed[:2]:
            return version < fixed
    return version < FIXED_SQLITE[-1]


def versions() -> Iterator[Check]:
    """Look at Python, packages and SQLite."""
    yield Check("python", "ok", f"{platform.python_version()} on {platform.platform()}")
    for name in PACKAGES:
        try:
            yield Check(name, "ok", importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            yield Check(name, "fail", "not installed; run `pip install .` in the project")
    found = sqlite3.sqlite_version
    if has_wal_reset_bug(sqlite3.sqlite_version_info):
        fixed = ", ".join(".".join(map(str, version)) for version in FIXED_SQLITE)
        text = (
            f"{found} has the WAL-reset bug (fixed in {fixed} of their lines); this program keeps "
            "clear of it with one writing connection. Open the store with no other tool that writes"
        )
        yield Check("sqlite", "warn", text)
    else:
        yield Check("sqlite", "ok", found)


def store_checks(folder: Path) -> Iterator[Check]:
    """Look at a store without changing it."""
    place = folder if folder.exists() else folder.absolute().parent
    while not place.exists():
        place = place.parent
    network = network_filesystem(place)
    text = f"{network}: locks and syncs may not hold; choose a local disk" if network else "local"
    yield Check("file system", "warn" if network else "ok", text)
    free = shutil.disk_usage(place).free
    low = free < _LOW_SPACE
    yield Check("free space", "warn" if low else "ok", f"{free / 2**30:.1f} GiB")
    if not (folder / MAIN).is_file():
        yield Check("store", "warn", f"none at {str(folder)!r} yet; `run` makes one")
        return
    open_to = [p.name for p in (folder, *folder.iterdir()) if p.stat().st_mode & 0o077]
    if open_to:
        text = f"others may read {', '.join(sorted(open_to))}; run `chmod -R go= {folder}`"
        yield Check("permissions", "warn", text)
    holder = lock_holder(folder)
    yield Check("lock", "ok", f"held by {holder}" if holder else "free")
    try:
        with contextlib.closing(open_readonly(folder)) as db:
            yield from _content(db)
    except (LLMRecError, sqlite3.Error) as error:
        yield Check("store", "fail", str(error))
    yield _vectors(folder)
    yield _spool(folder, in_use=holder is not None)


def _content(db: sqlite3.Connection) -> Iterator[Check]:
    db.execute("BEGIN")
    problems = [row[0] for row in db.execute("PRAGMA integrity_check(5)")]
    broken = db.execute("PRAGMA foreign_key_check").fetchmany(5)
    whole = problems == ["ok"] and not broken
    text = "whole" if whole else f"damaged: {'; '.join(problems)} {broken or ''}; restore a copy"
    yield Check("main.sqlite", "ok" if whole else "fail", text)
    kept, summed = read_ledger(db), recompute(db)
    spent = f"{format_usd(kept.spent_pusd)} spent, {format_usd(kept.reserved_pusd)} reserved"
    if kept == summed:
        yield Check("ledger", "ok", f"{spent}, the sum of its attempts")
    else:
        other = f"{format_usd(summed.spent_pusd)} and {format_usd(summed.reserved_pusd)}"
        yield Check("ledger", "fail", f"{spent}, but the attempts add up to {other}")
    intents, in_parts = db.execute(
        "SELECT count(*) FILTER (WHERE lane = 'sync'), count(*) FILTER (WHERE lane <> 'sync') "
        "FROM attempt WHERE state = 0"
    ).fetchone()
    (unknown,) = db.execute("SELECT count(*) FROM attempt WHERE state = 3").fetchone()
    settled = "; the next run settles them" if intents else ""
    yield Check("calls without an end", "ok", f"{intents:,}{settled}")
    text = f"{in_parts:,}" + ("; see `python -m augment batch list`" if in_parts else "")
    yield Check("requests in batch files", "ok", text)
    text = f"{unknown:,}" + ("; see `python -m augment unknown list`" if unknown else "")
    yield Check("calls of unknown outcome", "warn" if unknown else "ok", text)
    (odd,) = db.execute("SELECT count(*) FROM anomaly").fetchone()
    text = f"{odd:,}" + ("; see `python -m augment status`" if odd else "")
    yield Check("anomalies", "warn" if odd else "ok", text)


def _vectors(folder: Path) -> Check:
    path = folder / "vectors.sqlite"
    try:
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
            (said,) = db.execute("PRAGMA integrity_check(1)").fetchone()
            (n,) = db.execute("SELECT count(*) FROM v").fetchone()
    except sqlite3.Error as error:
        return Check(path.name, "fail", f"cannot be read: {error}; restore a copy")
    verdict: Literal["ok", "fail"] = "ok" if said == "ok" else "fail"
    return Check(path.name, verdict, f"{n:,} vectors" if said == "ok" else f"damaged: {said}")


def _spool(folder: Path, *, in_use: bool) -> Check:
    """Count bodies that are not committed yet, in a copy: opening a spool may write to it."""
    if in_use:
        return Check("spool", "ok", "in use")
    with tempfile.TemporaryDirectory() as copy:
        for path in folder.glob("spool.*.bin"):
            shutil.copyfile(path, Path(copy) / path.name)
        spool = Spool(Path(copy))
        try:
            waiting = sum(1 for _ in spool.pending())
        finally:
            spool.close()
    text = f"{waiting:,} whole bodies" + ("; the next run commits them" if waiting else "")
    return Check("spool", "ok", text)


def provider_checks(config: AugmentConfig, *, online: bool) -> Iterator[Check]:
    """Look at the key's variable and the addresses.

    Args:
        config: whose provider.
        online: also ask each address once, with the key, for its list of models.
    """
    provider = config.provider
    key = None
    if provider.name == "heuristic":
        yield Check("provider", "ok", "heuristic: no key, no address")
        return
    if provider.key_env:
        key = read_key(provider.key_env)
        text = f"`{provider.key_env}` is set" if key else f"`{provider.key_env}` is not set"
        yield Check("key", "ok" if key else "fail", text)
    else:
        yield Check("key", "ok", "none needed")
    if not provider.base_urls:
        yield Check("base_url", "fail", "`provider.base_urls` is empty; name the server's address")
    for url in provider.base_urls:
        try:
            check_base_url(url, insecure_http=provider.insecure_http)
        except LLMRecError as error:
            yield Check("base_url", "fail", str(error))
            continue
        if not online:
            yield Check("base_url", "ok", f"{url}, not asked; `--online` asks it")
        else:
            yield _reach(url, None if key is None else key.reveal(), provider.name)


def _reach(url: str, key: str | None, name: str) -> Check:
    """Ask for the list of models once; redirects are not followed, since they would get the key."""
    import http.client

    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    headers = {}
    if key is not None:
        headers = {"api-key": key} if name == "azure" else {"authorization": f"Bearer {key}"}
    connection = kind(parts.hostname or "", parts.port, timeout=10)
    try:
        connection.request("GET", f"{parts.path.rstrip('/')}/models", headers=headers)
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        return Check("base_url", "fail", redact(f"{url} cannot be reached: {error!r}"))
    finally:
        connection.close()
    if status in (401, 403):
        return Check("base_url", "fail", f"{url} answers, but refuses the key ({status})")
    if status == 200:
        return Check("base_url", "ok", f"{url} answers")
    text = f"{url} is there, but answers {status} when asked for its models; try `run --limit 1`"
    return Check("base_url", "warn", text)
