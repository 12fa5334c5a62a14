"""Judges a raw reply: pure, versioned, never repairing what was cut.

The whole 200 body goes in, a verdict comes out. Checks run from the outside in: is it JSON, is
there a choice, was it refused, was it cut, and only then what it says.
"""

from __future__ import annotations

import base64
import json
import re
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, ValidationError

from augment.prompts import render, repair
from augment.schemas import PairChoice, profile_model, record_model
from augment.specs import Child, Verdict

if TYPE_CHECKING:
    from collections.abc import Mapping

    from augment.specs import Kind, TaskSpec

VERSION = 1
_FENCE = re.compile(r"\A```[a-zA-Z]*\s*\n(.*?)\n?```\s*\Z", re.DOTALL)
_PAIR = re.compile(r"\A\s*\[?\s*([^:\[\]\n]+?)\s*\]?\s*::\s*\[?\s*([^:\[\]\n]+?)\s*\]?\s*\Z")


class _RejectedError(Exception):
    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code, self.detail = code, detail


def validator_name(kind: Kind, prompt_set: str) -> str:
    """Return the name and version of a task's check."""
    form = "llmrec-2024" if prompt_set == "llmrec-2024" else "strict-1"
    return f"embed/{VERSION}" if kind == "embed" else f"{kind}/{form}/{VERSION}"


def internal_error(error: Exception) -> Verdict:
    """Return the verdict of a check that failed itself; the reply is kept all the same."""
    return Verdict("internal_error", detail=f"{type(error).__name__}: {error}")


def validate(
    spec: TaskSpec, raw: bytes, body: Mapping[str, Any], context: Mapping[str, Any]
) -> Verdict:
    """Judge the reply to a chat request.

    Args:
        spec: the task.
        raw: the exact body of a 200.
        body: what was sent.
        context: "shown" (dense ids), "ids" (original ids as shown) and "history" of pairs;
            "ids" and "items" of attributes.
    """
    outer = _outer(raw, body, spec)
    if isinstance(outer, Verdict):
        return outer
    try:
        if spec.kind == "pairs":
            return Verdict("accepted", _pair(spec, outer, context))
        if spec.kind == "profiles":
            model = profile_model(tuple(spec.settings["fields"]), null=_null(spec))
            return Verdict("accepted", _checked(model, _json(spec, outer)))
        return _attributes(spec, outer, body, context)
    except _RejectedError as problem:
        return _rejected(spec, body, outer, problem)


def _null(spec: TaskSpec) -> bool:
    return spec.prompt_set != "llmrec-2024"


def _rejected(
    spec: TaskSpec, body: Mapping[str, Any], answer: str, problem: _RejectedError
) -> Verdict:
    child = None
    if not spec.params.get("temperature"):  # the same body would get the same answer
        child = Child(repair(body, answer, problem.detail))
    return Verdict(problem.code, detail=problem.detail, child=child)


def _outer(raw: bytes, body: Mapping[str, Any], spec: TaskSpec) -> str | Verdict:
    """Return the text of the answer, or why there is none."""
    if not raw.strip():
        return Verdict("empty_body", detail="the reply has no body")
    try:
        reply = json.loads(raw)
    except ValueError:
        looks = raw.lstrip()[:1] == b"{"
        return Verdict("bad_json" if looks else "not_json", detail="the reply is no whole JSON")
    choices = reply.get("choices") if isinstance(reply, dict) else None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        return Verdict("no_choice", detail="the reply holds no choice")
    message = choices[0].get("message")
    message = message if isinstance(message, dict) else {}
    finish = choices[0].get("finish_reason")
    if message.get("refusal") or finish == "content_filter":
        return Verdict("refused", detail=str(message.get("refusal") or finish), final=True)
    if finish == "length":
        return _longer(spec, body)
    content = message.get("content")
    if not isinstance(content, str) or not content.strip():
        return Verdict("empty_content", detail="the answer is empty")
    return content


def _longer(spec: TaskSpec, body: Mapping[str, Any]) -> Verdict:
    name = "max_completion_tokens" if "max_completion_tokens" in body else "max_tokens"
    most, ceiling = int(body.get(name, 0)), int(spec.settings["max_tokens_ceiling"])
    detail = f"cut at {most} tokens"
    if not 0 < most < ceiling:
        return Verdict("truncated", detail=f"{detail}, the ceiling", final=True)
    return Verdict("truncated", detail=detail, child=Child({**body, name: min(2 * most, ceiling)}))


def _json(spec: TaskSpec, text: str) -> Any:
    if spec.prompt_set == "llmrec-2024" and (fenced := _FENCE.match(text.strip())):
        text = fenced.group(1)
    try:
        return json.loads(text)
    except ValueError as error:
        raise _RejectedError("bad_json", f"the answer is not JSON ({error}).") from error


def _checked(model: type[BaseModel], value: Any) -> dict[str, Any]:
    try:
        return model.model_validate(value).model_dump()
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "the answer"
        raise _RejectedError("schema", f"`{where}`: {first['msg']}.") from error


