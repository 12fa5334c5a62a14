"""How many tokens a prompt and its answer have: counted, learnt from the store, or guessed."""

from __future__ import annotations

import hashlib
import os
import tempfile
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from augment.money import bound_input
from augment.specs import canonical_json
from llmrec_pl.errors import ConfigError

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable

    from augment.specs import TaskSpec

PER_BYTE = 0.27
"""Tokens a byte of English prompts: prose has a token each 4 to 4.5 bytes, but titles, ids and
JSON quotes are cut finer, down to one each 3.3."""
_LOW = 0.22 / PER_BYTE
_LOW_CALIBRATED = 0.9
_PER_MESSAGE, _PER_CALL = 4, 3  # what chat formats add around a message and before the answer
_ENOUGH = 5
"""Replies from which the store's own ratio is taken."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """Expected tokens of the requests of one task.

    Attributes:
        input: tokens of a body.
        output: tokens of an answer.
        low: what the low figure is of the expected one.
        calibrated: whether they come from replies in the store.
    """

    input: Callable[[dict[str, Any]], float]
    output: float
    low: float
    calibrated: bool = False


def calibrated(db: sqlite3.Connection | None, spec: TaskSpec) -> Tokens | None:
    """Return the ratios that this task's replies had, None if there are too few.

    Replies of the same model to the same kind of task count, whatever its prompt said.
    """
    if db is None:
        return None
    row = db.execute(
        "WITH sent AS (SELECT a.id, a.tok_in, a.tok_out FROM attempt a "
        "JOIN call_item c ON c.attempt = a.id AND c.pos = 0 JOIN request r ON r.id = c.request "
        "JOIN spec s ON s.id = r.spec WHERE a.usage_src = 'server' AND a.state = 1 "
        "AND s.kind = ? AND json_extract(s.json, '$.model') = ? "
        "AND json_extract(s.json, '$.provider') = ? AND json_extract(s.json, '$.prompt_set') = ? "
        "ORDER BY a.id DESC LIMIT 20000) "
        "SELECT (SELECT count(*) FROM sent), (SELECT total(tok_in) FROM sent), total(r.bound_in), "
        "(SELECT total(tok_out) FROM sent) FROM sent JOIN call_item c ON c.attempt = sent.id "
        "JOIN request r ON r.id = c.request",
        (spec.kind, spec.model, spec.provider, spec.prompt_set),
    ).fetchone()
    n, tok_in, bound_in, tok_out = row
    if n < _ENOUGH or not bound_in or not tok_in:
        return None
    ratio, output = tok_in / bound_in, tok_out / n
    return Tokens(lambda body: ratio * bound_input(body), output, _LOW_CALIBRATED, calibrated=True)


def guessed(spec: TaskSpec, exact: Callable[[str], int] | None = None) -> Tokens:
    """Return what such prompts and answers usually have.

    Args:
        spec: the task.
        exact: counts the tokens of a text; by bytes without.
    """
    count: Callable[[str], float] = exact or _by_bytes
    low = 1.0 if exact is not None else _LOW
    return Tokens(lambda body: _input(body, count), _answer_tokens(spec), low)


def _by_bytes(text: str) -> float:
    return PER_BYTE * len(text.encode("utf-8", "surrogatepass"))


def _input(body: dict[str, Any], count: Callable[[str], float]) -> float:
    if "messages" not in body:
        return count(body["input"])
    total = float(_PER_CALL)
    for message in body["messages"]:
        total += _PER_MESSAGE + count(str(message["content"]))
    if body.get("response_format") is not None:  # the schema is put before the prompt
        total += count(canonical_json(body["response_format"]))
    return total


def _answer_tokens(spec: TaskSpec) -> float:
    """Return the tokens of a usual answer, by its form."""
    if spec.kind == "embed" or spec.prompt_set == "heuristic-1":
        return 0.0
    n_fields = len(spec.settings.get("fields", []))
    if spec.kind == "pairs":
        # {"most_liked": 3, "least_liked": 7}, or 4755::10734 with three tokens a long id
        return 8.0 if spec.prompt_set == "llmrec-2024" else 16.0
    if spec.kind == "profiles":
        # a name of three tokens and quotes each; age, gender, country, language take two, the
        # three lists about four entries of four
        return 6.0 * n_fields + 4 * 2 + 3 * 4 * 4
    if spec.kind == "memorisation":
        # a title of seven tokens with its quotes, in a frame; items are asked for twice, by id
        # and by title, and histories twice, under their own id and another
        n_items, n_users = spec.settings["items"], spec.settings["users"]
        per_history = 6.0 + 9.0 * spec.settings["asked"]
        return float((20.0 * n_items + per_history * n_users) / max(1, n_items + n_users))
    # the frame, an id of four tokens, then name, quotes and value of each field
    return 6.0 + spec.items_per_call * (10.0 + 8.0 * n_fields)


def exact_counter(model: str, file: Path | None = None) -> Callable[[str], int]:
    """Return a function that counts tokens with a real table that lies on this machine.

    Args:
        model: whose table to take from `tiktoken`'s cache where no file is given.
        file: a ``tokenizer.json``, for the package `tokenizers`.

    Raises:
        ConfigError: package or table is missing; nothing is ever downloaded.
    """
    if file is not None:
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            raise ConfigError("`--exact FILE` needs the package `tokenizers`; install it.") from (
                error
            )
        if not file.is_file():
            raise ConfigError(f"no tokenizer.json at {str(file)!r}; correct `--exact`.")
        table = Tokenizer.from_file(str(file))
        return lambda text: len(table.encode(text, add_special_tokens=False).ids)
    try:
        tiktoken = import_module("tiktoken")
    except ImportError as error:
        raise ConfigError(
            "`--exact` needs the package `tiktoken` with its table in the cache, or a "
            "tokenizer.json: `--exact FILE`."
        ) from error
    try:
        name = tiktoken.encoding_name_for_model(model)
    except KeyError as error:
        raise ConfigError(
            f"`tiktoken` knows no table for model {model!r}; give a tokenizer.json: `--exact FILE`."
        ) from error
    if not _in_cache(name):
        raise ConfigError(
            f"`tiktoken`'s table {name!r} is not on this machine and is not fetched here. Load it "
            "once where there is a network and set TIKTOKEN_CACHE_DIR, or leave out `--exact`."
        )
    encoding = tiktoken.get_encoding(name)
    return lambda text: len(encoding.encode(text, disallowed_special=()))


def _in_cache(name: str) -> bool:
    """Return whether `tiktoken` would find a table without the network."""
    url = f"https://openaipublic.blob.core.windows.net/encodings/{name}.tiktoken"
    digest = hashlib.sha1(url.encode(), usedforsecurity=False).hexdigest()
    usual = Path(tempfile.gettempdir()) / "data-gym-cache"
    named = os.environ.get("TIKTOKEN_CACHE_DIR") or os.environ.get("DATA_GYM_CACHE_DIR")
    return (Path(named) if named else usual).joinpath(digest).is_file()
