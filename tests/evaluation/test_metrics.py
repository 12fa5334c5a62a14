from __future__ import annotations

import heapq
import json
import math
import subprocess
import sys

import ir_measures
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ir_measures import AP, RR, P, R, Success, nDCG

from llmrec_pl.evaluation.metrics import (
    METRICS,
    PROFILES,
    ExposureMetrics,
    RankingMetrics,
    metric_names,
    ndcg,
    per_user_metrics,
)
from llmrec_pl.evaluation.ranking import NO_ITEM, top_k

STANDARD = PROFILES["standard"]
IR_MEASURES = {"recall": R, "ndcg": nDCG, "precision": P, "hit": Success, "mrr": RR, "map": AP}


class Case:
    """Users with scores, seen and held-out items; the lists come from `top_k`."""

    def __init__(self, scores, relevant, seen, k_max):
        self.scores, self.relevant, self.seen = scores, relevant, seen
        rows, columns = np.nonzero(seen)
        factors = torch.eye(len(scores)), torch.from_numpy(scores.T.astype(np.float32))
        self.ids = top_k(*factors, k_max, (rows, columns))[0]
        listed = torch.from_numpy(relevant).gather(1, self.ids.clamp(min=0))
        self.hits = listed & (self.ids >= 0)
        self.n_relevant = torch.from_numpy(relevant.sum(1))

    def ranking(self, user):
        """The same list by sorting, ties broken by id."""
        items = [i for i in range(self.scores.shape[1]) if not self.seen[user, i]]
        return sorted(items, key=lambda i: (-self.scores[user, i], i))


def random_case(seed, n_users=40, n_items=60, k_max=50):
    rng = np.random.default_rng(seed)
    relevant = rng.random((n_users, n_items)) < rng.random((n_users, 1)) * 0.5
    relevant[np.arange(n_users), rng.integers(n_items, size=n_users)] = True
    seen = rng.random((n_users, n_items)) < rng.random((n_users, 1)) * 0.9
    # 7 distinct scores: most lists have ties, also at their border.
    return Case(rng.integers(-3, 4, (n_users, n_items)).astype(float), relevant, seen, k_max)


def adversarial_cases():
    n_items = 12
    scores = np.tile(np.arange(n_items, 0, -1.0), (4, 1))
    nothing, everything = np.zeros((4, n_items), bool), np.ones((4, n_items), bool)
    one = nothing.copy()
    one[[0, 1, 2, 3], [0, 5, 11, 3]] = True
    few_left = everything.copy()
    few_left[:, [2, 7]] = False
    yield "one relevant item", Case(scores, one, nothing, n_items)
    yield "all relevant", Case(scores, everything, nothing, n_items)
    yield "all equal scores", Case(scores * 0, one, nothing, n_items)
    yield "two items rankable", Case(scores, everything, few_left, n_items)
    yield "held-out item not rankable", Case(scores, one, one, n_items)
    yield "nothing rankable", Case(scores, one, everything, n_items)
    yield "everything in the lowest ranks", Case(-scores, one, nothing, n_items)


CASES = [pytest.param(random_case(seed), (1, 5, 20, 50), id=f"random {seed}") for seed in range(4)]
CASES += [pytest.param(case, (1, 2, 5, 12), id=name) for name, case in adversarial_cases()]


@pytest.mark.parametrize(("case", "ks"), CASES)
def test_standard_profile_equals_ir_measures(case, ks):
    qrels = [
        ir_measures.Qrel(str(u), str(i), int(case.relevant[u, i]))
        for u, i in np.ndindex(*case.relevant.shape)
    ]
    run = [
        ir_measures.ScoredDoc(str(u), str(item), float(-rank))
        for u in range(len(case.scores))
        for rank, item in enumerate(case.ranking(u))
    ]
    wanted = {f"{name}@{k}": IR_MEASURES[name] @ k for name in METRICS for k in ks}
    # A query without any scored document is left out by trec_eval; its value is 0.
    expected = {name: np.zeros(len(case.scores)) for name in wanted}
    names = {str(measure): name for name, measure in wanted.items()}
    for value in ir_measures.iter_calc(list(wanted.values()), qrels, run):
        expected[names[str(value.measure)]][int(value.query_id)] = value.value
    found = per_user_metrics(case.hits, case.n_relevant, ks, STANDARD)
    assert list(found) == metric_names(ks)
    for name, values in expected.items():
        np.testing.assert_allclose(found[name].numpy(), values, atol=1e-9, err_msg=name)