def _pair(spec: TaskSpec, text: str, context: Mapping[str, Any]) -> dict[str, int]:
    """Return the numbers, 1 to n in the order shown, of the most and the least liked."""
    if spec.prompt_set == "llmrec-2024":
        most, least = (_position(name, context) for name in _indices(text))
    else:
        choice = _checked(PairChoice, _json(spec, text))
        most, least = choice["most_liked"], choice["least_liked"]
        n = len(context["shown"])
        if not (1 <= most <= n and 1 <= least <= n):
            raise _RejectedError("not_candidate", f"numbers must lie between 1 and {n}.")
    if most == least:
        raise _RejectedError("same_item", "the two must differ.")
    return {"most_liked": most, "least_liked": least}


def _indices(text: str) -> list[str]:
    fenced = _FENCE.match(text.strip())
    text = fenced.group(1) if fenced else text
    if text.count("::") > 1:
        raise _RejectedError("wrong_count", "exactly two indices are asked for.")
    found = _PAIR.match(text)
    if not found:
        raise _RejectedError("format", "write two indices as 12::34 and nothing else.")
    return [found.group(1), found.group(2)]


def _position(name: str, context: Mapping[str, Any]) -> int:
    ids = context["ids"]
    if name in ids:
        return int(ids.index(name)) + 1
    if name in context.get("history", ()):
        raise _RejectedError("in_history", f"index {name} is from the history, no candidate.")
    if not name.lstrip("-").isdigit() and all(i.isdigit() for i in ids):
        raise _RejectedError("not_integer", f"{name!r} is no index.")
    raise _RejectedError("not_candidate", f"index {name} is none of the candidates.")


def _attributes(
    spec: TaskSpec, text: str, body: Mapping[str, Any], context: Mapping[str, Any]
) -> Verdict:
    """Align records by id; what is missing, doubled or faulty is asked for again alone."""
    content = _json(spec, text)
    records = content.get("items") if isinstance(content, dict) else None
    if not isinstance(records, list):
        raise _RejectedError("schema", "`items` must be a list of records.")
    model = record_model(tuple(spec.settings["fields"]), null=_null(spec))
    good: dict[str, Any] = {}
    bad: dict[str, str] = {}
    for record in records:
        name = record.get("id") if isinstance(record, dict) else None
        if name not in context["ids"] or name in good or name in bad:
            if name in good:
                del good[name]
                bad[name] = "it was answered twice."
            continue
        try:
            good[name] = {k: v for k, v in _checked(model, record).items() if k != "id"}
        except _RejectedError as problem:
            bad[name] = problem.detail
    lacking = [name for name in context["ids"] if name not in good]
    if not lacking:
        return Verdict("accepted", good)
    if not good:
        raise _RejectedError("schema", next(iter(bad.values()), f"no record for {lacking[0]!r}."))
    detail = f"{len(lacking)} of {len(context['ids'])} items are missing or faulty"
    return Verdict("missing_id", good, detail, child=_rest(spec, body, context, lacking))


def _rest(
    spec: TaskSpec, body: Mapping[str, Any], context: Mapping[str, Any], lacking: list[str]
) -> Child:
    keep = [i for i, name in enumerate(context["ids"]) if name in lacking]
    narrowed = {k: [context[k][i] for i in keep] for k in ("ids", "items", "lines")}
    rendered = render(spec, listed="\n".join(narrowed["lines"]))
    return Child({**body, "messages": rendered["messages"]}, narrowed)


def embedding_verdicts(spec: TaskSpec, raw: bytes, n: int) -> list[Verdict]:
    """Judge the reply to an embeddings call, text by text, in the order sent.

    Args:
        spec: the task; `params["dimensions"]`, if given, must be met.
        raw: the exact body.
        n: number of texts sent.

    Returns:
        Verdicts whose value is a float32 vector.
    """
    try:
        rows = json.loads(raw)["data"]
        places = [row["index"] for row in rows]
        vectors = [_vector(row["embedding"]) for row in rows]
    except (ValueError, KeyError, TypeError) as error:
        code = "bad_json" if raw.strip() else "empty_body"
        return [Verdict(code, detail=f"no embeddings in the reply ({error!r})")] * n
    if sorted(places) != list(range(n)):
        return [Verdict("wrong_count", detail=f"{len(rows)} vectors for {n} texts")] * n
    wanted = spec.params.get("dimensions") or max(map(len, vectors))
    verdicts = [Verdict("")] * n
    for place, vector in zip(places, vectors, strict=True):
        verdicts[place] = _judge_vector(vector, wanted)
    return verdicts


def _vector(value: Any) -> np.ndarray[Any, np.dtype[np.float32]]:
    if isinstance(value, str):
        return np.frombuffer(base64.b64decode(value, validate=True), dtype="<f4")
    return np.asarray(value, dtype=np.float32).reshape(-1)


def _judge_vector(vector: np.ndarray[Any, np.dtype[np.float32]], dim: int) -> Verdict:
    if len(vector) != dim:
        return Verdict("bad_vector", detail=f"{len(vector)} dimensions, expected {dim}")
    if not np.isfinite(vector).all() or not vector.any():
        return Verdict("bad_vector", detail="NaN, infinite or all zero")
    return Verdict("accepted", vector)
