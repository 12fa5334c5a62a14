import json
import math
import struct
from collections import Counter

import numpy as np
import polars as pl
import pytest
from answered import answer, chat, config_of, profile, records
from rich.console import Console

from augment.cli import run_command
from augment.report import measure, write_report
from augment.report_view import as_markdown, show
from augment.store import Store
from llmrec_pl.data.dataset import InteractionDataset
from llmrec_pl.errors import AugmentationError, ConfigError, DatasetError


def pairs_reply(data, best, user_of):
    def reply(context, body):
        user, shown = user_of[tuple(sorted(context["shown"]))], context["shown"]
        liked = set(data.val.indices[data.val.indptr[user] : data.val.indptr[user + 1]].tolist())
        good = [n for n, item in enumerate(shown, 1) if item in liked]
        bad = [n for n, item in enumerate(shown, 1) if item not in liked]
        if not good or len(good) == len(shown):
            return {"most_liked": 1, "least_liked": 2}
        most, least = (good[0], bad[0]) if best else (bad[0], good[0])
        return {"most_liked": most, "least_liked": least}

    return reply


def pools(config, data):
    from augment.plan import pool_for

    return pool_for("pairs", config, data).items


@pytest.mark.parametrize("best", [True, False])
def test_an_oracle_hits_always_and_its_opposite_never(config, data, best):
    pool = pools(config, data)
    user_of = {tuple(sorted(row.tolist())): user for user, row in enumerate(pool)}
    assert len(user_of) == data.n_users
    with Store(config.store, create=True, spool_size=2**16) as store:
        answer(store, config, data, "pairs", pairs_reply(data, best, user_of))
    (found,) = measure(config.store, config, data)["pairs"]
    tell, chances = 0, []
    for user, row in enumerate(pool):
        liked = set(data.val[[user]].indices.tolist())
        if liked & set(row.tolist()):
            tell += 1
            chances.append(len(liked & set(row.tolist())) / 10)
    assert tell > 10
    assert found["users_that_tell"] == tell
    assert found["chance"] == pytest.approx(np.mean(chances))
    assert found["most_liked"]["k"] == (tell if best else 0)
    assert found["least_liked"]["k"] == (0 if best else tell)
    if best:
        assert found["p_most_liked_by_chance"] == pytest.approx(math.prod(chances), abs=1e-12)
    else:
        assert found["p_most_liked_by_chance"] == 1.0
        assert found["p_least_liked_by_chance"] == pytest.approx(1.0)


def test_picking_each_place_once_hits_as_often_as_chance_says(tmp_path, data):
    """Summed over the places, "always the k-th" is every candidate once: exactly chance."""
    with Store(tmp_path / "store", create=True, spool_size=2**16) as store:
        for k in range(1, 11):
            config = config_of(tmp_path, data.root, pairs={"seed": k})
            reply = {"most_liked": k, "least_liked": k % 10 + 1}
            answer(store, config, data, "pairs", lambda c, b, reply=reply: reply)
    found = measure(tmp_path / "store", config, data)["pairs"]
    n, chance = found[0]["users_that_tell"], found[0]["chance"]
    assert len({row["setting"] for row in found}) == 10
    assert sum(row["most_liked"]["k"] for row in found) == pytest.approx(10 * n * chance)
    assert sum(row["least_liked"]["k"] for row in found) == pytest.approx(10 * n * chance)
    assert found[3]["places"]["most_liked"] == {4: data.n_users}, "a liking for a place shows"


def pool_file(folder, data, rng):
    """Candidates as `predict` writes them, best first; a validation item leads for odd users."""
    folder.mkdir()
    rows = []
    for user in range(data.n_users):
        liked = data.val.indices[data.val.indptr[user] : data.val.indptr[user + 1]].tolist()
        seen = data.known_items()[[user]].indices
        rest = rng.permutation(np.setdiff1d(np.arange(data.n_items), seen)).tolist()
        items = (liked[:1] + rest if user % 2 else rest[:3] + liked[:1] + rest[3:])[:10]
        rows += [
            (str(data.user_ids[user]), str(data.item_ids[item]), rank, 1.0 / rank)
            for rank, item in enumerate(items, 1)
        ]
    names = ["user_id", "item_id", "rank", "score"]
    pl.DataFrame(rows, schema=names, orient="row").write_parquet(folder / "candidates.parquet")
    about = {"dataset_fingerprint": data.fingerprint, "model_fingerprint": folder.name}
    (folder / "predictions.json").write_text(json.dumps(about))
    return str(folder / "candidates.parquet")


