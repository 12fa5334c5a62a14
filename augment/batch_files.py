"""The two files of a batch: requests as the Batch API and `vllm run-batch` read them, and answers.

Answers may come from anyone, so nothing about them is taken for granted: a line that cannot be
used is reported with its number, and the others count.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from augment.classify import Classified, Outcome, classify
from augment.prompts import without_surrogates
from augment.redact import HIDDEN
from augment.wire import Reply

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import TracebackType

    from augment.redact import Secret
    from augment.specs import Endpoint

URLS: dict[Endpoint, str] = {
    "chat.completions": "/v1/chat/completions",
    "embeddings": "/v1/embeddings",
}
_KEY_BYTES = 20
_NEVER_TRIED = frozenset({"batch_expired", "batch_cancelled"})


def custom_id(key: bytes) -> str:
    """Return the name of a request in batch files, 32 letters and digits."""
    return base64.b32encode(key[:_KEY_BYTES]).decode()


def request_line(key: bytes, endpoint: Endpoint, body: dict[str, Any]) -> bytes:
    """Return a line of a file of requests."""
    entry = {"custom_id": custom_id(key), "method": "POST", "url": URLS[endpoint], "body": body}
    # The order of the body stays: answers come in the order of the schema's properties.
    return json.dumps(entry, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"


class PartFile:
    """A file of requests being written; it has its name only once it is whole and on disk.

    Args:
        path: its final place.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.n, self.bytes = path, 0, 0
        self._temporary = path.with_name(f"{path.name}.tmp")
        handle = os.open(self._temporary, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600)
        self._file = os.fdopen(handle, "wb")
        self._digest = hashlib.sha256()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
        self._temporary.unlink(missing_ok=True)

    def add(self, line: bytes) -> None:
        """Add a line."""
        self._file.write(line)
        self._digest.update(line)
        self.n, self.bytes = self.n + 1, self.bytes + len(line)

    def finish(self) -> bytes:
        """Make it durable under its name; returns its sha256."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._temporary.rename(self.path)
        sync_folder(self.path.parent)
        return self._digest.digest()


def sync_folder(folder: Path) -> None:
    """Make renames in a folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def copy_whole(source: Path, target: Path) -> None:
    """Copy a file so that the copy has its name only once it is whole."""
    temporary = target.with_name(f"{target.name}.tmp")
    shutil.copyfile(source, temporary)
    temporary.rename(target)


def sha256_of(path: Path) -> bytes:
    """Return the sha256 of a file."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").digest()


def hide_key(path: Path, key: Secret) -> None:
    """Take a key out of a file of errors, in which a provider may have repeated it."""
    value, temporary = key.reveal().encode(), path.with_name(f"{path.name}.tmp")
    with path.open("rb") as lines:
        if not any(value in line for line in lines):
            return
    with path.open("rb") as lines, temporary.open("wb") as clean:
        temporary.chmod(0o600)
        clean.writelines(line.replace(value, HIDDEN.encode()) for line in lines)
    temporary.rename(path)


# Answers -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AnswerLine:
    """What one line of an answer file says.

    Attributes:
        number: of the line, from 1.
        custom_id: which request it is about.
        raw: the body of a 200; None where the request failed.
        failure: why there is none; what was not answered with a 200 is never billed in a batch.
    """

    number: int
    custom_id: str
    raw: bytes | None = None
    failure: Classified | None = None


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line that says nothing usable, and why."""

    number: int
    reason: str


def read_answers(path: Path) -> Iterator[AnswerLine | BadLine]:
    """Yield the lines of an answer file; blank ones are passed over.

    Args:
        path: output or error file of the Batch API or of `vllm run-batch`, or anyone's lines
            ``{"custom_id": ..., "body": ...}``.
    """
    with path.open("rb") as lines:
        for number, text in enumerate(lines, 1):
            if text.strip():
                yield parse_answer(text, number)


def parse_answer(text: bytes, number: int) -> AnswerLine | BadLine:
    """Read one line of an answer file."""
    try:
        entry = json.loads(text.removeprefix(b"\xef\xbb\xbf"))
    except (ValueError, RecursionError) as error:
        torn = "" if text.endswith(b"\n") else "; the file ends in it, perhaps torn"
        return BadLine(number, f"no valid JSON ({error}){torn}")
    if not isinstance(entry, dict):
        return BadLine(number, f"no JSON object but {type(entry).__name__}")
    name = entry.get("custom_id")
    if not isinstance(name, str) or not name:
        return BadLine(number, f"no `custom_id` but {name!r}")
    response, refusal = entry.get("response"), entry.get("error")
    if response is None and entry.get("body") is not None:
        response = {"status_code": 200, "body": entry["body"]}
    if isinstance(response, dict):
        return _responded(number, name, response, refusal)
    if refusal is not None:
        return AnswerLine(number, name, failure=_refused(refusal))
    return BadLine(number, f"neither `response` nor `error` for {name}")


def _responded(
    number: int, name: str, response: dict[str, Any], refusal: object
) -> AnswerLine | BadLine:
    if not response.keys() & {"status_code", "body"}:
        response = {"body": response}  # some write the reply itself in its place
    status, body = response.get("status_code", 200), response.get("body")
    if not isinstance(status, int):
        return BadLine(number, f"`status_code` is {status!r}, no number")
    if 200 <= status < 300:
        if refusal is not None and body is None:
            return AnswerLine(number, name, failure=_refused(refusal))
        if not isinstance(body, dict | str):
            return BadLine(number, f"status {status} without a body for {name}")
        return AnswerLine(number, name, raw=_bytes(body))
    nested = isinstance(refusal, dict) and isinstance(refusal.get("error"), dict)
    said = body if body is not None else refusal if nested else {"error": refusal}
    found = classify(Reply(status, body=_bytes(said)))
    # Whatever the status would mean elsewhere: a batch bills 200s only.
    return AnswerLine(number, name, failure=_unbilled(found))


def _unbilled(found: Classified) -> Classified:
    return Classified(found.outcome, "no", None, found.code, found.message)


def _refused(error: object) -> Classified:
    """Understand an error without any response: the provider never got so far."""
    said = error if isinstance(error, dict) else {"message": str(error)}
    code = without_surrogates(str(said.get("code") or "batch_error"))[:60]
    message = classify(Reply(400, body=_bytes({"error": said}))).message
    outcome = Outcome.not_sent if code in _NEVER_TRIED else Outcome.server
    return Classified(outcome, "no", None, code, message.removeprefix("HTTP 400: "))


def _bytes(body: object) -> bytes:
    """Return the bytes of a body that arrived inside another document."""
    if isinstance(body, str):
        return body.encode("utf-8", "backslashreplace")
    try:
        return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:  # half a surrogate pair, which only an escape can spell
        return json.dumps(body, separators=(",", ":")).encode()
