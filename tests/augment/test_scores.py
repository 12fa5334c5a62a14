import itertools
import json
import math
from collections import Counter

import pytest
from answered import simulated
from hypothesis import given, settings
from hypothesis import strategies as st

from augment.scores import Judged, Share, score_ages, score_names, tail_above, tail_below
from augment.truth import age_range, column_for, gender, load_truth, names_in
from llmrec_pl.data.dataset import InteractionDataset
from llmrec_pl.errors import DatasetError

# Matching --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer_text", "truth"),
    [
        ("USA", "UK, USA"),
        ("United States of America", "USA"),
        ("u.s.", "usa"),
        ("United Kingdom", "UK"),
        ("West Germany", "Germany|France"),
        ("Pedro Almodovar", "Pedro Almodóvar"),
        ("JEAN-PIERRE JEUNET", "Marc Caro, Jean Pierre Jeunet"),
        ("Roger Allers (co-director)", "Roger Allers, Rob Minkoff"),
        (["Drama", "Crime"], "crime; comedy"),
    ],
)
def test_names_agree_in_other_spellings(answer_text, truth):
    assert names_in(answer_text) & names_in(truth)


@pytest.mark.parametrize(
    ("answer_text", "truth"),
    [
        ("France", "Germany"),
        ("Joel Coen", "Ethan Coen"),
        (None, "N/A"),
        ("N/A", "N/A"),
        ("unknown", "Unknown"),
        ("", ""),
        ([], None),
    ],
)
def test_other_names_and_unknown_ones_do_not_agree(answer_text, truth):
    assert not names_in(answer_text) & names_in(truth)


@pytest.mark.parametrize(
    ("text", "years"),
    [
        ("24", (24, 24)),
        (24, (24, 24)),
        ("24.0", (24, 24)),
        ("25-34", (25, 34)),
        ("34-25", (25, 34)),
        ("25 to 34", (25, 34)),
        (None, None),
        ("young", None),
        ("0", None),
        ("999", None),
        ("inf", None),
    ],
)
def test_ages_are_numbers_or_bands(text, years):
    assert age_range(text) == years


def test_genders_of_the_data_and_of_the_answers_meet():
    assert gender("M") == gender("male") == gender("Male") == "male"
    assert gender("F") == gender("female")
    assert gender("retired") is gender(None) is gender("") is None


# Figures ---------------------------------------------------------------------------------------


@given(st.integers(0, 400), st.integers(1, 400))
def test_intervals_are_wilsons(k, n):
    k = min(k, n)
    z = 1.959963984540054
    middle = (k + z * z / 2) / (n + z * z)
    half = z / (n + z * z) * math.sqrt(k * (n - k) / n + z * z / 4)
    share = Share.of(k, n)
    assert share.share == k / n
    assert share.low == pytest.approx(max(0, middle - half), abs=1e-9)
    assert share.high == pytest.approx(min(1, middle + half), abs=1e-9)


def test_a_share_of_nothing_is_unknown():
    assert Share.of(0, 0) == Share(0, 0, None, None, None)


@settings(max_examples=60)
@given(st.lists(st.sampled_from([0.0, 0.1, 0.2, 0.5, 0.9, 1.0]), min_size=1, max_size=9), st.data())
def test_tails_equal_the_sum_over_all_outcomes(chances, data):
    hits = data.draw(st.integers(0, len(chances)))
    above = below = 0.0
    for outcome in itertools.product((0, 1), repeat=len(chances)):
        weight = math.prod(p if o else 1 - p for o, p in zip(outcome, chances, strict=True))
        above += weight * (sum(outcome) >= hits)
        below += weight * (sum(outcome) <= hits)
    assert tail_above(hits, chances) == pytest.approx(above, abs=1e-12)
    assert tail_below(hits, chances) == pytest.approx(below, abs=1e-12)


def test_many_users_are_summed_like_a_binomial_and_still_more_by_the_normal_curve():
    from scipy.stats import binom

    assert tail_above(230, [0.1] * 2000) == pytest.approx(binom.sf(229, 2000, 0.1), rel=1e-9)
    exact = binom.sf(4100 - 1, 40_000, 0.1)
    assert tail_above(4100, [0.1] * 40_000) == pytest.approx(exact, rel=0.02)


def judged(*rows):
    return [
        Judged(str(i), names_in(a), names_in(t), a or "", t or "") for i, (a, t) in enumerate(rows)
    ]


