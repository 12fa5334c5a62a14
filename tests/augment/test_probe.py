from __future__ import annotations

import asyncio

import pytest

from augment.client import HttpAnswerer
from augment.config import Provider
from augment.errors import AuthStop, QuotaStop, RateLimitStop
from augment.probe import probe_structured
from tests.augment.fault_replies import Step, error, limited
from tests.augment.fault_server import FaultServer


class Impatient:
    """Notes how long it was asked to wait."""

    def __init__(self):
        self.waits = []

    async def sleep(self, seconds):
        self.waits.append(seconds)


def probe(server, model="m", **other):
    clock = Impatient()

    async def work():
        provider = Provider(name="local", label="toy", base_urls=[server.url])
        answerer = HttpAnswerer(provider, key=None)
        try:
            return await probe_structured(answerer, model, clock=clock, **other)
        finally:
            await answerer.close()

    return asyncio.run(work()), clock.waits


def refusing(*types):
    """A server that does not know some types of response_format."""

    def script(_, body):
        kind = body.get("response_format", {}).get("type", "none")
        return error(400, "invalid_value", f"no {kind}") if kind in types else "ok"

    return script


@pytest.mark.parametrize(
    ("refused", "mode", "posts"),
    [
        ((), "json_schema", 1),
        (("json_schema",), "json_object", 2),
        (("json_schema", "json_object"), "none", 3),
    ],
)
def test_the_strictest_mode_the_server_takes_is_found(refused, mode, posts):
    with FaultServer(refusing(*refused)) as server:
        assert probe(server) == (mode, [])
    assert len(server.posts) == posts
    assert all(post["body"]["max_tokens"] <= 32 for post in server.posts)


def test_a_422_falls_to_the_next_mode_too():
    with FaultServer([error(422, "unprocessable"), "ok"]) as server:
        assert probe(server)[0] == "json_object"


@pytest.mark.parametrize("content", ["Sure, 1!", '{"choice": 7}', "[1]", ""])
def test_a_server_that_ignores_the_schema_is_not_believed(content):
    with FaultServer([Step(content=content), "ok"]) as server:
        assert probe(server)[0] == "json_object"


def test_an_answer_cut_by_its_length_is_no_disobedience():
    with FaultServer([Step(content="{", finish="length")]) as server:
        assert probe(server)[0] == "json_schema"


@pytest.mark.parametrize("name", ["no_choices", "html_200", "empty_200", "cut_json"])
def test_a_200_without_an_answer_is_no_consent(name):
    with FaultServer([name, name, "ok"]) as server:
        assert probe(server)[0] == "none"


def test_a_page_of_a_proxy_is_no_chat_server():
    with FaultServer(["html_200"]) as server, pytest.raises(AuthStop, match="no chat server"):
        probe(server)
    assert len(server.posts) == 3


@pytest.mark.parametrize(
    ("step", "stop", "message"),
    [
        ("unauthorized", AuthStop, "environment variable"),
        ("no_model", AuthStop, "does not exist"),
        ("redirect", AuthStop, "not followed"),
        ("quota", QuotaStop, "no credit left: .* quota. Top it up"),
    ],
)
def test_a_refusal_stops_at_the_first_post(step, stop, message):
    with FaultServer([step]) as server, pytest.raises(stop, match=message):
        probe(server)
    assert len(server.posts) == 1


def test_nobody_listening_stops_with_the_address_as_the_suspect():
    with FaultServer() as server:
        server.down()
        with pytest.raises(AuthStop, match="base_urls"):
            probe(server)


def test_a_busy_server_is_asked_again_after_the_pause_it_names():
    with FaultServer([limited(retry_after=7), "error_503", "reset", "ok"]) as server:
        assert probe(server) == ("json_schema", [7.0, 4.0, 8.0])


def test_a_server_that_stays_busy_stops_the_run():
    with FaultServer(["rate_limited"]) as server, pytest.raises(RateLimitStop):
        probe(server)
    assert len(server.posts) == 4


def test_a_server_that_refuses_even_a_plain_question_stops_with_its_words():
    script = [error(400, "unsupported_parameter", "use `max_completion_tokens`")]
    with FaultServer(script) as server, pytest.raises(AuthStop, match="max_completion_tokens"):
        probe(server)
    assert len(server.posts) == 3


def test_what_was_paid_can_be_journalled():
    kept = []
    with FaultServer(refusing("json_schema")) as server:
        probe(server, journal=kept.append)
    assert len(kept) == 1
    assert server.bill[0] > 0
