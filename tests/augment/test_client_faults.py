"""Every fault that a server or the network can have, through the real client, over sockets."""

from __future__ import annotations

import asyncio
import json
import time

import pytest

from augment.classify import Outcome, classify
from augment.client import HttpAnswerer
from augment.redact import Secret
from tests.augment.fault_replies import Step, error, limited, page
from tests.augment.fault_server import FaultServer
from tests.augment.http_calls import KEY, Journal, chat, provider, send

# Transport faults (cases 25-33) -------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        ("reset", "ReadError RemoteProtocolError"),
        ("fin", "RemoteProtocolError"),
        ("reset_body", "ReadError RemoteProtocolError"),
        ("fin_body", "RemoteProtocolError"),
        ("truncated_chunk", "RemoteProtocolError"),
        ("bad_gzip", "DecodingError"),
        ("bad_status_line", "RemoteProtocolError"),
    ],
)
def test_a_broken_reply_is_ambiguous_and_never_sent_again(fault, cause):
    with FaultServer([fault]) as server:
        (reply,), journal = send(server)
    assert type(reply.error.__cause__).__name__ in cause.split()
    assert reply.body is None
    assert journal == []
    assert len(server.posts) == 1
    found = classify(reply)
    assert (found.outcome, found.billed) == (Outcome.ambiguous, "unknown")


@pytest.mark.parametrize("status", [429, 500, 401])
def test_a_status_counts_although_its_body_breaks(status):
    with FaultServer([Step(do="fin_body", status=status, body="x" * 100)]) as server:
        (reply,), _ = send(server)
    assert reply.status == status
    assert reply.body is None
    assert reply.error is not None


def test_a_refused_connection_was_not_sent():
    with FaultServer() as server:
        server.down()
        (reply,), _ = send(server)
        found = classify(reply)
        assert (found.outcome, found.billed) == (Outcome.not_sent, "no")
        server.up()
        (reply,), _ = send(server)
    assert reply.status == 200
    assert len(server.posts) == 1


def test_a_server_that_never_answers_runs_into_the_read_timeout():
    with FaultServer(["hang"]) as server:
        begin = time.monotonic()
        (reply,), journal = send(server, read_timeout_s=0.3)
        wall = time.monotonic() - begin
    assert type(reply.error.__cause__).__name__ == "ReadTimeout"
    assert (reply.status, journal) == (None, [])
    assert classify(reply).outcome == Outcome.ambiguous
    assert 0.3 <= wall < 3


def test_a_slow_drip_ends_at_the_deadline_and_leaves_others_alone():
    """Each byte comes within the read timeout, so only the whole call's deadline can end it."""

    async def work(url):
        answerer = HttpAnswerer(provider(url, read_timeout_s=1.0, timeout_s=1.0), key=None)
        begin = time.monotonic()
        slow = asyncio.create_task(answerer.send(chat("slow"), Journal()))
        await asyncio.sleep(0.1)
        quick = [await answerer.send(chat(str(i)), Journal()) for i in range(20)]
        still = not slow.done()
        reply = await slow
        wall = time.monotonic() - begin
        await answerer.close()
        return reply, quick, still, wall

    def script(_, body):
        return Step(do="drip", every=0.3) if body["messages"][0]["content"] == "slow" else "ok"

    with FaultServer(script) as server:
        reply, quick, still, wall = asyncio.run(work(server.url))
    assert isinstance(reply.error, TimeoutError)
    assert (reply.status, reply.body) == (200, None)
    assert classify(reply).outcome == Outcome.ambiguous
    assert 1.0 <= wall < 2.0
    assert still
    assert [r.status for r in quick] == [200] * 20