def test_names_are_scored_by_hand():
    rows = judged(
        ("USA", "USA"),  # right
        ("USA", "USA, UK"),  # right
        ("France", "USA"),  # wrong, majority right
        (None, "France"),  # not answered
        ("France", "France"),  # right, majority wrong
        ("USA", None),  # nothing to hold it against
        ("Spain", "USA"),  # wrong again
    )
    found = score_names(rows)
    assert found["truth_known"] == 6
    assert (found["answered"]["k"], found["answered"]["n"]) == (5, 6)
    assert (found["of_all"]["k"], found["of_all"]["n"]) == (3, 6)
    assert (found["of_answered"]["k"], found["of_answered"]["n"]) == (3, 5)
    assert (found["majority"]["k"], found["majority_answer"]) == (4, "usa")
    # one where only the answer is right, two where only the majority is: two-sided exact
    assert found["p_against_majority"] == pytest.approx(1.0)
    assert [(c["truth"], c["answer"], c["n"]) for c in found["confusions"]] == [
        ("USA", "France", 1),
        ("USA", "Spain", 1),
    ]
    assert found["confusions"][0]["titles"] == ["2"]


def test_nothing_to_score_gives_no_figures():
    found = score_names([])
    assert found["truth_known"] == 0
    assert found["of_all"]["share"] is found["majority_answer"] is None
    ages = score_ages([])
    assert ages["within_5"]["share"] is ages["mean_error_years"] is None


def test_ages_are_scored_by_hand():
    rows = [
        ((24, 24), (24, 24)),  # exact
        ((30, 30), (24, 24)),  # 6 off
        ((25, 34), (30, 30)),  # band 29.5, holds it
        ((18, 24), (40, 40)),  # band 21, 19 off
        (None, (24, 24)),  # not answered
        ((50, 50), None),  # no truth
    ]
    found = score_ages(rows)
    assert found["truth_known"] == 5
    assert found["answered"]["k"] == 4
    assert found["within_5"]["k"] == 2
    assert found["within_10"]["k"] == 3
    assert found["mean_error_years"] == pytest.approx((0 + 6 + 0.5 + 19) / 4)
    assert (found["bands"]["k"], found["bands"]["n"]) == (1, 2)
    assert found["within_5_constant"]["k"] == 4, "25 to 29 are within 5 of 24, 24, 24 and 30"
    assert found["within_5_constant_age"] == 25
    assert found["median_age_error_years"] == pytest.approx((0 + 0 + 0 + 6 + 16) / 5)
    assert [24.0, 30.0, 1] in found["points"]


@settings(max_examples=30)
@given(st.lists(st.integers(10, 90), min_size=1, max_size=30), st.sampled_from([5, 10]))
def test_no_constant_age_beats_the_best(truths, years):
    found = score_ages([(None, (t, t)) for t in truths])
    counts = Counter({a: sum(abs(a - t) <= years for t in truths) for a in range(1, 111)})
    assert found[f"within_{years}_constant"]["k"] == max(counts.values())


# Truth -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return InteractionDataset.load(simulated(tmp_path_factory.mktemp("data") / "films"))


def test_truth_comes_from_the_data_set_and_files_go_over_it(tmp_path, data):
    own = load_truth(data, "items")
    assert {"title", "director", "country"} <= set(own)
    assert "item" not in own
    rows = [{"movie": name, "Country": f"C{name}", "Shot In": None} for name in data.item_ids[:9]]
    file = tmp_path / "facts.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in [*rows, {"movie": "none of ours"}]))
    truth = load_truth(data, "items", file)
    assert truth["country"] == [f"C{name}" for name in data.item_ids[:9]] + [None] * (
        data.n_items - 9
    )
    assert truth["director"] == own["director"]
    assert column_for("country", truth) == "country"
    assert column_for("shot_in", truth) is None, "a column without a value is no truth"


def test_the_user_file_of_ml_100k_is_truth_as_it_is(tmp_path, data):
    file = tmp_path / "u.user"
    file.write_text("".join(f"{name}|{30 + i}|F|writer|85711\n"
                            for i, name in enumerate(data.user_ids)))  # fmt: skip
    truth = load_truth(data, "users", file)
    assert truth["age"] == [str(30 + i) for i in range(data.n_users)]
    assert set(truth["gender"]) == {"F"}


def test_a_column_is_found_by_its_plural():
    assert column_for("genre", {"genres": ["Drama"]}) == "genres"
    assert column_for("genres", {"genre": ["Drama"]}) == "genre"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("item_id,country\n1,A\n1,B\n", "has id '1' twice"),
        ("item_id,country\nx,A\n", "is one of the items"),
    ],
)
def test_files_that_are_no_truth_are_refused(tmp_path, data, text, problem):
    file = tmp_path / "facts.csv"
    file.write_text(text)
    with pytest.raises(DatasetError, match=problem):
        load_truth(data, "items", file)
