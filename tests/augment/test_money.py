"""Prices, bounds and costs in whole pico-USD."""

import json
import re
from datetime import date
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from augment.money import (
    FREE,
    Price,
    PriceBook,
    Usage,
    bound_cost,
    bound_input,
    bound_output,
    cost,
    format_usd,
    load_prices,
    parse_usd,
)
from llmrec_pl.errors import ConfigError

TODAY = date(2026, 11, 24)


def price(model="m", tier="sync", since="2024-01-01", **other):
    values = {"input": 150_000, "cached": 75_000, "output": 600_000, "source": "test"}
    return Price(model=model, tier=tier, valid_from=since, **{**values, **other})


# Prices ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "tier", "per_million"),
    [
        ("gpt-4o-mini", "sync", ("0.15", "0.075", "0.60")),
        ("gpt-4o-mini-2024-07-18", "sync", ("0.15", "0.075", "0.60")),
        ("gpt-4o-mini", "batch", ("0.075", "0.075", "0.30")),
        ("gpt-4o", "sync", ("2.5", "1.25", "10")),
        ("gpt-4o-2024-05-13", "sync", ("5", "5", "15")),  # dearer than the alias
        ("gpt-3.5-turbo", "sync", ("0.5", "0.5", "1.5")),
        ("gpt-3.5-turbo-16k", "sync", ("3", "3", "4")),
        ("gpt-5-nano", "sync", ("0.05", "0.005", "0.4")),
        ("text-embedding-ada-002", "sync", ("0.1", "0.1", "0")),
        ("text-embedding-3-small", "batch", ("0.01", "0.01", "0")),
    ],
)
def test_shipped_prices(model, tier, per_million):
    found = load_prices().find(model, tier, TODAY)
    usd = [Decimal(value) for value in per_million]
    assert [Decimal(p) / 10**6 for p in (found.input, found.cached, found.output)] == usd


def test_the_paper_s_model_has_the_price_of_its_time():
    book = load_prices()
    assert book.find("gpt-3.5-turbo-0613", "sync", date(2023, 9, 1)).input == 1_500_000
    assert book.find("gpt-3.5-turbo", "sync", date(2023, 9, 1)).output == 2_000_000
    assert book.find("gpt-3.5-turbo", "sync", date(2024, 3, 1)).output == 1_500_000
    assert book.find("gpt-3.5-turbo", "sync", date(2022, 1, 1)) is None
    assert book.find("gpt-3.5-turbo-0613", "batch", TODAY) is None


def test_shipped_rows_are_consistent():
    book = load_prices()
    rows = book._books[1]
    assert len({(r.model, r.tier, r.valid_from) for r in rows}) == len(rows)
    for row in rows:
        assert row.source
        assert row.input > 0
        assert row.cached <= row.input
        assert (row.output == 0) == row.model.startswith("text-embedding")
        if row.tier == "batch":
            sync = book.find(row.model, "sync", TODAY)
            assert (2 * row.input, 2 * row.output) == (sync.input, sync.output)


@pytest.mark.parametrize(
    "model",
    ["gpt-4o-mini-audio", "ft:gpt-4o-mini-2024-07-18:me::1", "my-deployment", "", "gpt-4o-2"],
)
def test_an_unknown_model_has_no_price(model):
    assert load_prices().find(model, "sync", TODAY) is None


def test_the_newest_row_that_is_not_in_the_future_wins():
    rows = [price(since="2024-01-01", input=1), price(since="2025-01-01", input=2)]
    book = PriceBook([], rows)
    assert book.find("m", "sync", date(2023, 12, 31)) is None
    assert book.find("m", "sync", date(2024, 12, 31)).input == 1
    assert book.find("m", "sync", date(2025, 1, 1)).input == 2


