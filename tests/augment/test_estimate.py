"""Estimates: against real bills, against the paper's, and that they send and write nothing."""

import asyncio
import socket
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from augment.clock import SystemClock
from augment.config import build_config, load_config
from augment.estimate import estimate
from augment.made_up import make_up, parse_sizes
from augment.money import bound_input
from augment.runner import Options, Runner
from augment.store import Store
from augment.tokens import exact_counter, guessed
from llmrec_pl.data.dataset import InteractionDataset
from llmrec_pl.errors import ConfigError
from tests.augment.drive import plain_spec
from tests.augment.fault_server import FaultServer
from tests.augment.films import write_films

ROOT = Path(__file__).parents[2]
PAPER_USD = {"profiles": 10.92, "attributes": 1.96, "pairs": 8.26}


def config_for(tmp_path, url="http://127.0.0.1:9/v1", **tasks):
    return build_config(
        {
            "dataset": tmp_path / "data",
            "store": tmp_path / "store",
            "out": tmp_path / "out",
            "provider": {
                "name": "openai",
                "key_env": None,
                "base_urls": [url],
                "structured": "json_schema",
                "concurrency": 4,
            },
            "tasks": {"pairs": {"pool": "random", "n_candidates": 5}, **tasks},
        }
    )


@pytest.fixture
def films(tmp_path):
    return InteractionDataset.load(write_films(tmp_path / "data", users=40, items=30, history=6))


def run(config, dataset, max_usd="1"):
    with Store(config.store, create=True, spool_size=2**20) as store:
        runner = Runner(config, dataset, store, Options(max_usd=max_usd), clock=SystemClock())
        asyncio.run(runner.run())


def bill_usd(server):
    """What the server charges, by its own log and the published prices, in USD."""
    total = 0.0
    for post in server.posts:
        usage, rate = post.get("usage"), (0.15, 0.60)
        if "embeddings" in post["path"]:
            rate = (0.02, 0.0)
        if usage:
            total += usage["prompt_tokens"] * rate[0] + usage.get("completion_tokens", 0) * rate[1]
    return total / 10**6


def test_a_run_costs_what_was_estimated_within_15_percent_once_replies_are_known(tmp_path, films):
    few = InteractionDataset.load(write_films(tmp_path / "few", users=9, items=12, history=6))
    with FaultServer() as server:
        config = config_for(tmp_path, server.url)
        blind = estimate(config, films)
        run(config, few)
        before = bill_usd(server)
        found = estimate(config, films)
        assert [task.calibrated for task in found.tasks[:3]] == [True] * 3
        run(config, films)
        real = bill_usd(server) - before
    assert found.pusd[1] / 10**12 == pytest.approx(real, rel=0.15)
    assert found.pusd[2] / 10**12 >= real
    assert blind.pusd[2] / 10**12 >= real
    done = estimate(config, films)
    assert [task.to_pay for task in done.tasks] == [0, 0, 0, 0]
    assert done.pusd == (0, 0, 0)


def test_what_is_counted(tmp_path, films):
    config = config_for(tmp_path, attributes={"items_per_call": 4}, embed=None)
    tasks = {task.kind: task for task in estimate(config, films).tasks}
    assert (tasks["pairs"].wanted, tasks["pairs"].to_pay, tasks["pairs"].paid) == (40, 40, 0)
    assert (tasks["attributes"].wanted, tasks["attributes"].to_pay) == (30, 8)
    assert not tasks["pairs"].calibrated


def test_equal_prompts_are_paid_once(tmp_path, films):
    config = config_for(tmp_path, pairs=None, attributes=None, embed=None, profiles={"history": 1})
    (task,) = estimate(config, films).tasks
    train = films.train
    rows = zip(train.indptr[:-1], train.indptr[1:], strict=True)
    distinct = {max(train.indices[a:b], key=lambda i: films.item_ids[i]) for a, b in rows}
    assert (task.to_pay, task.duplicates) == (len(distinct), 40 - len(distinct))


