"""The remote side of the Batch API: files and batches, one plain call each.

Nothing is retried and nothing remembered here: what was done is the state machine's to record
before and after each call. What goes up and comes down is streamed, never held in memory.
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from augment.client import check_provider, connect, status_and_message
from llmrec_pl.errors import LLMRecError

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Awaitable, Mapping
    from pathlib import Path

    import httpx2
    from pydantic import BaseModel

    from augment.config import Provider
    from augment.redact import Secret
    from augment.specs import Endpoint

_T = TypeVar("_T")
_CALL_S = 120.0
_TRANSFER_S = 1800.0
_CHUNK = 1 << 20
_PATHS: dict[Endpoint, Literal["/v1/chat/completions", "/v1/embeddings"]] = {
    "chat.completions": "/v1/chat/completions",
    "embeddings": "/v1/embeddings",
}


class RemoteError(LLMRecError):
    """A call to the Batch API failed.

    Attributes:
        status: HTTP status; None if no answer came.
        message: one sentence, without keys.
    """

    def __init__(self, status: int | None, message: str) -> None:
        super().__init__(f"HTTP {status}: {message}" if status else message)
        self.status, self.message = status, message


class RemoteBatches:
    """Files and batches of a provider.

    Args:
        provider: the first of its base URLs is used.
        key: credentials.
        transport: takes the place of the network, for tests.

    Raises:
        ConfigError: see `augment.client.HttpAnswerer`.
    """

    def __init__(
        self,
        provider: Provider,
        *,
        key: Secret | None,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        check_provider(provider, key)
        self._client = connect(provider, key, provider.base_urls[0], transport=transport)

    async def close(self) -> None:
        """Give back connections."""
        await self._client.close()

    async def upload(self, path: Path, filename: str) -> str:
        """Send a file of requests under a name; returns its remote id.

        Raises:
            RemoteError: the call failed; the file may be there all the same.
        """
        with path.open("rb") as handle:
            made = await _within(
                _TRANSFER_S,
                self._client.files.create(
                    file=(filename, handle, "application/jsonl"),
                    purpose="batch",
                    timeout=_TRANSFER_S,
                ),
            )
        return made.id

    async def list_files(self) -> list[dict[str, Any]]:
        """Return all remote files made for batches.

        Raises:
            RemoteError: the call failed.
        """
        pages = self._client.files.list(purpose="batch", limit=1000)
        return await _within(_TRANSFER_S, _listed(pages))

    async def delete_file(self, file_id: str) -> None:
        """Delete a remote file.

        Raises:
            RemoteError: the call failed.
        """
        await _asked(self._client.files.delete(file_id))

    async def create(
        self, file_id: str, endpoint: Endpoint, metadata: Mapping[str, str]
    ) -> dict[str, Any]:
        """Start a batch of an uploaded file.

        Args:
            file_id: from `upload`.
            endpoint: "chat.completions" or "embeddings".
            metadata: at most 16 pairs; by them a lost batch is found again.

        Raises:
            RemoteError: the call failed; the batch may be there all the same.
        """
        return await _asked(
            self._client.batches.create(
                input_file_id=file_id,
                endpoint=_PATHS[endpoint],
                completion_window="24h",
                metadata=dict(metadata),
            )
        )

    async def list_batches(self) -> list[dict[str, Any]]:
        """Return all remote batches, the newest first.

        Raises:
            RemoteError: the call failed.
        """
        return await _within(_TRANSFER_S, _listed(self._client.batches.list(limit=100)))

    async def retrieve(self, batch_id: str) -> dict[str, Any]:
        """Return the present state of a batch.

        Raises:
            RemoteError: the call failed.
        """
        return await _asked(self._client.batches.retrieve(batch_id))

    async def cancel(self, batch_id: str) -> dict[str, Any]:
        """Ask for a batch to be cancelled; what is done by then is charged.

        Raises:
            RemoteError: the call failed.
        """
        return await _asked(self._client.batches.cancel(batch_id))

    async def download(self, file_id: str, path: Path) -> int:
        """Write a remote file to disk; `path` appears when all of it is safe. Returns its bytes.

        Raises:
            RemoteError: the call failed or broke off; `path` is as it was.
            OSError: the disk is full or cannot be written.
        """
        part = path.with_name(f"{path.name}.part")
        try:
            size = await _within(_TRANSFER_S, self._stream(file_id, part))
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        return size

    async def _stream(self, file_id: str, part: Path) -> int:
        content = self._client.files.with_streaming_response.content(file_id)
        part.touch(mode=0o600)
        async with content as response:
            with part.open("wb") as out:
                async for chunk in response.iter_bytes(_CHUNK):
                    out.write(chunk)
                out.flush()
                os.fsync(out.fileno())
                return out.tell()


async def _listed(pages: AsyncIterable[BaseModel]) -> list[dict[str, Any]]:
    return [entry.model_dump(mode="json") async for entry in pages]


async def _asked(call: Awaitable[BaseModel]) -> dict[str, Any]:
    return (await _within(_CALL_S, call)).model_dump(mode="json")


async def _within(seconds: float, call: Awaitable[_T]) -> _T:
    """Await a call; whatever the network or the server does becomes a RemoteError."""
    try:
        async with asyncio.timeout(seconds):
            return await call
    except TimeoutError as error:
        raise RemoteError(None, f"no answer within {seconds:g} s.") from error
    except OSError:
        raise  # the disk's, not the network's
    except Exception as error:
        raise RemoteError(*status_and_message(error)) from error
