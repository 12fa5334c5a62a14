"""The Batch API, a part at a time: every state is on disk before the next remote call.

After a crash nobody knows whether the last call arrived. So a part that was being uploaded or
created is first looked for among the remote files and batches, by its uuid, and only repeated if
it is not there.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Literal

from augment.batch_build import remote_name
from augment.batch_files import hide_key, sha256_of
from augment.batch_ingest import Ingest, Ingested
from augment.faults import point
from augment.judge import Policy
from augment.prompts import without_surrogates
from augment.remote_batches import RemoteError
from augment.specs import canonical_json
from augment.store import AttemptState, anomaly
from augment.store.parts import (
    FOLDER,
    Part,
    PartState,
    count_lines,
    list_parts,
    most_tokens,
    move,
    read_part,
    tokens_of,
)
from llmrec_pl.errors import AugmentationError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from augment.clock import Clock
    from augment.redact import Secret
    from augment.remote_batches import RemoteBatches
    from augment.store import Store

TERMINAL = frozenset({"completed", "failed", "expired", "cancelled"})
TO_SUBMIT = (PartState.BUILT, PartState.UPLOADING, PartState.UPLOADED, PartState.CREATING)
TO_POLL = (PartState.CREATED, PartState.ENDED, PartState.DOWNLOADED)
_FileKind = Literal["", ".out", ".err"]
_QUEUE_FULL = "token_limit_exceeded"


class Batches:
    """Moves parts through the Batch API.

    Args:
        store: opened for work.
        remote: the provider's files and batches.
        clock: for waits and records.
        policy: how often to ask again.
        say: is told, a line at a time, what happens.
        most_enqueued: most input tokens, by our bound, in remote batches that have not ended;
            None for no limit of our own.
        delete_remote: delete the remote files of a part once it is ingested.
        key: the key in use, hidden wherever an error repeats it.
    """

    def __init__(
        self,
        store: Store,
        remote: RemoteBatches,
        *,
        clock: Clock,
        policy: Policy | None = None,
        say: Callable[[str], None] = lambda _: None,
        most_enqueued: int | None = None,
        delete_remote: bool = False,
        key: Secret | None = None,
    ) -> None:
        self.store, self.remote, self.clock, self.say = store, remote, clock, say
        self.policy, self.most_enqueued = policy or Policy(), most_enqueued
        self.delete_remote, self.key = delete_remote, key
        self.ingested: dict[str, Ingested] = {}

    def read(self, uuid: str) -> Part:
        """Return a part as it is now."""
        return self.store.do(lambda db: read_part(db, uuid))

    def _move(self, part: Part, state: PartState, **columns: str | bytes | None) -> Part:
        now = self.clock.wall_ms()
        self.store.do(lambda db: move(db, part.uuid, state, now, **columns))
        return self.read(part.uuid)

    def file_of(self, part: Part, kind: _FileKind = "") -> Path:
        """Return where a file of a part lies: its requests, its answers, its errors."""
        return self.store.folder / FOLDER / f"{part.uuid}{kind}.jsonl"

    # There ---------------------------------------------------------------------------------

    async def submit(self, part: Part) -> Part:
        """Upload a part and start its batch, from wherever it stands; adopts what is there.

        Raises:
            AugmentationError: its file was changed, or a part of it was answered already.
            RemoteError: a call failed; the next `submit` goes on from there.
        """
        part = await self.adopt(part)
        if part.state not in (PartState.BUILT, PartState.UPLOADED):
            return part
        self._check(part)
        if not self._room(part):
            self.say(f"{part.uuid}: waits, the queue of {self.most_enqueued:,} tokens is full")
            return part
        if part.state == PartState.BUILT:
            part = await self._upload(part)
        return await self._create(part)

    async def adopt(self, part: Part) -> Part:
        """Find out what became of a call that was under way; sends nothing.

        Raises:
            RemoteError: the lists could not be read.
        """
        if part.state == PartState.UPLOADING:
            name = remote_name(part.uuid)
            files = [f for f in await self.remote.list_files() if f.get("filename") == name]
            self._several(part, "file", files)
            if not files:
                return self._move(part, PartState.BUILT)
            self.say(f"{part.uuid}: its upload had arrived, adopted as {files[0]['id']}")
            return self._move(part, PartState.UPLOADED, file_id=files[0]["id"])
        if part.state == PartState.CREATING:
            found = [b for b in await self.remote.list_batches() if self._ours(b, part)]
            self._several(part, "batch", found)
            if not found:
                return self._move(part, PartState.UPLOADED)
            self.say(f"{part.uuid}: its batch had been made, adopted as {found[0]['id']}")
            return self._created(part, found[0])
        return part

    def _ours(self, batch: dict[str, Any], part: Part) -> bool:
        about = batch.get("metadata") or {}
        if about.get("part") != part.uuid:
            return False
        # One that failed for a full queue was repeated, or is about to be.
        return not _queue_was_full(batch)

    def _several(self, part: Part, what: str, found: list[dict[str, Any]]) -> None:
        if len(found) > 1:
            names = ", ".join(str(entry["id"]) for entry in found)
            text = f"part {part.uuid} has several remote entries: {names}; the first is used"
            self._odd(f"batch_extra_{what}", text)

    def _odd(self, kind: str, text: str) -> None:
        now = self.clock.wall_ms()
        self.store.do(lambda db: anomaly(db, now, kind, text))
        self.say(f"anomaly: {text}")

    def _check(self, part: Part) -> None:
        path = self.file_of(part)
        if not path.is_file() or sha256_of(path) != part.sha:
            raise AugmentationError(
                f"{str(path)!r} is missing or not what was built; say `python -m augment batch "
                f"discard {part.uuid[:8]}` and build again."
            )
        counts = self.store.do(lambda db: count_lines(db, part.uuid))
        if counts.get(AttemptState.INTENT, 0) != part.n:
            raise AugmentationError(
                f"part {part.uuid} was answered in part already, submitting it would pay twice; "
                f"say `python -m augment batch discard {part.uuid[:8]}` and build again."
            )

    def _room(self, part: Part) -> bool:
        """Return whether a part fits the queue; one alone always does."""
        most = self.most_enqueued
        if most is None:
            return True
        waiting = self.store.do(
            lambda db: [
                most_tokens(db, p.uuid)
                for p in list_parts(db, (PartState.CREATING, PartState.CREATED))
            ]
        )
        size = self.store.do(lambda db: most_tokens(db, part.uuid))
        return not waiting or sum(waiting) + size <= most

    async def _upload(self, part: Part) -> Part:
        part = self._move(part, PartState.UPLOADING)
        point("batch_uploading")
        try:
            file_id = await self.remote.upload(self.file_of(part), remote_name(part.uuid))
        except RemoteError as error:
            if _refused(error):
                self._move(part, PartState.BUILT)
            raise
        point("batch_uploaded")
        return self._move(part, PartState.UPLOADED, file_id=file_id)

    async def _create(self, part: Part) -> Part:
        assert part.file_id is not None  # known since the upload
        store = self.store.do(
            lambda db: db.execute("SELECT v FROM meta WHERE k = 'store_uuid'").fetchone()[0]
        )
        part = self._move(part, PartState.CREATING)
        point("batch_creating")
        about = {"store": store, "part": part.uuid, "sha": part.sha.hex()}
        try:
            batch = await self.remote.create(str(part.file_id), part.endpoint, about)
        except RemoteError as error:
            if _refused(error):
                self._move(part, PartState.UPLOADED)
            raise
        point("batch_created")
        self.say(f"{part.uuid}: submitted as {batch['id']}, {part.n:,} lines")
        return self._created(part, batch)

    def _created(self, part: Part, batch: dict[str, Any]) -> Part:
        status = str(batch.get("status") or "")
        return self._move(part, PartState.CREATED, remote_id=str(batch["id"]), remote_status=status)

    # And back ------------------------------------------------------------------------------

    async def poll(self, part: Part) -> Part:
        """Look at a batch; if it has ended, download what it gave and take it in.

        Raises:
            RemoteError: a call failed; the part stays as it is, the next `poll` goes on.
        """
        part = await self.adopt(part)
        if part.state == PartState.CREATED:
            part = await self._look(part)
        if part.state == PartState.ENDED:
            part = await self._download(part)
        if part.state == PartState.DOWNLOADED:
            part = await self._ingest(part)
        return part

    async def _look(self, part: Part) -> Part:
        batch = await self.remote.retrieve(str(part.remote_id))
        status = str(batch.get("status") or "")
        if status not in TERMINAL:
            if status != part.remote_status:
                part = self._move(part, PartState.CREATED, remote_status=status)
            return part
        reported = {k: batch.get(k) for k in ("usage", "request_counts", "errors")}
        detail = without_surrogates(canonical_json({k: v for k, v in reported.items() if v}))
        if _queue_was_full(batch):
            self.say(f"{part.uuid}: the provider's queue was full; it is submitted again later")
            return self._move(
                part, PartState.UPLOADED, remote_id=None, remote_status=status, detail=detail
            )
        self.say(f"{part.uuid}: {status}{_reason(batch)}")
        return self._move(
            part,
            PartState.ENDED,
            remote_status=status,
            out_file=batch.get("output_file_id") or None,
            err_file=batch.get("error_file_id") or None,
            detail=detail,
        )

    async def _download(self, part: Part) -> Part:
        """Fetch both files, whatever the status: what was answered was charged."""
        hashes: dict[str, bytes | None] = {"out_sha": None, "err_sha": None}
        if part.out_file is not None:
            await self.remote.download(part.out_file, self.file_of(part, ".out"))
            hashes["out_sha"] = sha256_of(self.file_of(part, ".out"))
        if part.err_file is not None:
            await self.remote.download(part.err_file, self.file_of(part, ".err"))
            if self.key is not None:
                hide_key(self.file_of(part, ".err"), self.key)
            hashes["err_sha"] = sha256_of(self.file_of(part, ".err"))
        point("batch_downloaded")
        return self._move(part, PartState.DOWNLOADED, **hashes)

    async def _ingest(self, part: Part) -> Part:
        hashes: dict[_FileKind, bytes | None] = {".out": part.out_sha, ".err": part.err_sha}
        files = [(self.file_of(part, kind), sha) for kind, sha in hashes.items() if sha is not None]
        if any(not path.is_file() or sha256_of(path) != sha for path, sha in files):
            self.say(f"{part.uuid}: a downloaded file was lost or changed, fetching it again")
            return await self._ingest(await self._download(self._move(part, PartState.ENDED)))
        with Ingest(self.store, clock=self.clock, part=part.uuid, policy=self.policy) as ingest:
            for path, _ in files:
                ingest.file(path)
            found = self.ingested[part.uuid] = ingest.found
            point("batch_ingesting")
            self._finish(part, ingest)
        part = self._move(part, PartState.INGESTED)
        self.say(f"{part.uuid}: {found.n_answered:,} of {part.n:,} lines answered")
        if self.delete_remote:
            await self._delete(part)
        return part

    def _finish(self, part: Part, ingest: Ingest) -> None:
        """Give up what no line answered, and hold the sums against the provider's."""
        about = json.loads(part.detail or "{}")
        found = ingest.found
        completed = (about.get("request_counts") or {}).get("completed") or 0
        # Lines that should be there and are not were charged, for all we know.
        short = found.n_bad > 0 or completed > found.n_answered
        left = ingest.give_up(part.uuid, lost=short)
        if left and short:
            self._odd(
                "batch_short",
                f"part {part.uuid}: {left} lines are lost, of {completed} answered ones; what "
                "they may have cost stays reserved, see `python -m augment unknown list`",
            )
        usage = about.get("usage")
        if not usage:
            return
        ours = self.store.do(lambda db: tokens_of(db, part.uuid))
        theirs = (usage.get("input_tokens") or 0, usage.get("output_tokens") or 0)
        if ours != theirs:
            self._odd(
                "batch_usage",
                f"part {part.uuid}: its lines add up to {ours[0]} + {ours[1]} tokens, the batch "
                f"says {theirs[0]} + {theirs[1]}",
            )

    async def _delete(self, part: Part) -> None:
        for file_id in (part.file_id, part.out_file, part.err_file):
            if file_id is not None:
                try:
                    await self.remote.delete_file(file_id)
                except RemoteError as error:
                    self.say(f"{part.uuid}: {file_id} could not be deleted ({error})")

    # Others --------------------------------------------------------------------------------

    async def cancel(self, part: Part) -> Part:
        """Ask for a batch to be cancelled; `poll` then takes in what was answered by then.

        Raises:
            AugmentationError: it has no batch that runs.
            RemoteError: the call failed.
        """
        part = await self.adopt(part)
        if part.state != PartState.CREATED:
            raise AugmentationError(
                f"part {part.uuid} is {part.state.value}, there is no batch to cancel; `python -m "
                f"augment batch discard {part.uuid[:8]}` takes back one that was not submitted."
            )
        batch = await self.remote.cancel(str(part.remote_id))
        return self._move(part, PartState.CREATED, remote_status=str(batch.get("status") or ""))


def _refused(error: RemoteError) -> bool:
    """Return whether a call certainly did nothing."""
    return error.status is not None and 400 <= error.status < 500 and error.status not in (408, 409)


def _codes(batch: dict[str, Any]) -> list[dict[str, Any]]:
    errors = batch.get("errors") or {}
    return [e for e in errors.get("data") or [] if isinstance(e, dict)]


def _queue_was_full(batch: dict[str, Any]) -> bool:
    return batch.get("status") == "failed" and any(
        e.get("code") == _QUEUE_FULL for e in _codes(batch)
    )


def _reason(batch: dict[str, Any]) -> str:
    texts = [f"{e.get('code')}: {e.get('message')}" for e in _codes(batch)[:3]]
    return f" ({'; '.join(texts)})" if texts else ""
