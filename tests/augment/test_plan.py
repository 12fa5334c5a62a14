"""What is asked of whom: histories, candidates, groups, skips."""

import json
import re
import tracemalloc
from collections.abc import Iterator

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from augment.plan import make_spec, pool_for, wanted
from augment.validate import validate
from tests.augment.tiny_data import ITEMS, USERS, ask, config_of, keys, names_in, prompt, tiny

TASKS = ("pairs", "profiles", "attributes")
SETS = ("llmrec-2024", "strict-1")


# Histories -------------------------------------------------------------------------------------


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("prompt_set", SETS)
def test_histories_are_train_oldest_first_then_by_id(tmp_path, turned, prompt_set):
    dataset = tiny(tmp_path, turned=turned)
    _, wants = ask("profiles", dataset, prompt_set=prompt_set)
    by_user = {str(dataset.user_ids[w.entity]): w for w in wants}
    assert names_in(prompt(by_user["u1"])) == ["Alien", "-", "Down by Law"]
    assert names_in(prompt(by_user["u2"])) == ["Brazil", "Eraserhead"]
    assert by_user["u3"].skip == "no_history"  # validation is no history
    assert "Heat" not in prompt(by_user["u1"])


def test_only_the_newest_are_shown(tmp_path):
    _, wants = ask("profiles", tiny(tmp_path), history=2)
    assert names_in(prompt(wants[0])) == ["-", "Down by Law"]


def test_without_times_the_id_decides(tmp_path):
    dataset = tiny(tmp_path)
    frame = pl.read_parquet(tmp_path / "interactions.parquet").drop("timestamp")
    frame.write_parquet(tmp_path / "interactions.parquet")
    _, wants = ask("profiles", dataset)
    assert names_in(prompt(wants[0])) == ["Alien", "-", "Down by Law"]
    assert names_in(prompt(wants[1])) == ["Brazil", "Eraserhead"]


@given(st.data())
@settings(max_examples=20)
def test_histories_against_sorted_tuples(tmp_path_factory, data):
    names = list(ITEMS)
    edge = st.tuples(st.sampled_from(USERS), st.sampled_from(names), st.integers(0, 3))
    liked = data.draw(st.lists(edge, min_size=1, max_size=20, unique_by=lambda e: e[:2]))
    most = data.draw(st.integers(1, 5))
    dataset = tiny(tmp_path_factory.mktemp("d"), liked=liked, held_out=[])
    _, wants = ask("profiles", dataset, provider="heuristic", history=most)
    for want in wants:
        user = str(dataset.user_ids[want.entity])
        expected = [i for _, i in sorted((t, i) for u, i, t in liked if u == user)][-most:]
        if not expected:
            assert want.skip == "no_history"
        else:
            assert json.loads(prompt(want))["history"] == expected


# Pairs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt_set", SETS)
def test_what_is_shown_is_what_the_context_says(tmp_path, prompt_set):
    dataset = tiny(tmp_path)
    spec, wants = ask("pairs", dataset, prompt_set=prompt_set, draws=2)
    pool = load_items(dataset)
    for want in wants:
        if want.skip:
            continue
        shown = want.context["shown"]
        assert sorted(shown) == sorted(pool[want.entity])
        assert want.context["ids"] == [str(dataset.item_ids[i]) for i in shown]
        block = prompt(want).split("<<<\n")[2].split("\n>>>")[0].split("\n")
        titles = [ITEMS[name][0] or "(untitled)" for name in want.context["ids"]]
        for number, (line, name, title) in enumerate(
            zip(block, want.context["ids"], titles, strict=True), 1
        ):
            head = f"{number}. {{" if prompt_set == "strict-1" else f"[{name}] "
            assert line.startswith(head)
            assert json.dumps(title) in line
        answer = '{"most_liked": 3, "least_liked": 1}'
        if prompt_set == "llmrec-2024":
            answer = f"{want.context['ids'][2]}::{want.context['ids'][0]}"
        choice = {"message": {"content": answer}, "finish_reason": "stop"}
        raw = json.dumps({"choices": [choice]}).encode()
        verdict = validate(spec, raw, want.body, want.context)
        assert verdict.value == {"most_liked": 3, "least_liked": 1}