def test_time_follows_the_tighter_rate(tmp_path, films):
    config = config_for(tmp_path, attributes=None, profiles=None, embed=None)
    slow = {"rpm": 10.0, "tpm": 10**9}
    provider = config.provider.model_copy(update=slow)
    (task,) = estimate(config.model_copy(update={"provider": provider}), films).tasks
    assert task.seconds == pytest.approx(240)
    provider = config.provider.model_copy(update={"tpm": 1000.0})
    (task,) = estimate(config.model_copy(update={"provider": provider}), films).tasks
    assert task.seconds == pytest.approx(
        60 * (task.tokens_in[1] + task.tokens_out[1]) / 1000, rel=0.01
    )


def test_a_sample_of_the_users_stands_for_all(tmp_path, films):
    config = config_for(tmp_path, attributes=None, embed=None)
    whole, part = estimate(config, films), estimate(config, films, sample=10)
    for all_of_it, some in zip(whole.tasks, part.tasks, strict=True):
        assert some.to_pay == all_of_it.to_pay
        assert some.skipped == all_of_it.skipped
        assert some.pusd[1] == pytest.approx(all_of_it.pusd[1], rel=0.05)


def test_nothing_is_sent_or_written(tmp_path, films, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    estimate(config_for(tmp_path), films)
    assert not (tmp_path / "store").exists()


def test_a_model_without_a_price_is_said_and_not_guessed(tmp_path, films):
    config = config_for(tmp_path, profiles={"model": "nobody-1"})
    found = estimate(config, films)
    assert found.pusd is None
    assert any("nobody-1" in note for note in found.notes)


def test_heuristics_cost_nothing(tmp_path, films):
    tasks = {"pairs": {"pool": "random", "n_candidates": 5}}
    places = {name: tmp_path / name for name in ("dataset", "store", "out")}
    found = estimate(build_config({**places, "tasks": tasks}), films)
    assert found.pusd == (0, 0, 0)
    assert all(task.tokens_in == (0, 0, 0) for task in found.tasks)


def test_the_papers_netflix_costs_come_out_in_their_order(tmp_path):
    """Within a factor of two and a half each, of three in all the parts and the whole of 21.14."""
    config = load_config([ROOT / "configs/augment/netflix-2023.yaml"], ["tasks.pairs.pool=random"])
    config = config.model_copy(update={"store": tmp_path / "none"})
    tmp_path.joinpath("made").mkdir()
    data = make_up(parse_sizes("users=1319,items=1737,history=5"), tmp_path / "made")  # a tenth
    found = estimate(config, data)
    usd = {task.kind: 10 * task.pusd[1] / 10**12 for task in found.tasks}
    for kind, paper in PAPER_USD.items():
        assert 1 / 2.5 < usd[kind] / paper < 2.5, (kind, usd[kind])
    assert sum(usd.values()) == pytest.approx(sum(PAPER_USD.values()), rel=0.5)


@pytest.mark.parametrize(
    "text", ["users=5", "users=5,items=0", "users=x,items=2", "history=9", "a=1"]
)
def test_sizes_that_cannot_be_are_refused(text):
    with pytest.raises(ConfigError, match="--sizes"):
        parse_sizes(text)


@settings(max_examples=60)
@given(st.text(max_size=300), st.sampled_from(["pairs", "profiles", "attributes"]))
def test_a_guess_is_never_above_the_bound(text, kind):
    spec = plain_spec(kind, settings={"fields": ["a", "b"], "max_tokens_ceiling": 9})
    text = text.encode("utf-8", "replace").decode()
    body = {"model": "m", "messages": [{"role": "user", "content": text}], "max_tokens": 64}
    assert guessed(spec).input(body) <= bound_input(body)


def test_exact_counts_come_from_a_table_on_this_machine(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    table = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?")
    )
    table.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    table.save(str(tmp_path / "tokenizer.json"))
    count = exact_counter("any", tmp_path / "tokenizer.json")
    assert count("a b zzz a") == 4
    with pytest.raises(ConfigError, match=r"tokenizer\.json"):
        exact_counter("any", tmp_path / "missing.json")


def test_exact_without_a_table_never_reaches_for_the_network(monkeypatch):
    monkeypatch.setitem(sys.modules, "tiktoken", None)
    with pytest.raises(ConfigError, match="tokenizer"):
        exact_counter("gpt-4o-mini")
