"""Plan rows and specs for tests that need no prompt."""

from augment.specs import TaskSpec, request_key
from augment.store import PlanRow, pack


def spec_of(kind="pairs", **other):
    values = {
        "kind": kind,
        "provider": "test",
        "endpoint": "embeddings" if kind == "embed" else "chat.completions",
        "model": "m",
        "params": {"temperature": 0.6},
        "validator": f"{kind}/strict-1/1",
        "dataset_fp": "fp",
    }
    return TaskSpec(**{**values, **other})


def row_of(number, spec=None, entity=None):
    spec = spec or spec_of()
    body = {"model": spec.model, "messages": [{"role": "user", "content": f"ask {number}"}]}
    return PlanRow(
        entity=number if entity is None else entity,
        field=0,
        key=request_key(spec.provider, spec.endpoint, body),
        body=pack(body),
        context=pack({"n": number}),
        bound_in=100,
        bound_out=10,
    )
