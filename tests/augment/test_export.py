import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from answered import (
    DIM,
    answer,
    chat,
    config_of,
    embedded,
    fill,
    opened,
    profile,
    records,
    vector_of,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from augment.errors import StoreFullStop
from augment.export import export
from augment.export_content import _slugs
from augment.provenance import usd
from llmrec_pl.data.dataset import InteractionDataset
from llmrec_pl.errors import AugmentationError

ROOT = Path(__file__).parents[2]


def hashes(folder):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


# Content ---------------------------------------------------------------------------------------


def test_edges_are_what_was_picked_and_the_trainer_reads_them(config, data):
    fill(config, data)
    made = export(config.store, config, data)
    table = pl.read_parquet(config.out / "pairs.parquet")
    users = {name: i for i, name in enumerate(data.user_ids.tolist())}
    items = {name: i for i, name in enumerate(data.item_ids.tolist())}
    told = [
        (users[u], items[p], items[n])
        for u, p, n in table.select("user_id", "most_liked", "least_liked").iter_rows()
    ]
    assert sorted(told) == list(map(tuple, made.edges.T.tolist()))
    assert table["most_liked_title"].to_list() == [data.titles()[p] for _, p, _ in told]
    assert {f.name: f.group for f in made.features} == {
        "user_profile": "profile",
        "item_director": "attribute",
        "item_country": "attribute",
    }


def test_each_text_is_embedded_and_kept_once(config, data):
    fill(config, data)
    made = {f.name: f for f in export(config.store, config, data).features}
    assert made["user_profile"].values.shape == (7, DIM)
    assert made["item_director"].values.shape == (3, DIM)
    assert made["item_country"].values.shape == (1, DIM)
    director = made["item_director"]
    for item in range(data.n_items):
        expected = vector_of(f"D{item % 3}")
        assert np.array_equal(director.values[director.index[item]], expected)
    with opened(config) as store:
        asked = store.do(
            lambda db: db.execute(
                "SELECT count(*) FROM request r JOIN spec s ON s.id = r.spec WHERE s.kind = 'embed'"
            ).fetchone()
        )
    assert asked == (7 + 3 + 1,)


def test_unknown_rows_stay_masked(config, data):
    with opened(config) as store:
        turn = iter(range(10**6))
        answer(
            store,
            config,
            data,
            "attributes",
            lambda c, b: records(c, director=None if next(turn) % 2 else "X", country=None),
        )
        answer(store, config, data, "embed")
    made = export(config.store, config, data)
    (director,) = made.features
    assert director.n_missing == data.n_items // 2
    assert made.manifest["counts"]["tasks"]["embed"]["skipped:empty_text"] == 30 + data.n_items
    assert made.edges.shape == (3, 0)


def test_the_majority_of_draws_becomes_the_edge(tmp_path, data):
    config = config_of(tmp_path, data.root, pairs={"draws": 3})
    wished = {}

    def reply(context, body):
        """Two of three draws name the same items, wherever they are shown."""
        user = tuple(sorted(context["shown"]))
        n = wished[user] = wished.get(user, 0) + 1
        most, least = (min(user), max(user)) if n != 1 else (max(user), min(user))
        shown = context["shown"]
        return {"most_liked": shown.index(most) + 1, "least_liked": shown.index(least) + 1}

    with opened(config) as store:
        answer(store, config, data, "pairs", reply)
    made = export(config.store, config, data)
    assert set(wished.values()) == {3}
    assert made.edges.shape[1] == data.n_users
    assert (made.edges[1] < made.edges[2]).all(), "the smallest id won two to one"
    assert pl.read_parquet(config.out / "pairs.parquet")["draw"].value_counts().height == 3


def test_what_draws_contradict_the_earlier_one_decides(tmp_path, data):
    config = config_of(tmp_path, data.root, pairs={"draws": 2})
    asked = set()

    def reply(context, body):
        shown, user = context["shown"], tuple(sorted(context["shown"]))
        most, least = (user[2], user[0]) if user in asked else (user[0], user[1])
        asked.add(user)
        return {"most_liked": shown.index(most) + 1, "least_liked": shown.index(least) + 1}

    with opened(config) as store:
        answer(store, config, data, "pairs", reply)
    made = export(config.store, config, data)
    assert set(map(tuple, made.edges[1:].T.tolist())) == {user[:2] for user in asked}
    assert "edges_left_out" not in made.manifest["counts"]


def test_edges_that_the_format_refuses_are_left_out_and_counted(config, data):
    with opened(config) as store:
        answer(store, config, data, "pairs")
        # a store made by hand, or by an older program, may show what is in train by now
        train = data.train
        liked = int(train.indices[train.indptr[4]])

        def spoil(db):
            import zlib

            row = db.execute("SELECT context FROM wanted WHERE entity = 4").fetchone()
            context = json.loads(zlib.decompress(row[0]))
            context["shown"][1] = liked
            blob = zlib.compress(json.dumps(context).encode())
            db.execute("UPDATE wanted SET context = ? WHERE entity = 4", (blob,))

        store.do(spoil)
    made = export(config.store, config, data)
    assert made.edges.shape[1] == data.n_users - 1
    assert made.manifest["counts"]["edges_left_out"] == {"negative_in_train": 1}


def test_a_new_profile_never_wears_the_old_ones_vector(tmp_path, config, data):
    fill(config, data)
    hot = config_of(tmp_path, data.root, profiles={"temperature": 1.0})
    with opened(hot) as store:
        answer(store, hot, data, "profiles", lambda c, b: profile(1, language="French"))
    part = export(hot.store, hot, data, out=tmp_path / "hot")
    assert "user_profile" not in {f.name for f in part.features}, "its text has no vector yet"
    assert part.manifest["counts"]["tasks"]["embed"]["planned"] == data.n_users
    with opened(hot) as store:
        answer(store, hot, data, "embed")
    made = {f.name: f for f in export(hot.store, hot, data, out=tmp_path / "hot").features}
    text = "age: 21; gender: female; liked genres: Drama; liked directors: D1; language: French"
    assert np.array_equal(made["user_profile"].values, [vector_of(text)])
    cool = {f.name: f for f in export(config.store, config, data).features}
    assert cool["user_profile"].values.shape == (7, DIM), "side by side in one store"


# Manifest --------------------------------------------------------------------------------------


def test_the_manifest_names_every_link_from_split_to_vectors(config, data):
    fill(config, data)
    manifest = export(config.store, config, data).manifest
    chain = manifest["provenance"]
    assert chain["dataset_fp"] == data.fingerprint == manifest["dataset_fp"]
    assert chain["pool_model_fingerprint"] == "random"
    assert len(chain["pool_sha"]) == 64
    assert set(chain["prompts"]) == set(chain["answers_sha"]) == {"pairs", "profiles", "attributes"}
    assert all(len(p["sha"]) == 64 and p["set"] == "strict-1" for p in chain["prompts"].values())
    assert chain["chat_models"]["pairs"] == "toy / m"
    assert chain["embed_model"] == "toy / vectors"
    assert len(chain["embeddings_sha"]) == 64
    assert manifest["specs"]["pairs"]["params"]["temperature"] == 0.6
    assert manifest["cost"]["tasks"]["pairs"]["tokens_in"] == 50 * data.n_users
    assert manifest["provider"] == "toy, placebo random-pool"
    assert manifest["placebo"] == "random-pool"


def test_coverage_counts_what_was_skipped_and_what_failed(tmp_path, data):
    config = config_of(tmp_path, data.root, embed=None)
    with opened(config) as store:
        turn = iter(range(10**6))

        def reply(context, body):
            return chat("nonsense") if next(turn) < 9 else profile(1)

        answer(store, config, data, "profiles", reply)
        answer(store, config, data, "pairs", most=7)
    made = export(config.store, config, data)
    coverage = made.manifest["coverage"]
    assert coverage["pairs"] == {
        "asked": 30,
        "done": 7,
        "skipped": 0,
        "share": round(7 / 30, 6),
        "planned_in_full": True,
    }
    assert coverage["profiles"]["done"] == 27, "nine replies are three prompts, asked three times"
    assert coverage["attributes"] == {
        "asked": 0,
        "done": 0,
        "skipped": 0,
        "share": 0.0,
        "planned_in_full": False,
    }
    assert "embed" not in coverage
    assert made.manifest["counts"]["tasks"]["profiles"] == {"done": 27, "quarantined:schema": 3}


def test_users_without_history_and_items_without_title_are_in_the_coverage(tmp_path, data):
    root = shutil.copytree(data.root, tmp_path / "films")
    items = pl.read_parquet(root / "items.parquet")
    blank = pl.when(pl.col("item") == 3).then(None).otherwise(pl.col("title")).alias("title")
    items.with_columns(blank).write_parquet(root / "items.parquet")
    dataset = InteractionDataset.load(root, verify=False)
    config = config_of(tmp_path, root)
    with opened(config) as store:
        answer(store, config, dataset, "attributes")
    made = export(config.store, config, dataset)
    assert made.manifest["counts"]["tasks"]["attributes"] == {"done": 59, "skipped:no_title": 1}
    assert made.manifest["coverage"]["attributes"]["share"] == 1.0
    assert made.manifest["cost"]["tasks"]["attributes"]["calls"] == 59, "nothing paid for it"


# Refusals --------------------------------------------------------------------------------------


def test_too_little_is_refused_and_the_old_export_stays(tmp_path, data):
    config = config_of(tmp_path, data.root, profiles=None, attributes=None, embed=None)
    with opened(config) as store:
        answer(store, config, data, "pairs", most=29)
    export(config.store, config, data, require_complete=29 / 30 - 1e-6)
    before = hashes(config.out)
    with pytest.raises(AugmentationError, match=r"pairs: 29 of 30 answers are there \(96.7%\)"):
        export(config.store, config, data, require_complete=0.98)
    assert hashes(config.out) == before


def test_a_task_that_was_never_asked_is_not_complete(config, data):
    with opened(config) as store:
        answer(store, config, data, "pairs")
    with pytest.raises(AugmentationError, match=r"0 of 0 answers.*not all of them were planned"):
        export(config.store, config, data, require_complete=0.5)


def test_a_plan_cut_short_is_not_complete(tmp_path, data):
    config = config_of(tmp_path, data.root, profiles=None, attributes=None, embed=None)
    with opened(config) as store:
        answer(store, config, data, "pairs")
        store.do(lambda db: db.execute("UPDATE spec SET planned = 0").rowcount)
    with pytest.raises(AugmentationError, match="not all of them were planned"):
        export(config.store, config, data, require_complete=0.5)


@pytest.mark.parametrize("share", [-0.1, 1.1, 98])
def test_a_share_is_a_share(config, data, share):
    with pytest.raises(AugmentationError, match=r"share in \[0, 1\]"):
        export(config.store, config, data, require_complete=share)


def test_an_empty_store_and_other_settings_say_what_to_do(tmp_path, config, data):
    with opened(config):
        pass
    with pytest.raises(AugmentationError, match="Run `python -m augment run` first"):
        export(config.store, config, data)
    with opened(config) as store:
        answer(store, config, data, "profiles", most=1)
    hot = config_of(tmp_path, data.root, profiles={"temperature": 1.0})
    with pytest.raises(AugmentationError, match=r"profiles by toy / m, temperature 0.6.*`--spec`"):
        export(hot.store, hot, data)


def test_vectors_of_two_lengths_are_refused(config, data):
    def reply(context, body):
        if body["input"] == "Altoria":
            row = {"index": 0, "embedding": [1.0, 2.0]}
            return json.dumps({"data": [row], "usage": {"prompt_tokens": 1}}).encode()
        return embedded(body["input"])

    with opened(config) as store:
        n = iter(range(10**6))
        answer(
            store,
            config,
            data,
            "attributes",
            lambda c, b: records(c, director="X", country="Altoria" if next(n) % 2 else "Borea"),
        )
        answer(store, config, data, "embed", reply)
    with pytest.raises(AugmentationError, match=r"'country' have . and . dimensions"):
        export(config.store, config, data)


def test_a_foreign_augmentation_is_not_replaced_unless_told(tmp_path, config, data):
    fill(config, data)
    other = config_of(tmp_path / "again", data.root)
    (tmp_path / "again").mkdir()
    fill(other, data, country="Borea")
    export(config.store, config, data, overwrite=False)
    mine = hashes(config.out)
    export(config.store, config, data, overwrite=False)
    assert hashes(config.out) == mine, "its own next state is"
    with pytest.raises(AugmentationError, match="--overwrite"):
        export(other.store, other, data, out=config.out, overwrite=False)
    with pytest.raises(AugmentationError, match="--overwrite"):
        export(
            config.store, config, data, out=config.out, overwrite=False, placebo="random-embeddings"
        )
    assert hashes(config.out) == mine
    export(other.store, other, data, out=config.out)
    assert hashes(config.out) != mine


def test_a_place_that_cannot_be_written_is_a_full_disk(tmp_path, config, data):
    fill(config, data)
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreFullStop, match="cannot be written"):
        export(config.store, config, data, out=tmp_path / "file" / "aug")


