"""A cassette: every reply of a store in one portable file, to be replayed without a network.

JSON lines, compressed. The first says what was asked (config, data set, specs) and which export
came of it, the last how many lines there are. Between them, for each request its body, its key
and what was answered: replies byte for byte in the order they came, rejected ones too; embeddings
as one vector a text; for the rest why there is no answer. No headers, no keys.
"""

from __future__ import annotations

import base64
import contextlib
import gzip
import json
import zlib
from collections import Counter
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any, cast

from augment.specs import request_key
from llmrec_pl.errors import AugmentationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

FORMAT, VERSION = "llmrec-cassette", 1
POOL_FILES = ("candidates.parquet", "predictions.json")


def pools_of(cassette: Path) -> Path:
    """Return the folder with the candidate pools that belong to a cassette."""
    return cassette.with_name(f"{cassette.name}.pools")


@dataclass
class Counts:
    """What a cassette holds.

    Attributes:
        replies: raw replies.
        vectors: embedded texts.
        unanswered: requests without either.
        problems: what is wrong, the first few.
        n_problems: number of those.
    """

    replies: int = 0
    vectors: int = 0
    unanswered: int = 0
    problems: list[str] = field(default_factory=list)
    n_problems: int = 0

    def add(self, entry: dict[str, Any]) -> None:
        """Count an entry."""
        self.replies += "raw" in entry or "raw_b64" in entry
        self.vectors += "vector" in entry
        self.unanswered += "none" in entry


class Cassette:
    """A cassette opened to be read.

    Args:
        path: the file.

    Raises:
        AugmentationError: it is no cassette, or newer than this program.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._open() as lines:
            self.header = self._parse(1, self._line(lines, 1))
        if self.header.get("format") != FORMAT:
            raise AugmentationError(f"{str(path)!r} is no cassette; its first line says so.")
        if self.header.get("version") != VERSION:
            raise AugmentationError(
                f"cassette {str(path)!r} has version {self.header.get('version')!r}, this program "
                f"knows {VERSION}; update llmrec_pl."
            )

    def entries(self) -> Iterator[dict[str, Any]]:
        """Yield what was asked and answered.

        Raises:
            AugmentationError: the file is damaged or cut.
        """
        with self._open() as lines:
            self._line(lines, 1)
            number = 1
            while text := self._line(lines, number + 1):
                number += 1
                entry = self._parse(number, text)
                if "end" in entry:
                    # What follows must be the file's end, where its checksum lies.
                    if entry.get("lines") == number and not self._line(lines, number + 1):
                        return
                    break
                yield entry
        raise AugmentationError(
            f"cassette {str(self.path)!r} is cut or was edited: its last line does not count "
            f"{number} lines. Copy it again."
        )

    def _open(self) -> IO[bytes]:
        if not self.path.is_file():
            raise AugmentationError(f"no cassette at {str(self.path)!r}.")
        with self.path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        return cast("IO[bytes]", gzip.GzipFile(self.path)) if packed else self.path.open("rb")

    def _line(self, lines: IO[bytes], number: int) -> bytes:
        try:
            return lines.readline()
        except (EOFError, OSError, zlib.error) as error:
            raise AugmentationError(
                f"cassette {str(self.path)!r} is damaged at line {number}: {error}. Copy it again."
            ) from error

    def _parse(self, number: int, text: bytes) -> dict[str, Any]:
        with contextlib.suppress(ValueError):
            entry = json.loads(text)
            if isinstance(entry, dict):
                return entry
        raise AugmentationError(
            f"{str(self.path)!r} is no cassette or is damaged: line {number} is no JSON object."
        )


def raw_of(entry: dict[str, Any]) -> bytes:
    """Return the exact bytes of a reply."""
    return base64.b64decode(entry["raw_b64"]) if "raw_b64" in entry else str(entry["raw"]).encode()


def verify(cassette: Cassette, progress: Callable[[int], None] = lambda _: None) -> Counts:
    """Compute every key anew and look at every vector; problems are counted, not raised.

    Raises:
        AugmentationError: the file is damaged or cut.
    """
    counts, kinds = Counts(), Counter[str]()
    for entry in cassette.entries():
        counts.add(entry)
        progress(1)
        fault = _fault(entry)
        if fault is not None:
            counts.n_problems += 1
            kinds[fault] += 1
            if kinds[fault] <= 3:
                counts.problems.append(f"{str(entry.get('key'))[:12]}…: {fault}")
    return counts


def _fault(entry: dict[str, Any]) -> str | None:
    try:
        key = request_key(entry["provider"], entry["endpoint"], entry["body"], entry["draw"])
        if key.hex() != entry["key"]:
            return "the key is not that of the body"
        if "vector" in entry:
            size = len(base64.b64decode(entry["vector"], validate=True))
            return None if size == 4 * entry["dim"] > 0 else "the vector has another length"
        if "none" in entry:
            return None
        raw_of(entry)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        return f"the entry is incomplete ({type(error).__name__})"
    return None