def test_the_base_models_first_candidate_is_the_rival_and_each_pool_its_own_spec(tmp_path, data):
    rng = np.random.default_rng(5)
    one, two = (pool_file(tmp_path / name, data, rng) for name in ("one", "two"))
    first = config_of(tmp_path, data.root, pairs={"pool": one})
    second = config_of(tmp_path, data.root, pairs={"pool": two})
    with Store(first.store, create=True, spool_size=2**16) as store:
        answer(store, first, data, "pairs")
        answer(store, second, data, "pairs")
    for config, mine in ((first, 0), (second, 1)):
        found = measure(config.store, config, data)["pairs"]
        assert [r["of_this_config"] for r in found] == [mine == 0, mine == 1]
        tells = [u for u in range(data.n_users) if data.val[[u]].nnz]
        rival = found[mine]["first_of_pool"]
        assert (rival["k"], rival["n"]) == (sum(u % 2 for u in tells), len(tells))
        assert found[1 - mine]["first_of_pool"] is None, "the config names another pool"
        assert found[mine]["chance"] == pytest.approx(0.1)


def test_the_test_split_stays_sealed(config, data):
    assert "test" not in data.splits
    with pytest.raises(DatasetError, match="sealed"):
        data.test  # noqa: B018
    with Store(config.store, create=True, spool_size=2**16) as store:
        answer(store, config, data, "pairs")
    assert "test split was not opened" in measure(config.store, config, data)["note"]


def test_attributes_are_held_against_the_data_sets_own_columns(config, data):
    truth = data.items_frame()

    def reply(context, body):
        (item,) = context["items"]
        right = truth["director"][item] if item % 4 == 0 else "Nobody Known"
        return records(context, director=right if item % 5 else None, country="Altoria")

    with Store(config.store, create=True, spool_size=2**16) as store:
        answer(store, config, data, "attributes", reply)
    (found,) = measure(config.store, config, data)["attributes"]
    director, country = found["fields"]["director"], found["fields"]["country"]
    items = range(data.n_items)
    right = sum(i % 4 == 0 and i % 5 != 0 for i in items)
    assert (director["of_all"]["k"], director["of_all"]["n"]) == (right, data.n_items)
    assert director["answered"]["k"] == sum(i % 5 != 0 for i in items)
    assert country["of_all"]["k"] == truth["country"].to_list().count("Altoria")
    assert country["majority"]["k"] == max(Counter(truth["country"].to_list()).values())
    confusion = director["confusions"][0]
    assert confusion["answer"] == "Nobody Known"
    assert set(confusion["titles"]) <= set(data.titles())


def test_profiles_are_held_against_age_and_gender(config, data):
    users = data.users_frame()
    turn = iter(range(data.n_users))

    def reply(context, body):
        user = next(turn)
        age = int(users["age"][user])
        said = f"{age - 2}-{age + 2}" if user % 2 else age + 7
        return profile(user, age=said, gender="male")

    with Store(config.store, create=True, spool_size=2**16) as store:
        answer(store, config, data, "profiles", reply)
    (found,) = measure(config.store, config, data)["profiles"]
    assert found["age"]["within_5"]["k"] == data.n_users // 2
    assert found["age"]["within_10"]["k"] == data.n_users
    assert found["age"]["bands"]["k"] == data.n_users // 2
    assert found["age"]["mean_error_years"] == pytest.approx(3.5)
    men = users["gender"].to_list().count("M")
    assert found["fields"]["gender"]["of_all"]["k"] == men
    assert "country" in found["without_truth"]


def test_acceptance_counts_replies_repairs_and_settings(tmp_path, data):
    cold = {"temperature": 0}
    config = config_of(tmp_path, data.root, profiles=cold)
    turn = iter(range(10**6))

    def reply(context, body):
        first = len(body["messages"]) == 1
        return chat("no object") if first and next(turn) % 3 == 0 else profile(1)

    with Store(config.store, create=True, spool_size=2**16) as store:
        answer(store, config, data, "profiles", reply)
        hot = config_of(tmp_path, data.root, profiles={"temperature": 1.0})
        answer(store, hot, data, "profiles", most=4)
    found = measure(config.store, config, data)["acceptance"]
    first, second = found
    assert first["of_this_config"]
    assert not second["of_this_config"]
    assert (first["temperature"], second["temperature"]) == (0, 1.0)
    assert first["verdicts"] == {"accepted": 30, "schema": 10}
    assert first["answered"]["k"] == 30
    assert first["accepted_at_first"]["k"] == 20
    assert (first["follow_ups"], first["follow_ups_accepted"], first["same_again"]) == (10, 10, 0)
    assert first["tokens_in"] == 40 * 50
    assert second["outcomes"] == {"done": 4, "planned": 26}
    assert first["setting"] != second["setting"]


def full(config, data):
    with Store(config.store, create=True, spool_size=2**16) as store:
        turn = iter(range(10**6))
        answer(store, config, data, "pairs")
        answer(store, config, data, "profiles", lambda c, b: profile(next(turn)))
        answer(
            store,
            config,
            data,
            "attributes",
            lambda c, b: records(c, director="A | <b>$x$</b>", country="Altoria"),
        )


