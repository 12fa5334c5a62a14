import contextlib

import pytest
from answered import answer, chat, config_of, profile, records, simulated

from augment.answers import answers, choose_specs, find_spec, stored_specs, texts_to_embed
from augment.store import State, Store, open_readonly
from llmrec_pl.data.dataset import InteractionDataset
from llmrec_pl.errors import AugmentationError


@pytest.fixture
def store(config):
    with Store(config.store, create=True, spool_size=2**16) as opened:
        yield opened


def read(config, spec_id, kind):
    with contextlib.closing(open_readonly(config.store)) as db:
        return list(answers(db, spec_id, kind))


def test_answers_come_by_entity_with_the_context_they_were_asked_in(store, config, data):
    spec_id = answer(store, config, data, "pairs", most=5)
    found = read(config, spec_id, "pairs")
    assert [a.entity for a in found] == list(range(data.n_users))
    assert [a.outcome for a in found] == ["done"] * 5 + ["planned"] * (data.n_users - 5)
    assert all(a.value == {"most_liked": 1, "least_liked": 2} for a in found[:5])
    assert all(len(a.context["shown"]) == 10 for a in found)
    assert all(a.state == State.PLANNED and len(a.key) == 32 for a in found[5:])


def test_a_follow_up_answers_for_the_items_its_parent_left_out(tmp_path, store, data):
    config = config_of(tmp_path, data.root, attributes={"items_per_call": 4, "temperature": 0})
    calls = []

    def reply(context, body):
        calls.append(len(context["ids"]))
        whole = records(context, director="X", country=f"call {len(calls)}")
        if len(context["ids"]) > 1:
            whole["items"].pop(1)  # the second item is missing
        return whole

    spec_id = answer(store, config, data, "attributes", reply)
    assert calls.count(4) * 2 == len(calls), "each call of four has one follow-up of one"
    found = read(config, spec_id, "attributes")
    assert {a.outcome for a in found} == {"done"}
    keys = {a.key for a in found}
    assert len(keys) == 2 * len({a.context["ids"][0] for a in found})
    late = [a for a in found if a.context["items"].index(a.entity) == 1]
    early = [a for a in found if a.context["items"].index(a.entity) != 1]
    assert not {a.key for a in late} & {a.key for a in early}


def test_a_quarantined_answer_says_why_and_a_skipped_one_too(store, config, data, tmp_path):
    spec_id = answer(store, config, data, "profiles", lambda context, body: chat("no object"))
    assert {a.outcome for a in read(config, spec_id, "profiles")} == {"quarantined:schema"}
    assert not {a.value for a in read(config, spec_id, "profiles")} - {None}


def test_fields_come_in_the_order_of_the_task(store, config, data):
    spec_id = answer(store, config, data, "profiles", lambda c, b: profile(3))
    first = read(config, spec_id, "profiles")[0]
    assert list(first.value)[:3] == ["age", "gender", "liked_genres"]
    texts = store.do(lambda db: list(texts_to_embed(db, "profiles", spec_id, ["profile"])))
    assert texts[0] == (
        0,
        0,
        "age: 23; gender: female; liked genres: Drama; liked directors: D3; language: English",
    )


def test_unknown_fields_give_empty_texts(store, config, data):
    spec_id = answer(
        store, config, data, "attributes", lambda c, b: records(c, director=None, country="Borea")
    )
    fields = ["profile", "director", "country"]
    texts = store.do(lambda db: list(texts_to_embed(db, "attributes", spec_id, fields)))
    assert len(texts) == 2 * data.n_items
    assert {(field, text) for _, field, text in texts} == {(1, ""), (2, "Borea")}


def find(store, config, data, kind="profiles"):
    return store.do(lambda db: find_spec(db, kind, config, data))


@pytest.mark.parametrize(
    ("task", "change"),
    [
        ("profiles", {"temperature": 0.8}),
        ("profiles", {"top_p": 1.0}),
        ("profiles", {"seed": 7}),
        ("profiles", {"model": "other"}),
        ("profiles", {"prompt_set": "llmrec-2024"}),
        ("profiles", {"history": 3}),
        ("profiles", {"mask_titles": True}),
        ("pairs", {"n_candidates": 5}),
        ("attributes", {"items_per_call": 2}),
    ],
)
def test_settings_stay_apart(tmp_path, store, config, data, task, change):
    other = config_of(tmp_path, data.root, **{task: change})
    assert find(store, config, data, task) is None
    first = answer(store, config, data, task, most=1)
    assert find(store, other, data, task) is None, "asked under other settings"
    second = answer(store, other, data, task, most=1)
    assert first != second
    assert (find(store, config, data, task), find(store, other, data, task)) == (first, second)


def test_a_task_that_the_config_leaves_out_has_no_spec(tmp_path, store, config, data):
    answer(store, config, data, "attributes", most=1)
    without = config_of(tmp_path, data.root, attributes=None, embed=None)
    assert find(store, without, data, "attributes") is None
    assert find(store, without, data, "embed") is None


def test_what_transport_needs_does_not_tell_specs_apart(tmp_path, store, config, data):
    spec_id = answer(store, config, data, "profiles", most=1)
    assert find(store, config_of(tmp_path, data.root, embed={"texts_per_call": 7}), data) == spec_id


def test_a_random_pool_never_stands_in_for_a_models(tmp_path, store, config, data):
    answer(store, config, data, "pairs", most=1)
    named = config_of(tmp_path, data.root, pairs={"pool": str(tmp_path / "candidates.parquet")})
    assert find(store, named, data, "pairs") is None


def test_another_data_sets_answers_are_not_taken(tmp_path, store, config, data):
    answer(store, config, data, "profiles", most=1)
    other = InteractionDataset.load(simulated(tmp_path / "other", n_users=31))
    assert find(store, config, other) is None
    assert store.do(lambda db: stored_specs(db, other)) == []


def test_a_spec_can_be_named_by_its_sha(tmp_path, store, config, data):
    first = answer(store, config, data, "profiles", most=1)
    hot = config_of(tmp_path, data.root, profiles={"temperature": 0.8})
    second = answer(store, hot, data, "profiles", most=1)
    specs = dict(store.do(lambda db: stored_specs(db, data)))
    sha = specs[first].sha.hex()
    chosen = store.do(lambda db: choose_specs(db, hot, data, [sha[:12]]))
    assert chosen["profiles"] == (first, specs[first])
    assert store.do(lambda db: choose_specs(db, hot, data))["profiles"][0] == second


@pytest.mark.parametrize("sha", ["", "zz", "0123456789abcdef"])
def test_a_sha_that_fits_nothing_is_refused_with_what_there_is(store, config, data, sha):
    answer(store, config, data, "profiles", most=1)
    with pytest.raises(AugmentationError, match=r"must name one spec.*profiles by toy / m"):
        store.do(lambda db: choose_specs(db, config, data, [sha]))


def test_one_spec_a_task(tmp_path, store, config, data):
    answer(store, config, data, "profiles", most=1)
    answer(
        store,
        config_of(tmp_path, data.root, profiles={"temperature": 0.8}),
        data,
        "profiles",
        most=1,
    )
    shas = [s.sha.hex() for _, s in store.do(lambda db: stored_specs(db, data))]
    with pytest.raises(AugmentationError, match="one a task"):
        store.do(lambda db: choose_specs(db, config, data, shas))
