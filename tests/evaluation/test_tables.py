from __future__ import annotations

import io

import pytest
from rich.console import Console

from llmrec_pl.evaluation.metrics import METRICS
from llmrec_pl.evaluation.tables import groups_table, metrics_table, recommendations_table


def shown(table, width=120):
    console = Console(file=io.StringIO(), width=width)
    console.print(table)
    return console.file.getvalue()


def words_of_row(text, first):
    return next(line.split() for line in text.splitlines() if line.split()[:1] == [first])


@pytest.fixture
def record():
    metrics = {
        f"{name}@{k}": (i + 1) / 10 + k / 1000 for k in (10, 20) for i, name in enumerate(METRICS)
    }
    counts = {"users": 1845, "hits@10": 98, "hits@20": 1234}
    exposure = {f"{n}@{k}": v for k in (10, 20) for n, v in (("coverage", 0.25), ("gini", 0.875))}
    empty = dict.fromkeys(metrics, float("nan")) | {"users": 0}
    return {
        "stage": "val",
        "profile": "standard",
        "ks": [10, 20],
        "candidates": "all",
        "metrics": metrics | counts,
        "users_without_held_out_items": 11_342,
        "exposure": exposure,
        "groups": {"cold_items": empty, "warm_users": metrics | {"users": 1200}},
    }


def test_metrics_table_shows_one_row_a_k_with_four_digits(record):
    text = shown(metrics_table(record, "validation, MF on netflix"))
    assert text.splitlines()[0].strip() == "validation, MF on netflix"
    heading = words_of_row(text, "K")
    assert heading == ["K", "Recall", "NDCG", "Prec.", "Hit", "MRR", "MAP", "hits", "cover", "gini"]
    expected = [
        "10",
        "0.1100",
        "0.2100",
        "0.3100",
        "0.4100",
        "0.5100",
        "0.6100",
        "98",
        "0.250",
        "0.875",
    ]
    assert words_of_row(text, "10") == expected
    assert words_of_row(text, "20")[7] == "1,234"


def test_caption_says_who_was_counted_and_by_which_convention(record):
    text = " ".join(shown(metrics_table(record, "t")).split())
    assert "1,845 users evaluated, 11,342 without held-out items" in text
    assert "all items ranked, profile standard" in text
    assert "test split" not in text
    opened = metrics_table(record | {"test_openings": 3}, "t")
    assert "test split opened 3 time(s) by this run" in " ".join(shown(opened).split())


def test_groups_table_leaves_out_groups_without_users(record):
    text = shown(groups_table(record, "val by group"))
    assert text.splitlines()[0].strip() == "val by group"
    assert words_of_row(text, "group") == ["group", "users", "R@10", "R@20", "N@10", "N@20"]
    assert words_of_row(text, "warm") == [
        "warm",
        "users",
        "1,200",
        "0.1100",
        "0.1200",
        "0.2100",
        "0.2200",
    ]
    assert "cold" not in text
    assert "nan" not in text


def test_recommendations_stand_beside_what_the_user_liked():
    history = [("i9", "Heat"), ("i4", "Ronin")]
    recommended = [("i7", "Alien", 1.5), ("i2", "Aliens", 1.25), ("i3", "Brazil", -0.5)]
    text = shown(recommendations_table("u42", history, recommended, ", 31, nurse"))
    assert "user u42, 31, nurse" in text
    lines = [line for line in text.splitlines() if "Alien" in line or "Brazil" in line]
    for line, words in zip(
        lines,
        (
            ["Heat", "1", "Alien", "i7", "1.500"],
            ["Ronin", "2", "Aliens", "i2", "1.250"],
            ["3", "Brazil", "i3", "-0.500"],
        ),
        strict=True,
    ):
        assert line.replace("│", " ").split() == words


def test_longer_history_is_counted():
    history = [(f"i{i}", f"Film {i}") for i in range(5)]
    text = shown(recommendations_table("1", history, [("i9", "Alien", 1.0)]))
    assert "… and 4 more" in text
    assert "Film 1" not in text


@pytest.mark.parametrize("title", ["[safe]", "[/bold] A", "[red]Red[/red]", "a[link=x]b"])
def test_brackets_in_titles_and_ids_are_shown_and_are_no_markup(record, title):
    text = shown(recommendations_table(title, [(title, title)], [(title, title, 1.0)], title))
    assert text.count(title) == 5
    assert title in shown(metrics_table(record, title))
    assert title in shown(groups_table(record, title))


@pytest.mark.parametrize("table", [metrics_table, groups_table])
def test_a_terminal_of_80_columns_loses_no_number(record, table):
    assert "0.1100" in shown(table(record, "t"), 80)
    assert "…" not in shown(table(record, "t"), 80)


def test_a_table_says_who_augmented_and_that_it_was_no_llm(record):
    assert "no LLM augmentation (w3 = 0)" in shown(metrics_table(record, "x"))
    record["augmentation"] = {
        "path": "augmentation/run",
        "provider": "heuristic (no LLM), placebo shuffled-profiles",
        "model": "counts",
        "llm_edge_rate": 0.1,
    }
    text = " ".join(shown(metrics_table(record, "x")).split())
    who = "heuristic (no LLM), placebo shuffled-profiles, model counts, with w3 = 0.1"
    assert f"augmentation by {who}" in text