def load_items(dataset):
    pool = pool_for("pairs", config_of(), dataset)
    return [[i for i in row if i >= 0] for row in pool.items.tolist()]


def test_the_older_set_keeps_the_order_of_the_pool(tmp_path):
    dataset = tiny(tmp_path)
    _, wants = ask("pairs", dataset, prompt_set="llmrec-2024")
    for want in wants:
        if want.body:
            assert want.context["shown"] == load_items(dataset)[want.entity]
    assert wants[0].context["history"] == ["m1", "m2", "m3"]  # told apart if it is answered


def test_no_place_in_the_list_is_favoured(tmp_path):
    users = [f"u{i}" for i in range(300)]
    liked = [(user, "m1", 1) for user in users]
    dataset = tiny(tmp_path, liked=liked, users=users, held_out=[])
    pool = load_items(dataset)
    _, wants = ask("pairs", dataset, draws=2)
    places = [pool[w.entity].index(w.context["shown"][0]) for w in wants]
    counts = np.bincount(places, minlength=3)
    assert ((counts - 200) ** 2 / 200).sum() < 18.5  # 2 degrees of freedom, once in 10 000
    first, second = wants[::2], wants[1::2]
    differing = sum(
        a.context["shown"] != b.context["shown"] for a, b in zip(first, second, strict=True)
    )
    assert differing > 200  # 5 of 6 expected


def test_draws_are_told_apart(tmp_path):
    for prompt_set in SETS:
        spec, wants = ask("pairs", tiny(tmp_path), prompt_set=prompt_set, draws=3)
        asked = [w for w in wants if w.body]
        assert [(w.entity, w.field) for w in asked] == [(u, d) for u in (0, 1, 3) for d in range(3)]
        assert len(keys(spec, wants)) == len(asked)
        few_spec, few = ask("pairs", tiny(tmp_path), prompt_set=prompt_set, draws=1)
        assert keys(few_spec, few) < keys(spec, wants)


def test_who_cannot_be_asked_is_skipped_for_each_draw(tmp_path):
    dataset = tiny(tmp_path, liked=[("u1", name, 1) for name in list(ITEMS)[1:]], held_out=[])
    _, wants = ask("pairs", dataset, draws=2)
    assert [(w.entity, w.field, w.skip) for w in wants[:4]] == [
        (0, 0, "no_candidates"),
        (0, 1, "no_candidates"),
        (1, 0, "no_history"),
        (1, 1, "no_history"),
    ]
    assert all(w.body is None for w in wants)