def naive_metrics(ranking, relevant, k):
    """One user's metrics by their definitions, ranks counted from 1."""
    cut = ranking[:k]
    hit_ranks = [rank for rank, item in enumerate(cut, 1) if item in relevant]
    dcg = math.fsum(1 / math.log2(rank + 1) for rank in hit_ranks)
    ideal = math.fsum(1 / math.log2(r + 1) for r in range(1, min(len(relevant), k) + 1))
    precisions = [n / rank for n, rank in enumerate(hit_ranks, 1)]
    return {
        "recall": len(hit_ranks) / len(relevant),
        "ndcg": dcg / ideal,
        "precision": len(hit_ranks) / k,
        "hit": float(bool(hit_ranks)),
        "mrr": 1 / hit_ranks[0] if hit_ranks else 0.0,
        "map": math.fsum(precisions) / len(relevant),
    }


@st.composite
def small_cases(draw):
    n, n_items = draw(st.integers(1, 4)), draw(st.integers(1, 9))

    def table(elements):
        row = st.lists(elements, min_size=n_items, max_size=n_items)
        return np.array(draw(st.lists(row, min_size=n, max_size=n)))

    relevant = table(st.booleans())
    relevant[:, draw(st.integers(0, n_items - 1))] = True
    scores = table(st.integers(-2, 2)).astype(float)
    return Case(scores, relevant, table(st.booleans()), n_items)


@given(small_cases())
@settings(max_examples=150, deadline=None)
def test_standard_profile_equals_a_loop_over_users(case):
    ks = range(1, case.scores.shape[1] + 1)
    found = per_user_metrics(case.hits, case.n_relevant, ks, STANDARD)
    for user in range(len(case.scores)):
        relevant = set(np.flatnonzero(case.relevant[user]).tolist())
        for k in ks:
            for name, value in naive_metrics(case.ranking(user), relevant, k).items():
                assert found[f"{name}@{k}"][user].item() == pytest.approx(value, abs=1e-12)


@given(small_cases())
@settings(max_examples=60, deadline=None)
def test_all_metrics_lie_in_the_unit_interval_and_a_perfect_list_has_ndcg_one(case):
    ks = range(1, case.scores.shape[1] + 1)
    for profile in PROFILES.values():
        values = per_user_metrics(case.hits, case.n_relevant, ks, profile)
        for name, value in values.items():
            assert ((value >= 0) & (value <= 1)).all(), name
    ranks = torch.arange(case.relevant.shape[1])
    perfect = ranks < case.n_relevant.unsqueeze(1)
    for k in ks:
        assert (ndcg(perfect, case.n_relevant, k) == 1).all()


class ReleasedCode:
    """What the released LLMRec code computes, from its lists of 0 and 1.

    The list has Kmax entries for every K, and the ideal DCG sorts that list instead of the
    held-out items.
    """

    def __init__(self, scores, rankable, relevant, ks):
        best = heapq.nlargest(max(ks), rankable, key=lambda i: (scores[i], -i))
        self.r = [1 if item in relevant else 0 for item in best]
        self.n_relevant, self.ks = len(relevant), ks

    @staticmethod
    def dcg(r, k):
        return sum(x / math.log2(place + 2) for place, x in enumerate(r[:k]))

    def metrics(self):
        for k in self.ks:
            ideal = self.dcg(sorted(self.r, reverse=True), k)
            yield f"ndcg@{k}", self.dcg(self.r, k) / ideal if ideal else 0.0
            yield f"recall@{k}", sum(self.r[:k]) / self.n_relevant
            yield f"precision@{k}", sum(self.r[:k]) / k
            yield f"hit@{k}", 1.0 if sum(self.r[:k]) > 0 else 0.0


@pytest.mark.parametrize("seed", range(3))
def test_llmrec_profile_equals_the_released_convention(seed):
    ks, case = (5, 10, 20), random_case(seed, k_max=20)
    assert not PROFILES["llmrec"].mask_val_at_test
    found = per_user_metrics(case.hits, case.n_relevant, ks, PROFILES["llmrec"])
    standard = per_user_metrics(case.hits, case.n_relevant, ks, STANDARD)
    assert (found["ndcg@5"] - standard["ndcg@5"]).abs().max() > 0.1, "the case must tell them apart"
    for user in range(len(case.scores)):
        relevant = set(np.flatnonzero(case.relevant[user]).tolist())
        code = ReleasedCode(case.scores[user], case.ranking(user), relevant, ks)
        for name, value in code.metrics():
            assert found[name][user].item() == pytest.approx(value, abs=1e-12), name