def test_a_dated_name_with_rows_of_its_own_never_takes_the_alias():
    book = PriceBook([], [price("m"), price("m-2024-05-13", since="2024-05-13", input=9)])
    assert book.find("m-2024-05-13", "sync", TODAY).input == 9
    assert book.find("m-2024-05-13", "batch", TODAY) is None
    assert book.find("m-2024-05-13", "sync", date(2024, 2, 1)) is None
    assert book.find("m-2024-08-06", "sync", TODAY).model == "m"


def test_own_prices_come_first(tmp_path):
    file = tmp_path / "own.toml"
    rows = [
        f'{{model = "{model}", tier = "sync", input = "{usd}", output = "1", '
        'valid_from = 2023-01-01, source = "contract"}'
        for model, usd in [("gpt-4o-mini", "0.2"), ("mine", "0.0025")]
    ]
    file.write_text(f"price = [{', '.join(rows)}]")
    book = load_prices(file)
    assert book.find("gpt-4o-mini", "sync", TODAY).input == 200_000
    assert book.find("gpt-4o-mini-2024-07-18", "sync", TODAY).source == "contract"
    assert book.find("gpt-4o-mini", "batch", TODAY).source != "contract"
    assert book.find("mine", "sync", TODAY) == Price(
        "mine", "sync", 2500, 2500, 1_000_000, "2023-01-01", "contract"
    )


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"input": '"-1"'}, "between"),
        ({"input": '"nan"'}, "between"),
        ({"input": '"1e99"'}, "between"),
        ({"input": '"cheap"'}, "no amount"),
        ({"input": "0.15"}, "as text"),
        ({"input": '"0.0000001"'}, "more digits"),
        ({"tier": '"flex"'}, "flex"),
        ({"valid_from": '"2024-01-01"'}, "date"),
        ({"valid_from": "2024-01-01T00:00:00"}, "date"),
        ({"source": None}, "lacks source"),
        ({"inputs": '"1"'}, "inputs"),
    ],
)
def test_rows_that_are_no_prices_are_refused(tmp_path, change, match):
    row = {
        "model": '"m"', "tier": '"sync"', "input": '"1"', "output": '"1"',
        "valid_from": "2024-01-01", "source": '"s"',
    } | change  # fmt: skip
    file = tmp_path / "p.toml"
    file.write_text("[[price]]\n" + "\n".join(f"{k} = {v}" for k, v in row.items() if v))
    with pytest.raises(ConfigError, match=match) as caught:
        load_prices(file)
    assert "p.toml" in str(caught.value)


@pytest.mark.parametrize("text", ["price = 3", "price = [3]", "a = ", "x = 1"])
def test_files_that_hold_no_prices_are_refused(tmp_path, text):
    file = tmp_path / "p.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=re.escape(str(file))):
        load_prices(file)
    with pytest.raises(ConfigError, match="no price file"):
        load_prices(tmp_path / "absent.toml")


# Amounts -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("amount", "pico"),
    [
        ("5", 5 * 10**12),
        ("$0.25", 25 * 10**10),
        (" 1e-3 ", 10**9),
        (2.5, 25 * 10**11),
        (0.1, 10**11),
        ("0.000000000001", 1),
        ("0", 0),
    ],
)
def test_amounts_are_read_exactly(amount, pico):
    assert parse_usd(amount) == pico


@pytest.mark.parametrize(
    "amount", ["", "-1", "nan", "inf", "ten", "1e13", "0.0000000000001", "1,5"]
)
def test_amounts_that_cannot_be_kept_are_refused(amount):
    with pytest.raises(ConfigError, match="budget"):
        parse_usd(amount)


@given(st.integers(0, 9 * 10**18))
def test_an_amount_survives_being_written_in_full(pico):
    assert parse_usd(f"{pico // 10**12}.{pico % 10**12:012d}") == pico


