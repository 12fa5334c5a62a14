"""What is made of the answers of the memorisation probe, and the probe from end to end."""

import json
from collections import Counter
from math import comb
from pathlib import Path

import numpy as np
import pytest
from answered import answer, opened
from cli_calls import call
from scipy.stats import binomtest

from augment.cassette_dump import dump
from augment.config import MemorisationTask, load_config
from augment.export import export
from augment.memorisation import CONTROL, HISTORY, ITEM_ID
from augment.recall import title_key
from augment.replay import Replay
from augment.report import measure
from augment.report_view import as_markdown
from augment.status import read_status
from llmrec_pl.data.augmentation import load_augmentation
from llmrec_pl.errors import AugmentationError
from tests.augment.fault_server import FaultServer
from tests.augment.films import write_films
from tests.augment.probing import ALONE, Oracle, planned, probe_config
from tests.augment.taped import Scripted, accepted, taped

CONFIGS = Path(__file__).parents[2] / "configs" / "augment"
SETTINGS = {"shown": 2, "asked": 3}


def probed(tmp_path, data, oracle, **settings):
    """Ask an oracle everything; returns what the report says, and what was wanted."""
    config = probe_config(tmp_path, data.root, **{**SETTINGS, **settings})
    with opened(config) as store:
        answer(store, config, data, "memorisation", oracle)
    (found,) = measure(config.store, config, data)["memorisation"]
    return found, planned(config, data)[1]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Godfather, The (1972)", "The Godfather"),
        ("L'Été meurtrier", "l'ete  Meurtrier"),
        ("Boot, Das (1981)", "Das Boot"),
        ("Se7en", "SE7EN!"),
        ("Shanghai Triad (Yao a yao)", "shanghai triad"),
    ],
)
def test_spellings_of_one_title(one, other):
    assert title_key(one) == title_key(other)


def test_titles_that_differ_stay_apart():
    titles = ["Alien", "Aliens", "The", "Alien 3", "A", "Heat", "Theatre"]
    assert len({title_key(t) for t in titles}) == len(titles)


# Items -----------------------------------------------------------------------------------------


def test_who_knows_the_ids_is_found_out(tmp_path, data):
    found, wants = probed(tmp_path, data, Oracle(data))
    n = sum(want.field == ITEM_ID for want in wants)
    by_id = found["by_id"]
    assert (by_id["right"]["k"], by_id["right"]["n"]) == (n, n)
    assert by_id["chance"] == pytest.approx(1 / n), "each title was said once"
    assert by_id["popular"]["k"] == 1, "the most popular is one of all items"
    assert by_id["year_right"]["k"] == n
    years = Counter(data.items_frame()["year"].to_list())
    assert by_id["year_majority"]["k"] == max(years.values())
    assert by_id["p_by_chance"] < 1e-12
    assert found["verdict"] == "memorised"
    assert "knows this data set by heart" in found["sentence"]
    assert found["by_title"]["answered"]["k"] == 0


def test_who_knows_the_films_but_not_their_ids_is_not(tmp_path, data):
    """The same titles, each said for the next id: what a model that guesses films would do."""
    titles = data.items_frame()["title"].to_list()
    oracle = Oracle(
        data,
        by_id=lambda title, item: titles[(item + 1) % len(titles)],
        titles=lambda after, own: ["No Such Film"],
    )
    found, _ = probed(tmp_path, data, oracle)
    assert found["by_id"]["right"]["k"] == 0
    assert found["by_id"]["p_by_chance"] == 1.0
    assert found["verdict"] == "no sign"
    assert "no sign of knowing it by heart" in found["sentence"]


def test_always_the_same_title_is_chance(tmp_path, data):
    title = data.items_frame()["title"][7]
    found, _ = probed(tmp_path, data, Oracle(data, by_id=lambda *_: title))
    n = data.n_items
    assert found["by_id"]["right"]["k"] == 1
    assert found["by_id"]["chance"] == pytest.approx(1 / n)
    assert found["by_id"]["p_by_chance"] == 1.0, "the one item it names, it would name anyway"


def test_no_answer_is_never_right(tmp_path, data):
    found, _ = probed(tmp_path, data, Oracle(data, by_id=lambda *_: None))
    assert found["by_id"]["right"]["k"] == found["by_id"]["answered"]["k"] == 0
    assert found["by_id"]["chance"] == 0
    assert found["verdict"] == "no sign"
    assert "asked about ids and histories it never named a title" in found["sentence"]


# Interactions ----------------------------------------------------------------------------------


