"""Judges a raw reply: pure, versioned, never repairing what was cut.

The whole 200 body goes in, a verdict comes out. Checks run from the outside in: is it JSON, is
there a choice, was it refused, was it cut, and only then what it says.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError

from augment.prompts import HEURISTIC, Renderer, clean_text, repair
from augment.schemas import (
    HistoryRecall,
    ItemRecall,
    PairChoice,
    is_list,
    profile_model,
    record_model,
)
from augment.specs import Child, Verdict
from augment.validate_lenient import (
    RejectedError,
    coerced,
    named,
    parse_indices,
    parse_json,
    parse_record,
    unfenced,
)
from augment.validate_vectors import embedding_verdicts

if TYPE_CHECKING:
    from collections.abc import Mapping

    from augment.specs import Kind, TaskSpec

__all__ = ["embedding_verdicts", "internal_error", "validate", "validator_name"]

VERSION = 1
_UNKNOWN = frozenset({"", "unknown", "n/a", "null", "none", "not known", "not available"})
_PLACEHOLDER = re.compile(r"<[^<>]*>?")
"""What stands for a value in the form of the prompt; small models give it back."""
_NOT_INTEGER = ("int_type", "int_from_float", "int_parsing")


def validator_name(kind: Kind, prompt_set: str) -> str:
    """Return the name and version of a task's check."""
    form = "llmrec-2024" if prompt_set == "llmrec-2024" else "strict-1"
    return f"embed/{VERSION}" if kind == "embed" else f"{kind}/{form}/{VERSION}"


def internal_error(error: Exception) -> Verdict:
    """Return the verdict of a check that failed itself; the reply is kept all the same."""
    return Verdict("internal_error", detail=clean_text(f"{type(error).__name__}: {error}"))


def validate(
    spec: TaskSpec, raw: bytes, body: Mapping[str, Any], context: Mapping[str, Any]
) -> Verdict:
    """Judge the reply to a chat request.

    Args:
        spec: the task.
        raw: the exact body of a 200.
        body: what was sent.
        context: "shown" (dense ids), "ids" (as shown) and, for the older prompt set, "history"
            of pairs; "ids", "items" and "lines" of attributes; "form" of memorisation.

    Returns:
        The verdict. Its value is {"most_liked": k, "least_liked": m} with positions 1 to n in the
        order shown, a profile's record, {shown id: record} for attributes, or what was recalled.
    """
    outer = _outer(raw, body, spec)
    if isinstance(outer, Verdict):
        return outer
    try:
        if spec.kind == "pairs":
            return Verdict("accepted", _pair(spec, outer, context))
        if spec.kind == "profiles":
            return Verdict("accepted", _profile(spec, outer))
        if spec.kind == "memorisation":
            return Verdict("accepted", _recall(spec, outer, context["form"]))
        return _attributes(spec, outer, body, context)
    except RejectedError as problem:
        return _rejected(spec, body, outer, problem)


def _lenient(spec: TaskSpec) -> bool:
    return spec.prompt_set == "llmrec-2024"


def _rejected(
    spec: TaskSpec, body: Mapping[str, Any], answer: str, problem: RejectedError
) -> Verdict:
    child, detail = None, clean_text(problem.detail)
    if spec.prompt_set != HEURISTIC and _same_again(body):
        child = Child(repair(body, answer, detail))
    return Verdict(problem.code, detail=detail, child=child)


def _same_again(body: Mapping[str, Any]) -> bool:
    """Return whether the same body would get the same answer."""
    return not body.get("temperature", 1) or not body.get("top_p", 1) or "seed" in body


# Around the answer -----------------------------------------------------------------------------


