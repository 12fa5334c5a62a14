"""Rows of the plan: what is sent keeps its order, what names it has none."""

import json
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from augment.batch_files import request_line
from augment.money import bound_input
from augment.plan_rows import plan_row
from augment.specs import Wanted, request_key
from augment.store.claims import unpack
from tests.augment.drive import plain_spec
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


PLAIN = (
    st.none() | st.booleans() | st.integers() | st.text(st.characters(exclude_categories=["Cs"]))
)
BODIES = st.fixed_dictionaries(
    {"model": st.text("abc"), "messages": st.lists(st.dictionaries(st.sampled_from("bca"), PLAIN))},
    optional={
        "response_format": st.none() | st.dictionaries(st.text("zyx", max_size=2), PLAIN),
        "top_p": st.floats(0, 1),
        "seed": st.integers(),
    },
)


@given(st.lists(BODIES, min_size=1, max_size=4), st.integers(0, 3))
def test_a_row_is_that_of_its_own_body_whatever_was_rendered_before(bodies, draw):
    spec = plain_spec()
    for body in [*bodies, bodies[0]]:
        row = plan_row(spec, Wanted(1, draw, body))
        assert row.key == request_key(spec.provider, spec.endpoint, body, draw)
        assert (unpack(row.body), list(unpack(row.body))) == (body, list(body))
        assert row.bound_in == bound_input(body)
