"""Rows of the plan: what is sent keeps its order, what names it has none."""

import json
from dataclasses import replace

from augment.batch_files import request_line
from augment.plan_rows import plan_row
from augment.specs import request_key
from augment.store.claims import unpack
from tests.augment.tiny_data import ask, tiny


def test_fields_are_asked_for_in_the_order_of_the_schema(tmp_path):
    spec, wants = ask("attributes", tiny(tmp_path))
    want = next(want for want in wants if want.body is not None)
    row = plan_row(spec, want)
    for body in (
        unpack(row.body),
        json.loads(request_line(row.key, "chat.completions", want.body))["body"],
    ):
        schema = body["response_format"]["json_schema"]["schema"]
        record = schema["properties"]["items"]["items"]
        assert list(record["properties"]) == ["director", "country", "language"]
        assert body == want.body
    turned = {name: want.body[name] for name in reversed(want.body)}
    again = plan_row(spec, replace(want, body=turned))
    assert again.key == row.key == request_key(spec.provider, spec.endpoint, want.body)