def _outer(raw: bytes, body: Mapping[str, Any], spec: TaskSpec) -> str | Verdict:
    """Return the text of the answer, or why there is none."""
    if not raw.strip():
        return Verdict("empty_body", detail="the reply has no body")
    try:
        reply = json.loads(raw)
    except (ValueError, RecursionError):
        looks = raw.lstrip()[:1] == b"{"
        return Verdict("bad_json" if looks else "not_json", detail="the reply is no whole JSON")
    choices = reply.get("choices") if isinstance(reply, dict) else None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        return Verdict("no_choice", detail="the reply holds no choice")
    message = choices[0].get("message")
    message = message if isinstance(message, dict) else {}
    finish = choices[0].get("finish_reason")
    if message.get("refusal") or finish == "content_filter":
        said = clean_text(str(message.get("refusal") or finish))
        return Verdict("refused", detail=said, final=True)
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


# Records ---------------------------------------------------------------------------------------


def _checked(model: type[BaseModel], value: object) -> dict[str, Any]:
    try:
        return model.model_validate(value).model_dump(by_alias=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "the answer"
        code = "not_integer" if model is PairChoice and first["type"] in _NOT_INTEGER else "schema"
        raise RejectedError(code, f"`{where}`: {first['msg']}.") from error


def _known(spec: TaskSpec, record: dict[str, Any]) -> dict[str, Any]:
    """Return a record with its texts on one line, each name once, and null for "unknown".

    Raises:
        RejectedError: the prompt set asked for a guess, and there is none.
    """
    made: dict[str, Any] = {}
    for field, value in record.items():
        if isinstance(value, list):
            names = [clean_text(name) for name in value]
            distinct = {n.casefold(): n for n in reversed(names) if not _says_nothing(n)}
            made[field] = list(reversed(distinct.values()))
            continue
        made[field] = clean_text(value) if isinstance(value, str) else value
        if isinstance(value, str) and _says_nothing(made[field]):
            if _lenient(spec):
                raise RejectedError("unknown_value", f"`{field}` needs a best guess.")
            made[field] = None
    return made


def _says_nothing(name: str) -> bool:
    return name.casefold() in _UNKNOWN or _PLACEHOLDER.fullmatch(name) is not None


def _profile(spec: TaskSpec, text: str) -> dict[str, Any]:
    fields = tuple(spec.settings["fields"])
    value = coerced(parse_record(text, fields), fields) if _lenient(spec) else parse_json(text)
    return _known(spec, _checked(profile_model(fields, null=not _lenient(spec)), value))


def _recall(spec: TaskSpec, text: str, form: str) -> dict[str, Any]:
    """Return a title and a year, or the titles of a history."""
    value = _known(
        spec, _checked(HistoryRecall if form == "history" else ItemRecall, parse_json(text))
    )
    if form == "history" and len(value["titles"]) > spec.settings["asked"]:
        raise RejectedError(
            "wrong_count", f"at most {spec.settings['asked']} titles are asked for."
        )
    return value


# Pairs -----------------------------------------------------------------------------------------


def _pair(spec: TaskSpec, text: str, context: Mapping[str, Any]) -> dict[str, int]:
    """Return the numbers, 1 to n in the order shown, of the most and the least liked."""
    if _lenient(spec):
        most, least = (_position(name, context) for name in parse_indices(text))
    else:
        most, least = _numbers(parse_json(text), len(context["shown"]))
    if most == least:
        raise RejectedError("same_item", "the two must differ.")
    return {"most_liked": most, "least_liked": least}


def _numbers(value: object, n: int) -> tuple[int, int]:
    values = list(value.values()) if isinstance(value, dict) else value
    if isinstance(values, list) and len(values) > 2 and all(type(v) is int for v in values):
        raise RejectedError("wrong_count", "exactly two numbers are asked for.")
    choice = _checked(PairChoice, value)
    most, least = int(choice["most_liked"]), int(choice["least_liked"])
    if not (1 <= most <= n and 1 <= least <= n):
        raise RejectedError("not_candidate", f"numbers must lie between 1 and {n}.")
    return most, least


def _position(name: str, context: Mapping[str, Any]) -> int:
    ids: list[str] = context["ids"]
    if name in ids:
        return ids.index(name) + 1
    if name in context.get("history", ()):
        raise RejectedError("in_history", f"index {name} is from the history, no candidate.")
    if not name.lstrip("-").isdecimal() and all(i.isdecimal() for i in ids):
        raise RejectedError("not_integer", f"{name!r} is no index.")
    raise RejectedError("not_candidate", f"index {name} is none of the candidates.")


# Attributes ------------------------------------------------------------------------------------


def _attributes(
    spec: TaskSpec, text: str, body: Mapping[str, Any], context: Mapping[str, Any]
) -> Verdict:
    """Align records by id; what is missing, doubled or faulty is asked for again alone."""
    good: dict[str, Any] = {}
    bad: dict[str, RejectedError] = {}
    for record in _records(spec, text, context["ids"]):
        name = record.get("id") if isinstance(record, dict) else None
        if not isinstance(name, str) or name not in context["ids"]:
            continue
        if name in good or name in bad:
            good.pop(name, None)
            bad[name] = RejectedError("doubled_id", f"id {name!r} was answered twice.")
            continue
        try:
            good[name] = _item(spec, record)
        except RejectedError as problem:
            bad[name] = problem
    lacking = [name for name in context["ids"] if name not in good]
    if not lacking:
        return Verdict("accepted", good)
    if not good or spec.prompt_set == HEURISTIC:
        missing = RejectedError("missing_id", f"there is no record for id {lacking[0]!r}.")
        raise next((bad[name] for name in lacking if name in bad), missing)
    detail = f"{len(lacking)} of {len(context['ids'])} items are missing or faulty"
    return Verdict("missing_id", good, detail, child=_rest(spec, body, context, lacking))


def _records(spec: TaskSpec, text: str, ids: list[str]) -> list[Any]:
    """Return the records of an answer.

    Raises:
        RejectedError: it holds no list of records.
    """
    if not _lenient(spec):
        content = parse_json(text)
        if isinstance(content, dict) and set(content) == {"items"}:
            content = content["items"]
            if spec.items_per_call == 1 and isinstance(content, list):
                content = [{"id": ids[0], **r} if isinstance(r, dict) else r for r in content]
        else:
            content = None
    else:
        alone = len(ids) == 1
        content = (
            parse_record(text, spec.settings["fields"], ["id"])
            if alone
            else named(parse_json(unfenced(text)))
        )
        if isinstance(content, dict) and "items" in content:
            content = content["items"]
        elif isinstance(content, dict) and alone:
            content = [{"id": ids[0], **content}]
        if isinstance(content, list):
            content = [_with_text_id(named(record)) for record in content]
    if not isinstance(content, list):
        raise RejectedError("schema", "`items`, a list of records, must be all there is.")
    return content


def _with_text_id(record: Any) -> Any:  # noqa: ANN401
    if isinstance(record, dict) and type(record.get("id")) is int:
        return {**record, "id": str(record["id"])}
    return record


def _item(spec: TaskSpec, record: dict[str, Any]) -> dict[str, Any]:
    fields = tuple(spec.settings["fields"])
    if _lenient(spec):
        record = coerced(record, [name for name in fields if not is_list(name)])
    found = _checked(record_model(fields, null=not _lenient(spec)), record)
    return _known(spec, {name: found[name] for name in fields})


def _rest(
    spec: TaskSpec, body: Mapping[str, Any], context: Mapping[str, Any], lacking: list[str]
) -> Child:
    keep = [i for i, name in enumerate(context["ids"]) if name in lacking]
    narrowed = {k: [context[k][i] for i in keep] for k in ("ids", "items", "lines")}
    rendered = Renderer(spec).body(listed="\n".join(narrowed["lines"]))
    return Child({**body, "messages": rendered["messages"]}, narrowed)