def test_the_report_is_a_pure_function_of_the_store(tmp_path, config, data):
    full(config, data)
    first = write_report(measure(config.store, config, data), tmp_path / "a")
    second = write_report(measure(config.store, config, data), tmp_path / "b")
    assert [p.name for p in first] == [p.name for p in second]
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in second]
    assert {p.name for p in first} == {
        "report.json",
        "report.md",
        "verdicts.png",
        "pairs.png",
        "attributes.png",
        "profiles.png",
    }
    for path in first[2:]:
        head = path.read_bytes()[:24]
        assert head[:8] == b"\x89PNG\r\n\x1a\n"
        width, height = struct.unpack(">II", head[16:24])
        assert 800 <= width <= 2400
        assert 300 <= height <= 2400


def test_what_models_say_cannot_become_markup(config, data):
    full(config, data)
    text = as_markdown(measure(config.store, config, data))
    assert "<b>" not in text.replace("\\<b>", "")
    for line in text.splitlines():
        if "Nobody" in line or "$x$" in line:
            assert line.replace("\\|", "").count("|") == 7, "six cells"
    console = Console(record=True, width=120, file=open("/dev/null", "w"))  # noqa: PTH123, SIM115
    show(measure(config.store, config, data), console)
    assert "A | <b>" in console.export_text()


def test_a_store_without_answers_says_what_to_do(config, data):
    with Store(config.store, create=True, spool_size=2**16):
        pass
    with pytest.raises(AugmentationError, match="Run `python -m augment run` first"):
        measure(config.store, config, data)


def test_the_command_prints_and_writes(tmp_path, config, data, capsys):
    full(config, data)
    file = tmp_path / "config.yaml"
    file.write_text(json.dumps(config.model_dump(mode="json", exclude_none=True)))
    facts = tmp_path / "facts.csv"
    facts.write_text("item_id,director\n" + "".join(f"{n},A\n" for n in data.item_ids))
    arguments = ["--config", str(file), "--truth", f"items={facts}"]
    run_command("report", arguments)
    printed = capsys.readouterr().out
    assert "Pairs: does a pick name a held-out liked item?" in printed
    found = json.loads((config.store / "report" / "report.json").read_text())
    assert found["attributes"][0]["fields"]["director"]["of_all"]["share"] == 1.0
    run_command("report", [*arguments, "--out", str(tmp_path / "there")])
    assert (tmp_path / "there" / "report.md").is_file()
    with pytest.raises(ConfigError, match="must read items=FILE"):
        run_command("report", ["--config", str(file), "--truth", "films=x"])


def test_an_older_picture_does_not_pass_for_this_reports(tmp_path, config, data):
    full(config, data)
    out = tmp_path / "out"
    write_report(measure(config.store, config, data), out)
    found = measure(config.store, config, data) | {"pairs": []}
    write_report(found, out)
    assert not (out / "pairs.png").exists()
    assert "pairs.png" not in (out / "report.md").read_text()


@pytest.mark.real
def test_heuristics_on_ml_100k_agree_with_the_tables_they_read(tmp_path, real_data):
    import asyncio

    from augment.clock import SystemClock
    from augment.config import build_config
    from augment.runner import Options, Runner
    from llmrec_pl.cli import main

    root, facts = tmp_path / "ml", real_data / "ml-100k" / "omdb.jsonl"
    main(
        [
            *("prepare", "ml-100k", "--source", str(real_data / "ml-100k"), "--out", str(root)),
            *("--items", str(facts)),
        ]
    )
    data = InteractionDataset.load(root)
    values = config_of(tmp_path, root).model_dump(mode="json", exclude_none=True)
    values["provider"] = {"name": "heuristic"}
    values["tasks"]["attributes"]["fields"] = ["creator", "country", "language"]
    values["tasks"] |= {"embed": None}
    config = build_config(values)
    with Store(config.store, create=True) as store:
        asyncio.run(Runner(config, data, store, Options(), clock=SystemClock()).run())
    found = measure(config.store, config, data)
    (attributes,) = found["attributes"]
    assert attributes["heuristic"]
    countries = pl.read_parquet(root / "items.parquet")["country"].drop_nulls()
    usa = countries.str.split(", ").list.contains("USA").sum()
    for name in ("director", "country", "language"):
        assert attributes["fields"][name]["of_answered"]["share"] == 1.0
    assert attributes["fields"]["country"]["majority"]["k"] == usa
    assert attributes["fields"]["country"]["truth_known"] == len(countries)
    (profiles,) = found["profiles"]
    users = pl.read_parquet(root / "users.parquet")
    assert profiles["fields"]["gender"]["majority"]["k"] == (users["gender"] == "M").sum()
    assert profiles["fields"]["gender"]["answered"]["k"] == 0, "heuristics do not guess"
    (pairs,) = found["pairs"]
    assert pairs["chance"] == pytest.approx(0.1, abs=0.02)
    assert pairs["users"] == data.n_users
