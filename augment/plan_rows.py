"""Requests as rows of the store's plan, in blocks that are written at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from augment.money import bound_input, bound_output
from augment.specs import canonical_json, key_of_text
from augment.store import PlanRow, pack, pack_body

if TYPE_CHECKING:
    from collections.abc import Iterator

    from augment.specs import TaskSpec, Wanted

PLAN_BLOCK = 5_000


def plan_row(spec: TaskSpec, want: Wanted) -> PlanRow:
    """Render what is wanted as a row of the plan, with its key and bounds."""
    context = None if want.context is None else pack(want.context)
    if want.body is None:
        return PlanRow(want.entity, want.field, want.skip or "skipped", context=context)
    draw = want.field if spec.kind != "embed" else 0
    text = canonical_json(want.body)
    return PlanRow(
        entity=want.entity,
        field=want.field,
        key=key_of_text(spec.provider, spec.endpoint, text, draw),
        body=pack_body(want.body),
        context=context,
        bound_in=bound_input(want.body),
        bound_out=bound_output(want.body) or 0,
    )


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
