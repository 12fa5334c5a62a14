"""The name of a request, for ever: another name would be paid for again."""

import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from augment.specs import canonical_json, key_of_text, request_key

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=8,
)  # fmt: skip
NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
BODIES = st.dictionaries(NAMES, JSON, max_size=4)


@given(NAMES, st.sampled_from(["chat.completions", "embeddings"]), BODIES, st.integers(0, 9))
def test_a_key_is_the_digest_of_the_canonical_json_of_all_four(provider, endpoint, body, draw):
    whole = {"provider": provider, "endpoint": endpoint, "body": body, "draw": draw}
    text = json.dumps(whole, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    key = hashlib.sha256(b"llmrec-req\0v1\0" + text.encode()).digest()
    assert key_of_text(provider, endpoint, canonical_json(body), draw) == key


def test_a_key_is_what_it_was():
    body = {"model": "m", "messages": [{"role": "user", "content": 'é "x" 😀'}], "top_p": 0.1}
    key = request_key("openai", "chat.completions", body, 2)
    assert key.hex() == "8d90446275dc6bc05953de91b612fd31d8f5cf078a08aac273f24ebf168cf060"


def test_what_steers_the_transport_is_no_part_of_it():
    steered = {"model": "m", "stream": True, "user": "u", "store": False, "metadata": {}}
    key = request_key("p", "chat.completions", {"model": "m"})
    assert request_key("p", "chat.completions", steered) == key


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_none_have_no_json(value):
    with pytest.raises(ValueError, match="JSON"):
        canonical_json({"x": value})