def test_cancelling_gives_the_connection_back():
    async def work(url):
        answerer = HttpAnswerer(provider(url), key=None)
        task = asyncio.create_task(answerer.send(chat(), Journal()))
        await asyncio.sleep(0.2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        reply = await answerer.send(chat(), Journal())
        await answerer.close()
        return reply

    with FaultServer(["hang", "ok"]) as server:
        assert asyncio.run(work(server.url)).status == 200


def test_whatever_is_wrong_with_a_call_ends_as_a_reply():
    with FaultServer() as server:
        (reply,), journal = send(server, chat(odd=object()))
    assert reply.status is None
    assert reply.error is not None
    assert (journal, server.posts) == ([], [])


def test_a_journal_that_fails_does_not_lose_the_body():
    async def work(url):
        answerer = HttpAnswerer(provider(url), key=None)

        def full(_):
            raise OSError(28, "No space left on device")

        reply = await answerer.send(chat(), full)
        await answerer.close()
        return reply

    with FaultServer() as server:
        reply = asyncio.run(work(server.url))
    assert reply.status == 200
    assert json.loads(reply.body)["choices"]
    assert classify(reply).outcome == Outcome.ok


# 200s that hold no answer (cases 34-38) -----------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["html_200", "empty_200", "cut_json", "no_choices", "no_usage", "truncated", "refusal"],
)
def test_every_200_is_journalled_whatever_it_says(name):
    with FaultServer([name]) as server:
        (reply,), journal = send(server)
    assert reply.status == 200
    assert journal == [reply.body]
    assert len(reply.body) == int(reply.headers["content-length"])
    assert classify(reply).outcome == Outcome.ok
    assert len(server.posts) == 1


# Statuses (cases 15-24, 39-41) --------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "outcome", "billed"),
    [
        ("rate_limited", Outcome.rate_limited, "no"),
        ("quota", Outcome.quota, "no"),
        ("unauthorized", Outcome.auth, "no"),
        ("forbidden", Outcome.auth, "no"),
        ("no_model", Outcome.auth, "no"),
        ("redirect", Outcome.auth, "no"),
        ("bad_request", Outcome.refused_input, "no"),
        ("azure_filtered", Outcome.refused, "no"),
        ("error_500", Outcome.server, "no"),
        ("error_503", Outcome.server, "no"),
        ("error_529", Outcome.server, "no"),
        ("timeout_408", Outcome.server, "no"),
        ("conflict_409", Outcome.server, "no"),
        ("html_502", Outcome.server, "unknown"),
        ("html_504", Outcome.server, "unknown"),
        (error(422, "unprocessable"), Outcome.refused_input, "no"),
        (page(413), Outcome.refused_input, "no"),
    ],
)
def test_an_error_status_is_one_post_and_a_reply_with_its_body(step, outcome, billed):
    with FaultServer([step]) as server:
        (reply,), journal = send(server)
    found = classify(reply)
    assert (found.outcome, found.billed) == (outcome, billed)
    assert reply.body is not None
    assert journal == []
    assert len(server.posts) == 1


@pytest.mark.parametrize(
    ("headers", "pause"),
    [
        ({"retry_after": "7"}, 7.0),
        ({"retry_after_ms": "250"}, 0.25),
        ({"retry_after": "300"}, 300.0),
        (
            {
                "date": "Tue, 24 Nov 2026 10:00:00 GMT",
                "retry_after": "Tue, 24 Nov 2026 10:00:09 GMT",
            },
            9.0,
        ),
        ({"retry_after": "-3"}, None),
        ({"retry_after": "0"}, None),
        ({"retry_after": "inf"}, None),
        ({"retry_after": "soon"}, None),
        ({}, None),
    ],
)
def test_a_rate_limit_is_told_at_once_with_its_pause(headers, pause):
    with FaultServer([limited(**headers)]) as server:
        begin = time.monotonic()
        (reply,), _ = send(server)
        wall = time.monotonic() - begin
    assert classify(reply).retry_after_s == pause
    assert wall < 2
    assert len(server.posts) == 1


def test_a_redirect_is_not_followed():
    with FaultServer() as other:
        step = Step(status=307, headers={"location": f"{other.url}/chat/completions"}, body="")
        with FaultServer([step]) as server:
            (reply,), _ = send(server, key=Secret(KEY))
        assert reply.status == 307
        assert (len(server.posts), other.posts) == (1, [])