def test_who_knows_the_users_is_found_out(tmp_path, data):
    oracle = Oracle(data, by_id=lambda *_: None, titles=lambda after, own: after[:1] if own else [])
    found, wants = probed(tmp_path, data, oracle)
    n = sum(want.field == HISTORY for want in wants)
    users = found["interactions"]
    assert n > 10
    assert users["users_hit"]["k"] == users["users_hit"]["n"] == users["items_named"] == n
    assert (users["control"]["k"], users["control"]["n"]) == (0, n)
    assert users["p_own_over_control"] == pytest.approx(0.5**n)
    assert found["verdict"] == "memorised"


def test_a_good_recommender_is_not_taken_for_memory(tmp_path, data):
    """It names what comes next under any id: far above popularity, no user above its control."""
    oracle = Oracle(data, by_id=lambda *_: None, titles=lambda after, own: after)
    found, _ = probed(tmp_path, data, oracle)
    users = found["interactions"]
    assert users["users_hit"]["share"] == users["control"]["share"] == 1.0
    assert users["p_over_popular"] < 0.01
    assert users["p_own_over_control"] is None, "no user differs"
    assert found["verdict"] == "no sign"


def test_popularity_chance_and_tests_against_loops(tmp_path, data):
    """Every figure of interactions, from the train matrix and the table alone."""
    titles = data.items_frame()["title"].to_list()
    some = [titles[i] for i in (3, 11, 40)]
    oracle = Oracle(
        data,
        titles=lambda after, own: ([*after[:1], *some] if own and len(after) > 2 else some)[:3],
    )
    found, wants = probed(tmp_path, data, oracle)
    counts = np.asarray(data.train.sum(axis=0)).ravel()
    ids = [str(name) for name in data.item_ids]
    popular = sorted(range(data.n_items), key=lambda i: (-counts[i], ids[i]))
    own = {w.entity: w.context for w in wants if w.field == HISTORY}
    assert {w.entity for w in wants if w.field == CONTROL} == set(own)
    hits, usual, more, less, chances = 0, 0, 0, 0, []
    for context in own.values():
        following, shown = set(context["next"]), set(context["shown"])
        said = ([titles[context["next"][0]], *some] if len(following) > 2 else some)[:3]
        mine = sum(titles[i] in said for i in following)
        others = sum(titles[i] in some for i in following)
        hits += mine > 0
        more, less = more + (mine > others), less + (mine < others)
        new = [i for i in popular if i not in shown][:3]
        usual += bool(following & set(new))
        rest, misses = data.n_items - 2, data.n_items - 2 - len(following)
        picks = len(set(said))
        chances.append(1 - comb(misses, picks) / comb(rest, picks))
    users = found["interactions"]
    assert users["users_hit"]["k"] == hits
    assert users["popular"]["k"] == usual
    assert users["chance"] == pytest.approx(np.mean(chances), rel=1e-12)
    expected = binomtest(more, more + less, alternative="greater").pvalue
    assert users["p_own_over_control"] == pytest.approx(expected, rel=1e-12)
    assert users["items_next"] == sum(len(c["next"]) for c in own.values())


# From end to end -------------------------------------------------------------------------------


def test_heuristics_are_popularity_and_nothing_more(tmp_path, data, capsys):
    config = probe_config(tmp_path, data.root, provider="heuristic", **SETTINGS)
    file = tmp_path / "c.yaml"
    file.write_text(json.dumps(config.model_dump(mode="json", exclude_none=True) | {
        "tasks": ALONE | {"memorisation": {**SETTINGS, "data_name": "Toy Lens"}}
    }))  # fmt: skip
    assert call("estimate", "--config", file, "--json") == 0
    (task,) = json.loads(capsys.readouterr().out)["tasks"]
    n = len(planned(config, data)[1])
    assert (task["kind"], task["wanted"]) == ("memorisation", n)
    assert task["to_pay"] + task["duplicates"] == n, "some titles begin alike"
    assert call("plan", "--config", file) == 0
    assert call("run", "--config", file) == 0
    said = capsys.readouterr().out
    assert "nothing of this is trained on; next: python -m augment report" in said
    assert not (tmp_path / "out").exists()
    assert call("status", "--config", file) == 0
    assert "memorisation" in capsys.readouterr().out
    assert call("report", "--config", file) == 0
    assert "no LLM and recalls nothing: it is the floor" in capsys.readouterr().out
    (found,) = json.loads((config.store / "report" / "report.json").read_text())["memorisation"]
    users = found["interactions"]
    assert users["users_hit"] == users["popular"] == users["control"]
    assert users["items_named"] == users["items_named_by_popularity"] > 0
    assert found["by_id"]["answered"]["k"] == found["by_title"]["answered"]["k"] == 0
    assert found["verdict"] == "no sign"