def test_llmrec_ideal_takes_the_hits_below_k_of_the_longest_list():
    hits = torch.tensor([[True, False, False, True]])
    value = ndcg(hits, torch.tensor([9]), 2, "retrieved").item()
    assert value == pytest.approx(1 / (1 + 1 / math.log2(3)))


@pytest.mark.parametrize("seed", range(3))
def test_recbole_profile_divides_precision_sums_by_at_most_k(seed):
    ks, case = (1, 5, 20), random_case(seed, k_max=20)
    found = per_user_metrics(case.hits, case.n_relevant, ks, PROFILES["recbole"])
    standard = per_user_metrics(case.hits, case.n_relevant, ks, STANDARD)
    assert (case.n_relevant > 5).any()
    assert (case.n_relevant < 5).any()
    for user in range(len(case.scores)):
        relevant = set(np.flatnonzero(case.relevant[user]).tolist())
        for k in ks:
            cut = case.ranking(user)[:k]
            precisions = [
                len(relevant.intersection(cut[: rank + 1])) / (rank + 1)
                for rank, item in enumerate(cut)
                if item in relevant
            ]
            value = sum(precisions) / min(len(relevant), k)
            assert found[f"map@{k}"][user].item() == pytest.approx(value, abs=1e-12)
    for name in set(found) - {f"map@{k}" for k in ks}:
        assert torch.equal(found[name], standard[name])


def test_accumulated_batches_equal_one_batch():
    ks, case = (5, 20), random_case(7, k_max=20)
    whole, parts = RankingMetrics(ks, STANDARD), RankingMetrics(ks, STANDARD)
    whole.update(case.hits, case.n_relevant)
    for start, stop in ((0, 1), (1, 1), (1, 30), (30, 40)):
        parts.update(case.hits[start:stop], case.n_relevant[start:stop])
    assert parts.compute() == pytest.approx(whole.compute(), abs=1e-14)
    values = per_user_metrics(case.hits, case.n_relevant, ks, STANDARD)
    for name, value in values.items():
        assert whole.compute()[name] == pytest.approx(value.mean().item(), abs=1e-14)
    assert whole.compute()["users"] == 40
    assert whole.compute()["hits@5"] == int(case.hits[:, :5].sum())


def test_known_values_are_summed_as_they_are():
    case = random_case(4, k_max=20)
    known = per_user_metrics(case.hits, case.n_relevant, (5, 20), STANDARD)
    computed, given_values = (RankingMetrics((5, 20), STANDARD) for _ in range(2))
    computed.update(case.hits, case.n_relevant)
    given_values.update(case.hits, case.n_relevant, known)
    assert given_values.compute() == computed.compute()
    doubled = {name: 2 * value for name, value in known.items()}
    given_values.update(case.hits, case.n_relevant, doubled)
    half_more = {name: 1.5 * computed.compute()[name] for name in known}
    found = given_values.compute()
    assert {name: found[name] for name in known} == pytest.approx(half_more)
    assert found["users"] == 2 * len(case.hits)


def test_users_without_held_out_items_are_not_counted():
    metrics = RankingMetrics((1,), STANDARD)
    metrics.update(torch.tensor([[True], [False], [False]]), torch.tensor([2, 0, 1]))
    assert metrics.compute() == {
        "recall@1": 0.25,
        "ndcg@1": 0.5,
        "precision@1": 0.5,
        "hit@1": 0.5,
        "mrr@1": 0.5,
        "map@1": 0.25,
        "users": 2,
        "hits@1": 1,
    }


def test_without_users_means_are_nan_and_counts_zero():
    metrics = RankingMetrics((3,), STANDARD)
    metrics.update(torch.zeros(2, 3, dtype=torch.bool), torch.tensor([0, 0]))
    result = metrics.compute()
    assert math.isnan(result["recall@3"])
    assert (result["users"], result["hits@3"]) == (0, 0)


def test_reset_forgets_everything():
    metrics = RankingMetrics((1,), STANDARD)
    metrics.update(torch.tensor([[True]]), torch.tensor([1]))
    assert metrics.compute()["users"] == 1
    metrics.reset()
    metrics.update(torch.tensor([[False], [False]]), torch.tensor([1, 1]))
    assert metrics.compute()["users"] == 2
    assert metrics.compute()["recall@1"] == 0.0


def test_many_batches_lose_no_digits():
    metrics = RankingMetrics((3,), STANDARD).half()
    hits = torch.tensor([[True, False, False]]).repeat(999, 1)
    for _ in range(50):
        metrics.update(hits, torch.ones(999, dtype=torch.int64))
    # A sum in float32 is off by 1e-8 at least.
    assert metrics.compute()["precision@3"] == pytest.approx(1 / 3, rel=1e-12)