# Attributes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 3, 50])
@pytest.mark.parametrize("turned", [False, True])
def test_each_titled_item_is_asked_about_once(tmp_path, size, turned):
    dataset = tiny(tmp_path, turned=turned)
    _, wants = ask("attributes", dataset, items_per_call=size)
    assert sorted(w.entity for w in wants) == list(range(8))
    skipped = [w for w in wants if w.skip]
    assert [(str(dataset.item_ids[w.entity]), w.skip) for w in skipped] == [("m2", "no_title")]
    for want in wants:
        if want.skip:
            continue
        ids, items = want.context["ids"], want.context["items"]
        assert want.field == 0
        assert want.entity in items
        assert len(ids) == len(items) <= size
        assert ids == [str(dataset.item_ids[i]) for i in items] == sorted(ids)
        shown = [json.loads(line)["id"] for line in block_of(want)]
        assert shown == ids
    assert len({json.dumps(w.body) for w in wants if w.body}) == -(-7 // size)


def block_of(want):
    return prompt(want).split("<<<\n")[1].split("\n>>>")[0].split("\n")


def test_years_and_genres_are_shown_however_they_are_stored(tmp_path):
    columns = {
        "title": ["A", "B", "C", "D"],
        "year": [1979.0, None, float("nan"), 1986.5],
        "genres": [["Horror", "Sci-Fi"], [], None, ["Comedy"]],
    }
    items = dict.fromkeys("abcd")
    dataset = tiny(tmp_path, items, [("u1", "a", 1)], held_out=[], **columns)
    _, wants = ask("attributes", dataset, items_per_call=4)
    assert [json.loads(line) for line in block_of(wants[0])] == [
        {"id": "a", "title": "A", "year": "1979", "genre": "Horror, Sci-Fi"},
        {"id": "b", "title": "B"},
        {"id": "c", "title": "C"},
        {"id": "d", "title": "D", "year": "1986.5", "genre": "Comedy"},
    ]


@pytest.mark.parametrize("kind", TASKS)
@pytest.mark.parametrize("prompt_set", SETS)
def test_masked_titles_say_nothing_of_items(tmp_path, kind, prompt_set):
    _, wants = ask(kind, tiny(tmp_path), prompt_set=prompt_set, mask_titles=True)
    texts = [prompt(want) for want in wants if want.body]
    for text in texts:
        assert not names_in(text)
        assert not re.search(r"19\d\d|Horror|Sci-Fi|Comedy", text)
    assert any('"film m1"' in text for text in texts)


# Heuristics and embeddings ---------------------------------------------------------------------


def test_heuristics_get_original_ids_as_json(tmp_path):
    dataset = tiny(tmp_path)
    for kind in TASKS:
        spec, wants = ask(kind, dataset, provider="heuristic", prompt_set="llmrec-2024")
        assert spec.prompt_set == "heuristic-1"
        assert spec.validator.startswith(f"{kind}/strict-1/")
        assert spec.params == {}
        first = json.loads(prompt(wants[0]))
        assert first.pop("table") == spec.settings["item_table"][:16]
        if kind == "attributes":
            fields = ["director", "country", "language"]
            assert first == {"task": kind, "items": ["m1"], "fields": fields}
            assert not any(w.skip for w in wants)
            continue
        expected = {"task": kind, "user": "u1", "history": ["m1", "m2", "m3"]}
        if kind == "pairs":
            expected["candidates"] = wants[0].context["ids"]
        assert first == expected
        assert [w.skip for w in wants] == [None, None, "no_history", None]


def test_another_table_is_another_question_for_heuristics(tmp_path):
    (spec, wants), (other_spec, other) = (
        ask("profiles", tiny(tmp_path / name, items), provider="heuristic")
        for name, items in (("a", ITEMS), ("b", {**ITEMS, "m7": ("Heat", 1995, "Drama")}))
    )
    assert not keys(spec, wants) & keys(other_spec, other)


def test_embeddings_hold_one_text_each(tmp_path):
    config = config_of(tasks={"embed": {"dimensions": 64}})
    dataset = tiny(tmp_path)
    spec = make_spec("embed", config, dataset, "none", None)
    assert spec.settings["fields"] == ["profile", "director", "country", "language"]
    texts = iter([(0, 0, "age: 25"), (1, 0, ""), (2, 1, "Ridley Scott"), (3, 1, "Ridley Scott")])
    wants = list(wanted(spec, dataset, None, texts))
    assert [(w.entity, w.field, w.skip) for w in wants] == [
        (0, 0, None),
        (1, 0, "empty_text"),
        (2, 1, None),
        (3, 1, None),
    ]
    assert wants[0].body == {
        "model": spec.model,
        "input": "age: 25",
        "encoding_format": "base64",
        "dimensions": 64,
    }
    assert len(keys(spec, wants)) == 2  # one director is paid once


# Size ------------------------------------------------------------------------------------------


def test_memory_does_not_grow_with_the_number_of_requests(tmp_path):
    users = [f"u{i}" for i in range(500)]
    dataset = tiny(tmp_path, liked=[(user, "m1", 1) for user in users], users=users, held_out=[])
    config = config_of(tasks={"pairs": {"draws": 60}})
    pool = pool_for("pairs", config, dataset)
    stream = wanted(make_spec("pairs", config, dataset, "none", pool), dataset, pool)
    assert isinstance(stream, Iterator)
    tracemalloc.start()
    try:
        for _ in range(500):
            next(stream)
        tracemalloc.reset_peak()
        before, _ = tracemalloc.get_traced_memory()
        rest = sum(1 for _ in stream)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert rest == 500 * 60 - 500
    assert peak - before < 200_000  # one body is about 2 kB; all of them would be 60 MB