def test_faults_cost_no_answer_and_nothing_is_asked_twice(place):
    tasks = ["--set", f"tasks={json.dumps(ALONE | {'memorisation': {'shown': 2, 'asked': 2}})}"]
    own = ["--set", "provider.structured=json_schema", "--max-usd", "1", "--no-export"]
    script = ["error_500", "reset", "html_200", "truncated", "ok"]
    with FaultServer(script) as server:
        own += ["--provider", "openai", "--base-url", server.url]
        arguments = ("run", "--config", "c.yaml", *tasks, *own)
        assert call(*arguments) == 0
        first = len(server.posts)
        assert call(*arguments) == 0
        assert len(server.posts) == first
    (task,) = read_status("store").tasks
    assert task.kind == "memorisation"
    assert task.states == {"done": task.wanted}


def test_an_export_carries_the_verdict_and_the_same_data(tmp_path, data):
    tasks = ALONE | {"pairs": {"pool": "random", "n_candidates": 5}}
    config = probe_config(tmp_path, data.root, tasks=tasks, **SETTINGS)
    with opened(config) as store:
        answer(store, config, data, "pairs")
        before = export(config.store, config, data)
        assert "memorisation" not in before.manifest
        answer(store, config, data, "memorisation", Oracle(data))
    made = export(config.store, config, data, require_complete=1.0)
    assert made.content_id == before.content_id
    assert made.manifest["provenance"] == before.manifest["provenance"]
    assert set(made.manifest["coverage"]) == {"pairs"}
    said = load_augmentation(config.out, data).manifest["memorisation"]
    assert said["verdict"] == "memorised"
    assert said["items_by_id"]["k"] == data.n_items
    assert "by heart" in said["sentence"]


def test_alone_there_is_nothing_to_export(tmp_path, data):
    config = probe_config(tmp_path, data.root, **SETTINGS)
    with opened(config) as store:
        answer(store, config, data, "memorisation", Oracle(data))
    with pytest.raises(AugmentationError, match="holds no answers for this config"):
        export(config.store, config, data)


def test_unanswered_probes_say_nothing(tmp_path, data):
    config = probe_config(tmp_path, data.root, **SETTINGS)
    with opened(config) as store:
        answer(store, config, data, "memorisation", lambda c, b: None)
    found = measure(config.store, config, data)
    assert found["memorisation"][0]["verdict"] == "unknown"
    assert "by heart" not in as_markdown(found).replace("does the model know the data set", "")


def test_the_report_names_every_probe(tmp_path, data):
    config = probe_config(tmp_path, data.root, **SETTINGS)
    with opened(config) as store:
        answer(store, config, data, "memorisation", Oracle(data))
    text = as_markdown(measure(config.store, config, data))
    for name in ("item by id", "item by title", "next items"):
        assert f"| {name} |" in text
    assert "It knows this data set by heart at least in part" in text


@pytest.mark.parametrize("base", ["demo", "ml-100k", "netflix"])
def test_the_overlay_adds_the_probe_and_nothing_else(base):
    plain = load_config([CONFIGS / f"{base}.yaml"])
    changed = load_config([CONFIGS / f"{base}.yaml", CONFIGS / "probes" / "memorisation.yaml"])
    task = changed.tasks.memorisation
    assert task == MemorisationTask(data_name="MovieLens 100K")
    tasks = plain.tasks.model_copy(update={"memorisation": task})
    assert changed == plain.model_copy(update={"tasks": tasks})


class Recalling(Scripted):
    """Scripted answers, also in the forms of the probe."""

    @staticmethod
    def _varied(body, dice):
        form = json.dumps(body["response_format"])
        if "most_liked" in form:
            return Scripted._varied(body, dice)
        said = dice.choice([None, "The 3th Night of the Silver River", "Heat"])
        if "titles" in form:
            return json.dumps({"titles": [said] if said else []})
        return json.dumps({"title": said, "year": dice.choice([None, 1963])})


def test_a_cassette_gives_the_same_answers_without_a_network(tmp_path):
    films = write_films(tmp_path / "films", users=6, items=8, history=4)
    tasks = ALONE | {"pairs": {"pool": "random", "n_candidates": 4}}
    config = probe_config(tmp_path, films, form="json_schema", tasks=tasks, **SETTINGS)
    _, dataset = taped(tmp_path, Recalling(seed=3, faults=0.3), config, films)
    dump(config.store, config, dataset, tmp_path / "c.jsonl.gz")
    replay = Replay(tmp_path / "c.jsonl.gz", dataset=films)
    assert replay.run(tmp_path / "replayed", tmp_path / "export").same
    assert accepted(tmp_path / "replayed") == accepted(config.store)
    first, again = (
        measure(store, config, dataset)["memorisation"]
        for store in (config.store, tmp_path / "replayed")
    )
    assert first == again
    assert first[0]["by_id"]["right"]["n"] > 0
