"""Requests as rows of the store's plan, in blocks that are written at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from augment.money import bound_input, bound_output
from augment.specs import canonical_json, key_of_text
from augment.store import PlanRow, pack, pack_text, sent_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from augment.specs import TaskSpec, Wanted

PLAN_BLOCK = 5_000
_FORM = "response_format"


def plan_row(spec: TaskSpec, want: Wanted) -> PlanRow:
    """Render what is wanted as a row of the plan, with its key and bounds."""
    context = None if want.context is None else pack(want.context)
    if want.body is None:
        return PlanRow(want.entity, want.field, want.skip or "skipped", context=context)
    draw = want.field if spec.kind != "embed" else 0
    text = _Text(want.body)
    return PlanRow(
        entity=want.entity,
        field=want.field,
        key=key_of_text(spec.provider, spec.endpoint, text.canonical, draw),
        body=pack_text(text.sent),
        context=context,
        bound_in=text.bound_in,
        bound_out=bound_output(want.body) or 0,
    )


class _Text:
    """A body as JSON: canonical for its key, and in its own order as it is sent.

    All bodies of a task share one object for the form of answers, by far their largest part. It
    is encoded once, and never changed.
    """

    _form: ClassVar[tuple[object, str, str]] = (None, "", "")

    def __init__(self, body: dict[str, Any]) -> None:
        form = body.get(_FORM)
        if form is None:
            self.canonical, self.sent = canonical_json(body), sent_json(body)
            self.bound_in = bound_input(body)
            return
        if _Text._form[0] is not form:
            _Text._form = (form, canonical_json(form), sent_json(form))
        _, canonical, sent = _Text._form
        rest = {name: value for name, value in body.items() if name != _FORM}
        texts = {name: canonical_json(value) for name, value in rest.items()} | {_FORM: canonical}
        self.canonical = _object((name, texts[name]) for name in sorted(texts))
        texts = {name: sent_json(value) for name, value in rest.items()} | {_FORM: sent}
        self.sent = _object((name, texts[name]) for name in body)
        self.bound_in = bound_input(rest) + len(canonical.encode())


def _object(texts: Iterable[tuple[str, str]]) -> str:
    return "{" + ",".join(f"{canonical_json(name)}:{text}" for name, text in texts) + "}"


def blocks(rows: Iterator[PlanRow]) -> Iterator[list[PlanRow]]:
    """Yield rows in lists of at most 5,000."""
    block: list[PlanRow] = []
    for row in rows:
        block.append(row)
        if len(block) == PLAN_BLOCK:
            yield block
            block = []
    if block:
        yield block
