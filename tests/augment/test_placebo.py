import dataclasses
from pathlib import Path

import numpy as np
import pytest
from answered import answer, config_of, profile, records, simulated
from hypothesis import given, settings
from hypothesis import strategies as st

from augment.config import load_config
from augment.export import export
from augment.placebo import PLACEBOS, apply_placebo, placebos_of
from augment.plan import make_spec, pool_for, wanted
from augment.store import Store
from llmrec_pl.data.dataset import InteractionDataset
from llmrec_pl.data.features import Feature
from llmrec_pl.errors import AugmentationError

CONFIGS = Path(__file__).parents[2] / "configs" / "augment"


def dataset_of(n_users=12, n_items=5, order=None):
    pairs = np.array([range(n_users), [0] * n_users])
    made = InteractionDataset.from_edges("tiny", n_users, n_items, pairs)
    if order is None:
        return made
    return dataclasses.replace(made, user_ids=made.user_ids[order])


def profile_of(index, n_distinct=None, name="user_profile"):
    index = np.asarray(index)
    n = n_distinct or int(index.max()) + 1
    values = np.random.default_rng(1).normal(size=(n, 4)).astype(np.float32)
    return Feature(name, "user", "profile", values, index)


DIRECTOR = Feature("item_director", "item", "attribute", np.eye(2, 4, dtype=np.float32))


@settings(max_examples=40)
@given(
    known=st.lists(st.booleans(), min_size=2, max_size=40).filter(lambda k: sum(k) > 1),
    seed=st.integers(0, 1000),
)
def test_profiles_are_dealt_to_others_and_the_unknown_stay_unknown(known, seed):
    index = np.where(known, np.cumsum(known) - 1, -1)
    dataset = dataset_of(len(known))
    dealt, other = apply_placebo("shuffled-profiles", [profile_of(index), DIRECTOR], dataset, seed)
    assert sorted(dealt.index) == sorted(index)
    assert (dealt.index[np.array(known)] != index[np.array(known)]).all(), "nobody keeps theirs"
    assert ((dealt.index < 0) == (index < 0)).all()
    assert other is DIRECTOR, "attributes are left alone"


def test_the_same_seed_deals_the_same_to_the_same_names():
    feature = profile_of(np.arange(12))
    first, second = (
        apply_placebo("shuffled-profiles", [feature], dataset_of(), s)[0].index for s in (0, 1)
    )
    again = apply_placebo("shuffled-profiles", [feature, DIRECTOR], dataset_of(), 0)[0].index
    assert np.array_equal(first, again)
    assert not np.array_equal(first, second)
    order = np.random.default_rng(3).permutation(12)  # user i is now called as order[i] was
    moved = profile_of(np.arange(12)[order], 12)
    renamed = apply_placebo("shuffled-profiles", [moved], dataset_of(order=order), 0)[0].index
    assert np.array_equal(renamed, first[order]), "numbering plays no part"


def test_noise_has_the_structure_and_lengths_of_the_vectors_and_nothing_else():
    feature = profile_of([0, 1, 0, -1, 2, 1, 0, 0, 0, 0, 0, 0])
    (noise,) = apply_placebo("random-embeddings", [feature], dataset_of(), 0)
    assert np.array_equal(noise.index, feature.index)
    lengths = np.linalg.norm(feature.values, axis=1)
    assert np.allclose(np.linalg.norm(noise.values, axis=1), lengths, rtol=1e-6)
    assert not np.allclose(noise.values, feature.values)
    many = Feature("f", "item", "attribute", np.ones((400, 64), dtype=np.float32))
    (noise,) = apply_placebo("random-embeddings", [many], dataset_of(), 0)
    unit = noise.values / np.linalg.norm(noise.values, axis=1, keepdims=True)
    cosines = (unit @ unit.T)[np.triu_indices(400, 1)]
    # for Gaussian noise in 64 dimensions: mean 0, deviation 1/8; 79,800 pairs
    assert abs(cosines.mean()) < 5 * 0.125 / np.sqrt(79_800)
    assert abs(cosines.std() - 0.125) < 0.005


def test_a_field_gets_the_same_noise_whatever_else_is_there():
    feature = profile_of(np.arange(12))
    alone = apply_placebo("random-embeddings", [feature], dataset_of(), 0)[0]
    beside = apply_placebo("random-embeddings", [DIRECTOR, feature], dataset_of(), 0)[1]
    assert np.array_equal(alone.values, beside.values)
    assert not np.array_equal(
        alone.values, apply_placebo("random-embeddings", [feature], dataset_of(), 1)[0].values
    )


