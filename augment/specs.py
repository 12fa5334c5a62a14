"""What a task asks, and the identity of a request: pure types, no I/O.

A request is known by what is sent and by who answers, never by when or why it was planned: its
key covers the provider's label, the endpoint, the body and the number of the draw. Prompt set,
data set and validator are columns of the store, so a changed version with equal text costs
nothing.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

Kind = Literal["pairs", "profiles", "attributes", "embed", "memorisation"]
Endpoint = Literal["chat.completions", "embeddings"]
EXPORTED: tuple[Kind, ...] = ("pairs", "profiles", "attributes", "embed")
"""The tasks whose answers are trained on; the other one only tests who answers."""
KINDS: tuple[Kind, ...] = (*EXPORTED, "memorisation")
RANDOM = "random"
"""Stands for candidate pools drawn at random, the placebo, in configs and in specs."""
_NOT_CONTENT = frozenset({"stream", "user", "metadata", "store", "service_tier"})


_encode = json.JSONEncoder(
    sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
).encode


def canonical_json(value: object) -> str:
    """Return JSON with sorted keys, no spaces and text as it is.

    Raises:
        ValueError: a number is NaN or infinite.
    """
    return _encode(value)


def request_key(provider: str, endpoint: Endpoint, body: dict[str, Any], draw: int = 0) -> bytes:
    """Return the 32 bytes that name a request.

    Args:
        provider: label of who answers ("openai", "local-smollm2"), not an address.
        endpoint: "chat.completions" or "embeddings"; an embedding's body holds one text.
        body: exactly what is sent; fields that only steer the transport are left out.
        draw: number of the repeated sample, 0 for the first.
    """
    content = {name: value for name, value in body.items() if name not in _NOT_CONTENT}
    return key_of_text(provider, endpoint, canonical_json(content), draw)


def key_of_text(provider: str, endpoint: Endpoint, body: str, draw: int = 0) -> bytes:
    """Return the key of a body that is canonical JSON already; see `request_key`.

    The digest is over the canonical JSON of the four together.
    """
    rest = canonical_json({"draw": draw, "endpoint": endpoint, "provider": provider})
    return hashlib.sha256(f'llmrec-req\0v1\0{{"body":{body},{rest[1:]}'.encode()).digest()


class TaskSpec(BaseModel):
    """One task with all that its answers depend on; stored with the replies.

    Attributes:
        kind: the task.
        provider: label of who answers.
        endpoint: where the requests go.
        model: name of the model.
        params: sampling parameters as sent: temperature, top_p, max_tokens, seed, dimensions.
        prompt_set: "llmrec-2024", "strict-1" or "heuristic-1"; "" for embeddings.
        prompt_sha: sha256 (hex) over the templates of the set.
        structured: how the form of the answer is asked for, part of every body.
        validator: name and version of the check, "pairs/strict-1/1".
        draws: samples a prompt.
        items_per_call: items in one attributes request.
        texts_per_call: texts in one embeddings request.
        dataset_fp: fingerprint of the data set.
        settings: what else the prompts depend on: domain words, fields, history length, pool.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Kind
    provider: str
    endpoint: Endpoint
    model: str
    params: dict[str, Any]
    prompt_set: str = ""
    prompt_sha: str = ""
    structured: Literal["json_schema", "json_object", "none"] = "none"
    validator: str
    draws: int = 1
    items_per_call: int = 1
    texts_per_call: int = 256
    dataset_fp: str
    settings: dict[str, Any] = {}

    @property
    def sha(self) -> bytes:
        """Sha256 over the canonical JSON of all attributes."""
        return hashlib.sha256(canonical_json(self.model_dump()).encode()).digest()


@dataclass(frozen=True, slots=True)
class Wanted:
    """An answer that a task wants: for one entity, from one request.

    Attributes:
        entity: dense id of the user or item; for a group of items their first.
        field: number of the draw, of the field for embeddings, or of the probe.
        body: what is sent (one text for an embedding); None if skipped.
        context: what validation and export need beside the reply; plain JSON values.
        skip: why nothing is asked: "no_history", "no_title", "no_candidates", "empty_text".
    """

    entity: int
    field: int = 0
    body: dict[str, Any] | None = None
    context: dict[str, Any] | None = None
    skip: str | None = None


@dataclass(frozen=True, slots=True)
class Child:
    """A follow-up request: a repair ask, a longer answer, or the faulty rest of a group.

    Without a context of its own it has its parent's.
    """

    body: dict[str, Any]
    context: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What validation says of one reply.

    Attributes:
        code: "accepted" or why not: not_json, empty_body, bad_json, no_choice, empty_content,
            truncated, refused, schema, wrong_count, not_integer, not_candidate, same_item,
            in_history, missing_id, bad_vector, internal_error, ...
        value: the validated answer as plain JSON values; None if there is none. For a group of
            items a mapping from each accepted item's id in the call to its record.
        detail: one short sentence for people.
        child: body and context of a follow-up that may mend it; None to ask the same again.
        final: True where asking again is pointless (a refusal).
    """

    code: str
    value: Any = None
    detail: str = ""
    child: Child | None = None
    final: bool = False

    @property
    def accepted(self) -> bool:
        """True if nothing is left to ask."""
        return self.code == "accepted"