def naive_exposure(lists, popularity, k):
    shown = [int(i) for row in lists for i in row[:k] if i >= 0]
    counts = [shown.count(i) for i in range(len(popularity))]
    n, total = len(counts), len(shown)
    differences = sum(abs(a - b) for a in counts for b in counts)
    return {
        f"coverage@{k}": len(set(shown)) / n,
        f"popularity@{k}": sum(popularity[i] for i in shown) / total if total else 0.0,
        # Half the relative mean absolute difference.
        f"gini@{k}": differences / (2 * n * total) if total else 0.0,
    }


@given(small_cases())
@settings(max_examples=80, deadline=None)
def test_exposure_equals_counting(case):
    n_items = case.scores.shape[1]
    popularity = torch.arange(n_items) ** 2
    metrics = ExposureMetrics((1, n_items), popularity)
    for part in case.ids.split(2):
        metrics.update(part)
    result = metrics.compute()
    for k in (1, n_items):
        expected = naive_exposure(case.ids.tolist(), popularity.tolist(), k)
        assert {name: result[name] for name in expected} == pytest.approx(expected, abs=1e-12)


def test_gini_is_zero_for_equal_exposure_and_near_one_for_a_single_item():
    n_items = 1000
    equal = ExposureMetrics((2,), torch.ones(n_items))
    equal.update(torch.arange(n_items).reshape(-1, 2))
    assert equal.compute()["gini@2"] == 0.0
    assert equal.compute()["coverage@2"] == 1.0
    single = ExposureMetrics((1,), torch.ones(n_items))
    single.update(torch.full((50, 1), 3))
    assert single.compute()["gini@1"] == pytest.approx(1 - 1 / n_items)
    assert single.compute()["coverage@1"] == 1 / n_items


def test_exposure_of_empty_lists_is_zero():
    metrics = ExposureMetrics((1,), torch.ones(3))
    metrics.update(torch.full((2, 1), NO_ITEM))
    assert metrics.compute() == {"coverage@1": 0.0, "popularity@1": 0.0, "gini@1": 0.0}


TWO_PROCESSES = """
import json, sys
import torch
from llmrec_pl.evaluation.callback import _PerUser
from llmrec_pl.evaluation.metrics import PROFILES, ExposureMetrics, RankingMetrics

rank, folder = int(sys.argv[1]), sys.argv[2]
torch.distributed.init_process_group(
    "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
)
case = torch.load(f"{folder}/case.pt", weights_only=True)
results = []
for first in (17, 1, 0):
    ranking = RankingMetrics((5, 20), PROFILES["standard"])
    exposure = ExposureMetrics((5, 20), case["popularity"])
    rows = _PerUser(2)
    rows.pad()
    mine = slice(first, None) if rank == 0 else slice(0, first)
    users = torch.arange(len(case["hits"]))[mine]
    # Batches of other sizes and numbers on each process.
    for batch in users.split(4 + 3 * rank):
        if len(batch):
            ranking.update(case["hits"][batch], case["n_relevant"][batch])
            exposure.update(case["ids"][batch])
            rows.update(torch.stack([batch, case["n_relevant"][batch]], dim=1).double())
    results.append([ranking.compute(), exposure.compute(), rows.compute().tolist()])
open(f"{folder}/{rank}.json", "w").write(json.dumps(results))
torch.distributed.destroy_process_group()
"""


@pytest.mark.ddp
def test_two_processes_give_the_result_of_one(tmp_path):
    case, popularity = random_case(11, k_max=20), torch.arange(60)
    fields = {"hits": case.hits, "ids": case.ids, "n_relevant": case.n_relevant}
    torch.save({**fields, "popularity": popularity}, tmp_path / "case.pt")
    processes = [
        subprocess.Popen([sys.executable, "-c", TWO_PROCESSES, str(rank), str(tmp_path)])
        for rank in range(2)
    ]
    try:
        assert [p.wait(120) for p in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    ranking = RankingMetrics((5, 20), STANDARD)
    ranking.update(case.hits, case.n_relevant)
    exposure = ExposureMetrics((5, 20), popularity)
    exposure.update(case.ids)
    rows = [[float(u), float(n)] for u, n in enumerate(case.n_relevant.tolist())]
    for rank in range(2):
        for found in json.loads((tmp_path / f"{rank}.json").read_text()):
            assert found[0] == pytest.approx(ranking.compute(), abs=1e-14)
            assert found[1] == exposure.compute()
            assert found[2] == rows