# Names and numbers -----------------------------------------------------------------------------


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(max_size=12), max_size=5))
def test_any_field_gets_a_name_that_the_format_takes(fields):
    import re

    slugs = _slugs(["profile", *fields])
    assert slugs[0] == "profile"
    assert all(re.fullmatch("[A-Za-z][A-Za-z0-9_]*", slug) for slug in slugs)
    assert len(set(slugs[1:])) == len(fields)


def test_a_renamed_field_is_said_so(tmp_path, data):
    config = config_of(tmp_path, data.root, attributes={"fields": ["box-office", "country"]})
    with opened(config) as store:
        answer(
            store,
            config,
            data,
            "attributes",
            lambda c, b: records(c, **{"box-office": "=1+1", "country": "Borea"}),
        )
        answer(store, config, data, "embed")
    made = export(config.store, config, data)
    assert made.manifest["renamed_fields"] == {"item_box_office": "box-office"}
    assert {f.name for f in made.features} == {"item_box_office", "item_country"}
    table = pl.read_parquet(config.out / "attributes.parquet")
    assert set(table["box-office"]) == {"=1+1"}, "a cell is data"


@given(st.integers(min_value=0, max_value=10**18))
def test_usd_is_exact(pico):
    from decimal import Decimal

    assert Decimal(usd(pico)) * 10**12 == pico