@pytest.mark.parametrize("placebo", PLACEBOS)
def test_nothing_to_damage_is_said_so(placebo):
    given_features = [DIRECTOR] if placebo == "shuffled-profiles" else []
    with pytest.raises(AugmentationError, match="nothing to damage"):
        apply_placebo(placebo, given_features, dataset_of())


def test_one_profile_cannot_be_dealt():
    with pytest.raises(AugmentationError, match="two users at least"):
        apply_placebo("shuffled-profiles", [profile_of([0, *[-1] * 11])], dataset_of())


# On an export ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return InteractionDataset.load(simulated(tmp_path_factory.mktemp("data") / "films"))


def filled(config, data):
    with Store(config.store, create=True, spool_size=2**16) as store:
        users = iter(range(10**6))
        answer(store, config, data, "pairs")
        answer(store, config, data, "profiles", lambda c, b: profile(next(users)))
        answer(
            store, config, data, "attributes", lambda c, b: records(c, director="A", country="B")
        )
        answer(store, config, data, "embed")


def test_a_placebo_is_written_beside_the_export_and_says_what_it_is(tmp_path, data):
    config = config_of(tmp_path, data.root)
    filled(config, data)
    real = export(config.store, config, data)
    fake = export(config.store, config, data, placebo="shuffled-profiles", seed=4)
    assert fake.path == config.out.with_name("aug-shuffled-profiles")
    assert fake.manifest["placebo"] == "random-pool, shuffled-profiles"
    assert fake.manifest["placebo_seed"] == 4
    for key in ("provider", "prompt_set"):
        assert fake.manifest[key].endswith("placebo random-pool, shuffled-profiles")
    assert fake.content_id != real.content_id
    assert np.array_equal(fake.edges, real.edges)
    before, after = ({f.name: f for f in x.features} for x in (real, fake))
    assert np.array_equal(before["item_director"].values, after["item_director"].values)
    dense = before["user_profile"].dense(), after["user_profile"].dense()
    assert not (dense[0] == dense[1]).all(axis=1).any(), "each profile was another text"
    assert np.array_equal(np.sort(dense[0], axis=0), np.sort(dense[1], axis=0))
    assert "profiles.parquet" not in fake.manifest["files"], "they are not these users' texts"
    assert "attributes.parquet" in fake.manifest["files"]


def test_the_same_seed_gives_the_same_placebo(tmp_path, data):
    config = config_of(tmp_path, data.root)
    filled(config, data)
    ids = [
        export(config.store, config, data, placebo="random-embeddings", seed=s).content_id
        for s in (0, 0, 1)
    ]
    assert ids[0] == ids[1] != ids[2]


# Asked for -------------------------------------------------------------------------------------


@pytest.mark.parametrize("base", ["demo", "ml-100k", "netflix"])
@pytest.mark.parametrize("overlay", ["masked_titles", "random_pool"])
def test_overlays_change_what_they_say_and_nothing_else(base, overlay):
    plain = load_config([CONFIGS / f"{base}.yaml"]).model_dump()
    changed = load_config(
        [CONFIGS / f"{base}.yaml", CONFIGS / "placebos" / f"{overlay}.yaml"]
    ).model_dump()
    for kind, task in plain["tasks"].items():
        if overlay == "masked_titles" and kind in ("pairs", "profiles", "attributes"):
            task["mask_titles"] = True
        elif overlay == "random_pool" and kind == "pairs":
            task["pool"] = "random"
    assert changed == plain


def test_masked_titles_show_no_title_and_are_labelled(tmp_path, data):
    masked = config_of(
        tmp_path, data.root, **{k: {"mask_titles": True} for k in ("pairs", "profiles")}
    )
    titles = {title.rpartition(" (")[0] for title in data.titles()}
    for kind in ("pairs", "profiles"):
        pool = pool_for(kind, masked, data)
        spec = make_spec(kind, masked, data, "none", pool)
        prompts = [w.body["messages"][0]["content"] for w in wanted(spec, data, pool) if w.body]
        assert len(prompts) == data.n_users
        assert not any(title in prompt for title in titles for prompt in prompts)
        assert "masked-titles" in placebos_of([spec], None)
        heuristic = spec.model_copy(update={"prompt_set": "heuristic-1"})
        assert "masked-titles" not in placebos_of([heuristic], None), "it never reads titles there"
    with Store(masked.store, create=True, spool_size=2**16) as store:
        answer(store, masked, data, "pairs")
    assert export(masked.store, masked, data).manifest["placebo"] == "masked-titles, random-pool"