@pytest.mark.parametrize(
    ("pico", "text"),
    [
        (0, "$0.00"),
        (5 * 10**12, "$5.00"),
        (1_234_567_890_000_000, "$1,234.57"),
        (5 * 10**11, "$0.50"),
        (123_456_789_000, "$0.1235"),
        (37_500_000, "$0.0000375"),
        (2_500, "$0.0000000025"),
        (1, "$0.000000000001"),
        (-5 * 10**11, "-$0.50"),
    ],
)
def test_amounts_for_people(pico, text):
    assert format_usd(pico) == text


@given(st.integers(-(10**18), 10**18))
def test_what_people_see_is_off_by_half_a_cent_or_a_thousandth_at_most(pico):
    shown = Fraction(format_usd(pico).replace("$", "").replace(",", ""))
    off = abs(shown - Fraction(pico, 10**12))
    assert off <= max(Fraction(1, 200) if abs(pico) >= 10**12 else 0, Fraction(abs(pico), 10**15))


# Bounds ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bpe():
    """A byte-level BPE, as GPT, Llama 3 and Qwen use, trained on a few sentences."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|im_start|>", "<|im_end|>"],
        show_progress=False,
    )
    corpus = ["a film about the sea and the people who live by it", "Amélie (2001)", "七人の侍"]
    tokenizer.train_from_iterator(corpus * 20, trainer)
    return tokenizer


def chat_tokens(tokenizer, body):
    """Tokens of a prompt in the ChatML frame, schema included."""
    text = "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in body["messages"])
    schema = json.dumps(body.get("response_format") or "", ensure_ascii=False)
    return len(tokenizer.encode(text + "<|im_start|>assistant\n" + schema).ids)


@settings(max_examples=150)
@given(
    texts=st.lists(
        st.text(max_size=60) | st.text("ع😀\u202e\x00\ufffda ", max_size=40), min_size=1, max_size=4
    ),
    words=st.none() | st.lists(st.text(max_size=8), max_size=4),
)
def test_no_prompt_has_more_tokens_than_its_bound(bpe, texts, words):
    roles = ["system", "user", "assistant", "user"]
    body = {
        "model": "m",
        "messages": [{"role": r, "content": t} for r, t in zip(roles, texts, strict=False)],
    }
    if words is not None:
        body["response_format"] = {"type": "json_schema", "enum": words}
    assert bound_input(body) >= chat_tokens(bpe, body)
    batch = {"model": "m", "input": texts}
    assert bound_input(batch) >= sum(len(bpe.encode(text).ids) for text in texts)
    assert bound_input(batch) == sum(bound_input({"model": "m", "input": t}) for t in texts)


def test_the_bound_is_as_documented():
    body = {"messages": [{"role": "user", "content": "é" * 10}, {"role": "user", "content": "abc"}]}
    assert bound_input(body) == 20 + 3 + 2 * 16 + 64
    form = {"type": "json_object"}
    assert bound_input(body | {"response_format": form}) == 119 + len('{"type":"json_object"}')
    parts = [{"type": "text", "text": "x" * 100}]
    assert bound_input({"messages": [{"role": "user", "content": parts}]}) >= 100 + 16 + 64
    assert bound_input({"input": "abc"}) == 11
    assert bound_input({"messages": [{"role": "user", "content": "\ud800"}]}) == 3 + 16 + 64


def test_what_bytes_do_not_bound_is_refused():
    part = {"type": "image_url", "image_url": {"url": "https://x.y/z.png"}}
    with pytest.raises(ValueError, match="image_url"):
        bound_input({"messages": [{"role": "user", "content": [part]}]})


@pytest.mark.parametrize(
    ("fields", "bound"),
    [
        ({}, None),
        ({"max_tokens": 64}, 64),
        ({"max_tokens": 64, "n": 3}, 192),
        ({"max_completion_tokens": 100, "n": None}, 100),
        ({"max_tokens": 10, "max_completion_tokens": 100}, 100),
        ({"max_tokens": None}, None),
        ({"max_tokens": "64"}, None),
        ({"max_tokens": True}, None),
        ({"max_tokens": -1}, None),
        ({"max_tokens": 5, "n": "many"}, None),
    ],
)
def test_the_bound_of_answers(fields, bound):
    assert bound_output({"messages": [], **fields}) == bound


def test_embeddings_have_no_answer_to_bound():
    assert bound_output({"input": "text"}) == 0


COUNTS = st.integers(0, 10**6)
PRICES = st.builds(
    price,
    input=st.integers(0, 10**9),
    cached=st.integers(0, 10**9),  # some charge more for the cache
    output=st.integers(0, 10**9),
)


@given(row=PRICES, prompt=COUNTS, output=COUNTS, data=st.data())
def test_no_usage_within_the_bounds_costs_more_than_the_bound(row, prompt, output, data):
    used = Usage(data.draw(st.integers(0, prompt)), data.draw(st.integers(0, output)), 0, 0)
    used = Usage(used.input, used.output, data.draw(st.integers(0, used.input)), 0)
    assert 0 <= cost(row, used) <= bound_cost(row, prompt, output)


def test_costs():
    row = price()
    assert cost(row, Usage(1000, 12)) == 1000 * 150_000 + 12 * 600_000
    assert cost(row, Usage(1000, 12, cached=400)) == (600 * 150_000 + 400 * 75_000 + 12 * 600_000)
    assert cost(FREE, Usage(10**9, 10**9)) == 0
    assert bound_cost(FREE, 10**9, 10**9) == 0


# Usage -------------------------------------------------------------------------------------


def used(usage):
    return Usage.from_body(json.dumps({"usage": usage}).encode())


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        ({"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11}, Usage(9, 2)),
        ({"prompt_tokens": 9, "completion_tokens": 2}, Usage(9, 2)),
        ({"prompt_tokens": 9, "total_tokens": 9}, Usage(9, 0)),
        (
            {
                "prompt_tokens": 90, "completion_tokens": 20, "total_tokens": 110,
                "prompt_tokens_details": {"cached_tokens": 64, "audio_tokens": 0},
                "completion_tokens_details": {"reasoning_tokens": 12},
            },
            Usage(90, 20, 64, 12),
        ),
        # reasoning left out of the answer's tokens, but not of the total
        ({"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 50}, Usage(9, 41)),
        # details that cannot be: nothing is cheaper for them
        (
            {
                "prompt_tokens": 9, "completion_tokens": 2,
                "prompt_tokens_details": {"cached_tokens": 10},
                "completion_tokens_details": {"reasoning_tokens": -1},
            },
            Usage(9, 2),
        ),
        ({"prompt_tokens": 9, "completion_tokens": 2, "prompt_tokens_details": None}, Usage(9, 2)),
    ],
)  # fmt: skip
def test_usage_is_read(usage, expected):
    assert used(usage) == expected


@pytest.mark.parametrize(
    "usage",
    [
        None,
        {},
        [],
        "many",
        {"prompt_tokens": 9},
        {"completion_tokens": 9},
        {"prompt_tokens": -9, "completion_tokens": 1},
        {"prompt_tokens": 9, "completion_tokens": -1},
        {"prompt_tokens": "9", "completion_tokens": 1},
        {"prompt_tokens": True, "completion_tokens": 1},
        {"prompt_tokens": 9.5, "completion_tokens": 1},
        {"prompt_tokens": 10**12, "completion_tokens": 1},
        {"prompt_tokens": 9, "total_tokens": 3},
    ],
)
def test_usage_that_is_no_count_is_none(usage):
    assert used(usage) is None


@pytest.mark.parametrize(
    "raw", [b"", b"null", b"[]", b"<html>", b'{"usage"', b"\xff\xfe\xff", b"[" * 100_000]
)
def test_a_body_without_usage_is_none(raw):
    assert Usage.from_body(raw) is None


@given(st.binary(max_size=60))
def test_no_body_raises(raw):
    Usage.from_body(raw)
    Usage.from_body(b'{"usage":{"prompt_tokens":' + raw + b"}}")
