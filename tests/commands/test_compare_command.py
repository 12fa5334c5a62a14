from __future__ import annotations

import csv
import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml
from rich.console import Console
from scipy import stats

import llmrec_pl.training
from llmrec_pl.cli import main
from llmrec_pl.commands.compare import load_groups
from llmrec_pl.data.prepare import Protocol, prepare_dataset
from llmrec_pl.data.sources.simulated import simulate
from llmrec_pl.evaluation.comparison import compare as compare_groups
from llmrec_pl.evaluation.comparison_report import comparison_tables, latex_escape
from llmrec_pl.evaluation.record import write_record

CONFIGS = Path(__file__).parents[2] / "configs"
N_USERS = 300
METRICS = ("recall@20", "ndcg@20", "hit@20")


def write_run(folder, model="MF", seed=1, shift=0.0, split="val", n_relevant=3, **changes):
    """A run as `fit` leaves it: users have their own level, models add to it."""
    settings = {"lr": 0.003, "users": np.arange(N_USERS), "ks": [10, 20], "profile": "standard"}
    settings |= {"candidates": "all"}
    settings |= {"data": {"name": "films", "fingerprint": "f" * 64}, "augmentation": None} | changes
    users = settings["users"]
    random = np.random.default_rng([seed, len(model), int(100 * shift)])
    level = np.random.default_rng(0).uniform(0.2, 0.5, size=N_USERS)[users]
    chance = np.clip(level + shift, 0, 1)[:, None]
    values = (random.uniform(size=(len(users), 3)) < chance).astype(float)
    relevant = np.full(len(users), n_relevant)
    record = {
        "stage": split,
        "model": model,
        "profile": settings["profile"],
        "ks": settings["ks"],
        "candidates": settings["candidates"],
        "metrics": dict(zip(METRICS, values.mean(axis=0).tolist(), strict=True)),
        "data": settings["data"],
        "features": ["text"],
        "augmentation": settings["augmentation"],
    }
    if split == "test":
        record["test_openings"] = settings.get("openings", 1)
    rows = np.column_stack([users, relevant, values])
    ids = np.asarray([f"u{i}" for i in range(N_USERS)])
    write_record(folder / "metrics", record, METRICS, rows, ids)
    config = {
        "seed_everything": seed,
        "trainer": {
            "max_epochs": 9,
            "default_root_dir": str(folder),
            "logger": {"class_path": "CSVLogger", "init_args": {"version": folder.name}},
        },
        "model": {"class_path": model, "init_args": {"lr": settings["lr"]}},
        "data": {"root": str(folder / "data"), "batch_size": 64},
        "ckpt_path": None,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def per_user(folder, metric="recall@20", split="val"):
    return pl.read_parquet(folder / f"metrics/{split}_per_user.parquet")[metric].to_numpy()


def compare(*arguments):
    main(["compare", *map(str, arguments)])


def refused(capsys, *arguments):
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        compare(*arguments)
    assert stop.value.code == 1
    return " ".join(capsys.readouterr().err.split())


def written(folder):
    """The lines of the CSV by model and metric, and the JSON."""
    with (folder / "comparison.csv").open(encoding="utf-8") as file:
        rows = {(row["model"], row["metric"]): row for row in csv.DictReader(file)}
    return rows, json.loads((folder / "comparison.json").read_text("utf-8"))


@pytest.fixture
def runs(tmp_path):
    """MF with seeds 1, 2, 3 and a better LightGCN with 1, 2."""
    root = tmp_path / "logs"
    for seed in (1, 2, 3):
        write_run(root / "mf" / f"version_{seed}", "MF", seed)
    for seed in (1, 2):
        write_run(root / "lightgcn" / f"version_{seed}", "LightGCN", seed, shift=0.15)
    return root


# Numbers.


def test_seeds_are_averaged_before_users_are_paired(runs, tmp_path):
    compare(runs, "--metric", "recall@20", "--out", tmp_path / "out")
    rows, content = written(tmp_path / "out")
    mf = [per_user(runs / f"mf/version_{s}") for s in (1, 2, 3)]
    gcn = [per_user(runs / f"lightgcn/version_{s}") for s in (1, 2)]
    d = sum(gcn) / 2 - sum(mf) / 3
    row = {k: float(v) for k, v in rows["LightGCN", "recall@20"].items() if re.match(r"-?\d", v)}
    assert row["seeds"] == 2
    assert row["users"] == N_USERS
    assert row["mean"] == pytest.approx(np.mean(gcn), rel=1e-12)
    assert row["deviation"] == pytest.approx(stats.tstd([g.mean() for g in gcn]), rel=1e-12)
    assert row["difference"] == pytest.approx(d.mean(), rel=1e-12)
    t = stats.ttest_1samp(d, 0)
    assert row["effect_d_z"] == pytest.approx(t.statistic / np.sqrt(N_USERS), rel=1e-9)
    assert (row["low"], row["high"]) == pytest.approx(t.confidence_interval(), abs=0.005)
    assert row["p"] == pytest.approx(max(t.pvalue, 1e-4), abs=1e-4)
    z = stats.norm.ppf([0.975, 0.8]).sum()
    assert row["detectable"] == pytest.approx(z * stats.sem(d), rel=1e-9)
    assert rows["MF", "recall@20"]["difference"] == ""
    assert rows["MF", "recall@20"]["note"] == "baseline"
    line = next(x for x in content["lines"] if x["model"] == "MF")
    assert line["seed_of_run"] == [1, 2, 3]
    assert line["mean_of_run"] == pytest.approx([m.mean() for m in mf])


def test_holm_runs_over_the_whole_table(runs, tmp_path):
    write_run(runs / "mf2", "VBPR", 1, shift=0.03)
    options = [x for m in METRICS for x in ("--metric", m)]
    compare(runs, *options, "--baseline", "MF", "--out", tmp_path / "out")
    rows, content = written(tmp_path / "out")
    tested = sorted(
        (float(r["p"]), float(r["p_holm"])) for r in rows.values() if r["note"] != "baseline"
    )
    assert len(tested) == content["comparisons"] == 6
    running = 0.0
    for rank, (p, p_holm) in enumerate(tested):
        running = max(running, min(1.0, (6 - rank) * p))
        assert p_holm == pytest.approx(running, rel=1e-12)


def test_the_order_of_users_in_the_file_means_nothing(runs, tmp_path):
    compare(runs, "--out", tmp_path / "one")
    path = runs / "mf/version_2/metrics/val_per_user.parquet"
    pl.read_parquet(path).sample(fraction=1, shuffle=True, seed=1).write_parquet(path)
    compare(runs, "--out", tmp_path / "two")
    one, two = (written(tmp_path / name)[0] for name in ("one", "two"))
    for key, row in one.items():
        for name, value in row.items():
            if re.match(r"-?\d", value):
                assert float(two[key][name]) == pytest.approx(float(value), rel=1e-9), name


def test_draws_and_seed_decide_the_figures(runs, tmp_path):
    for name, options in {"a": [], "b": [], "c": ["--seed", "5"]}.items():
        compare(runs, "--draws", "500", *options, "--out", tmp_path / name)
    a, b, c = ((tmp_path / name / "comparison.csv").read_text() for name in "abc")
    assert a == b != c


def test_mcnemar_stands_where_every_user_has_one_item(tmp_path):
    one = write_run(tmp_path / "a", "MF", 1, n_relevant=1)
    other = write_run(tmp_path / "b", "LightGCN", 1, shift=0.15, n_relevant=1)
    metrics = ("--metric", "recall@20", "--metric", "ndcg@20")
    compare(one, other, *metrics, "--baseline", "MF", "--out", tmp_path / "out")
    rows, _ = written(tmp_path / "out")
    x, y = per_user(one) > 0, per_user(other) > 0
    expected = stats.binomtest(int((y & ~x).sum()), int((x != y).sum())).pvalue
    row = rows["LightGCN", "recall@20"]
    assert float(row["mcnemar_p"]) == pytest.approx(expected, rel=1e-9)
    assert "McNemar" in row["note"]
    assert rows["LightGCN", "ndcg@20"]["mcnemar_p"] == ""


def test_mcnemar_joins_seeds_by_majority(tmp_path):
    groups = {"MF": 0.0, "LightGCN": 0.15}
    folders = {
        model: [write_run(tmp_path / f"{model}{s}", model, s, d, n_relevant=1) for s in (1, 2, 3)]
        for model, d in groups.items()
    }
    compare(*folders["MF"], *folders["LightGCN"], "--baseline", "MF", "--out", tmp_path / "out")
    row = written(tmp_path / "out")[0]["LightGCN", "recall@20"]
    x, y = (sum(per_user(f) for f in folders[m]) >= 2 for m in groups)
    expected = stats.binomtest(int((y & ~x).sum()), int((x != y).sum())).pvalue
    assert float(row["mcnemar_p"]) == pytest.approx(expected, rel=1e-9)
    assert "majority of seeds" in row["note"]


def test_cold_items_are_compared_where_runs_kept_them(runs, tmp_path, capsys):
    folders = [write_run(runs / f"{m}/version_1", m, 1, 0.2, candidates="cold") for m in ("a", "b")]
    compare(*folders, "--candidates", "cold", "--out", tmp_path / "out")
    rows, content = written(tmp_path / "out")
    assert content["split"] == "val_cold"
    for model, folder in zip("ab", folders, strict=True):
        kept = pl.read_parquet(folder / "metrics/val_cold_per_user.parquet")["recall@20"]
        assert float(rows[model, "recall@20"]["mean"]) == pytest.approx(kept.mean(), rel=1e-12)
    message = refused(capsys, runs / "mf", "--candidates", "cold")
    assert "keeps no per-user metrics of 'val_cold'" in message
    assert "best.ckpt --evaluation.candidates cold`" in message


# What is shown.


def test_the_screen_shows_each_figure_and_the_caption_says_how(runs, tmp_path, capsys):
    compare(runs, "--out", tmp_path / "out")
    shown = capsys.readouterr().out
    rows, _ = written(tmp_path / "out")
    row = rows["LightGCN", "ndcg@20"]
    for name in ("mean", "deviation", "low", "high", "p", "p_holm", "detectable"):
        assert f"{float(row[name]):.4f}" in shown, name
    caption = " ".join(shown.split())
    assert "val split of films, 300 users" in caption
    assert "baseline MF (the best but one by recall@20 on validation)" in caption
    assert "the numbers of seeds differ: LightGCN 2, MF 3" in caption
    text = (tmp_path / "out/comparison.txt").read_text()
    assert f"{float(row['mean']):.4f}" in text
    assert "\x1b" not in text


def test_a_terminal_of_80_columns_loses_no_figure(runs):
    comparison = compare_groups(load_groups([str(runs)], None)[0], ["recall@20"], draws=100)
    console = Console(file=io.StringIO(), width=80)
    console.print(*comparison_tables(comparison))
    shown = console.file.getvalue()
    assert "…" not in shown
    versus = next(line.versus for line in comparison.lines if line.versus)
    for figure in (*versus.interval, versus.difference, versus.p_holm, versus.detectable):
        assert f"{figure:.4f}" in shown


def test_little_difference_is_called_under_powered(tmp_path, capsys):
    write_run(tmp_path / "a", "MF", 1)
    write_run(tmp_path / "b", "LightGCN", 1, shift=0.3)
    write_run(tmp_path / "c", "VBPR", 1, shift=0.01)
    compare(tmp_path, "--metric", "recall@20", "--baseline", "MF", "--out", tmp_path / "out")
    rows, _ = written(tmp_path / "out")
    assert "under-powered" in rows["VBPR", "recall@20"]["note"]
    assert rows["LightGCN", "recall@20"]["note"] == ""
    assert "under-powered" in capsys.readouterr().out
    compare(tmp_path, "--baseline", "LightGCN", "--out", tmp_path / "out")
    assert written(tmp_path / "out")[0]["MF", "recall@20"]["note"] == ""


def test_a_run_against_its_copy_differs_in_nothing(runs, tmp_path):
    copy = shutil.copytree(runs / "mf/version_1", tmp_path / "copy")
    compare(f"one={runs / 'mf/version_1'}", f"two={copy}", "--out", tmp_path / "out")
    rows, _ = written(tmp_path / "out")
    tested = next(r for r in rows.values() if r["note"] != "baseline")
    assert [float(tested[k]) for k in ("difference", "low", "high", "effect_d_z")] == [0] * 4
    assert float(tested["p"]) == float(tested["p_holm"]) == 1


def test_too_few_draws_are_said(runs, capsys):
    compare(runs, "--draws", "30")
    assert "30 draws are too few for 2 comparisons" in capsys.readouterr().out


# Baseline and split.


def test_the_baseline_is_chosen_on_validation_not_on_test(tmp_path):
    """BB is second on validation and last on test, which must not decide."""
    levels = {"A": (0.4, 0.15), "BB": (0.2, 0.0), "CCC": (0.0, 0.3)}
    for model, (val, test) in levels.items():
        write_run(tmp_path / model, model, 1, val)
        write_run(tmp_path / model, model, 1, test, split="test")
    compare(tmp_path, "--out", tmp_path / "out")
    content = written(tmp_path / "out")[1]
    assert content["split"] == "test"
    assert content["baseline"] == "BB"
    (tmp_path / "A/metrics/val.json").unlink()
    compare(tmp_path, "--out", tmp_path / "out")
    content = written(tmp_path / "out")[1]
    assert (content["baseline"], content["baseline_choice"][-4:]) == ("A", "test")
    compare(tmp_path, "--baseline", "CCC", "--split", "test", "--out", tmp_path / "out")
    assert written(tmp_path / "out")[1]["baseline"] == "CCC"


def test_the_split_is_test_only_where_all_runs_kept_it(runs, tmp_path, capsys):
    write_run(runs / "mf/version_1", "MF", 1, split="test", openings=3)
    compare(runs, "--out", tmp_path / "out")
    assert written(tmp_path / "out")[1]["split"] == "val"
    message = refused(capsys, *(runs / "mf").iterdir(), "--split", "test")
    assert "keeps no per-user metrics of 'test'" in message
    for name in ("config.yaml", "checkpoints/best.ckpt"):
        assert f"python -m llmrec_pl test --config {runs}/mf/version_" in message
        assert name in message
    write_run(runs / "lightgcn/version_1", "LightGCN", 1, split="test")
    compare(runs, "--split", "test")
    shown = " ".join(capsys.readouterr().out.split())
    assert "test split of films" in shown
    assert "left out, without metrics of test:" in shown
    assert "version_1 (3 times)" in shown


# Groups.


def test_settings_tell_groups_of_one_model_apart(tmp_path, capsys):
    augmentation = {"content_id": "abc", "llm_parts": ["edges"], "llm_edge_rate": 0.1}
    write_run(tmp_path / "a", "MF", 1)
    write_run(tmp_path / "b", "MF", 2)
    write_run(tmp_path / "c", "MF", 1, shift=0.1, lr=0.01)
    write_run(tmp_path / "d", "LightGCN", 1)
    write_run(tmp_path / "e", "LightGCN", 1, shift=0.1, augmentation=augmentation)
    compare(tmp_path, "--out", tmp_path / "out")
    groups = written(tmp_path / "out")[1]["runs"]
    assert {k: [Path(p).name for p in v] for k, v in groups.items()} == {
        "MF (lr 0.003)": ["a", "b"],
        "MF (lr 0.01)": ["c"],
        "LightGCN (augmentation none, llm_parts none, w3 0)": ["d"],
        "LightGCN (augmentation abc, llm_parts edges, w3 0.1)": ["e"],
    }


def test_runs_of_a_sweep_bear_the_names_of_its_entries(tmp_path, capsys):
    for name, changes in (("MF", {}), ("MF, slow", {"lr": 0.001})):
        for seed in (1, 2):
            run = write_run(tmp_path / name / str(seed), seed=seed, **changes)
            (run / "sweep.json").write_text(json.dumps({"name": name, "seed": seed}))
    groups, _ = load_groups([str(tmp_path)], None)
    assert {group.label for group in groups} == {"MF", "MF, slow"}
    other = write_run(tmp_path / "alone", lr=0.1)
    groups, _ = load_groups([str(tmp_path)], None)
    assert {g.label for g in groups} == {"MF (lr 0.003)", "MF, slow", "MF (lr 0.1)"}
    assert other


def test_own_groups_may_mix_settings_and_say_so(tmp_path, capsys):
    a, b = write_run(tmp_path / "a"), write_run(tmp_path / "b", seed=2, lr=0.01)
    c = write_run(tmp_path / "c", "LightGCN", 1)
    compare(f"mine={a},{b}", c, "--out", tmp_path / "out")
    assert set(written(tmp_path / "out")[1]["runs"]) == {"mine", "LightGCN"}
    assert "the runs of 'mine' differ in more than the seed" in capsys.readouterr().out


def test_a_run_given_twice_counts_once(runs, tmp_path):
    compare(runs, runs / "mf/version_1", "--out", tmp_path / "out")
    assert len(written(tmp_path / "out")[1]["runs"]["MF"]) == 3


def test_runs_without_a_config_are_joined_by_their_record(runs, tmp_path):
    for path in runs.rglob("config.yaml"):
        path.unlink()
    compare(runs, "--out", tmp_path / "out")
    content = written(tmp_path / "out")[1]
    assert [len(v) for v in content["runs"].values()] == [2, 3]
    assert content["lines"][0]["seed_of_run"] == [None, None]


def test_unfinished_runs_below_a_folder_are_named(runs, capsys):
    shutil.rmtree(runs / "mf/version_3/metrics")
    compare(runs)
    shown = " ".join(capsys.readouterr().out.split())
    assert "left out, without metrics of val:" in shown
    assert "mf/version_3" in shown
    assert "python -m llmrec_pl validate --config" in refused(capsys, runs / "mf/version_3", runs)


# Errors.


def test_runs_that_cannot_be_paired_are_refused(runs, tmp_path, capsys):
    other = {"name": "films", "fingerprint": "0" * 64}
    cases = {
        "differ in data: 'films (ffffffffffff)' and 'films (000000000000)'": {"data": other},
        "differ in the metric profile: 'standard' and 'recbole'": {"profile": "recbole"},
        "differ in the list lengths: [10, 20] and [20]": {"ks": [20]},
        "(300 and 250 users, 250 shared)": {"users": np.arange(250)},
        "(300 and 300 users, 300 shared)": {"n_relevant": 2},
    }
    for number, (part, changes) in enumerate(cases.items()):
        odd = write_run(tmp_path / f"odd{number}", "VBPR", 1, **changes)
        message = refused(capsys, runs, odd)
        assert part in message
        assert str(odd) in message
        assert str(runs / "lightgcn/version_1") in message


def test_groups_that_overlap_are_refused(runs, tmp_path, capsys):
    mf, again = runs / "mf/version_1", write_run(tmp_path / "again", "MF", 1)
    assert "seed 1 of 'MF' stands twice" in refused(capsys, runs, again)
    assert "stands in 'MF' and in 'x'" in refused(capsys, runs, f"x={mf}")
    assert "two groups are called 'MF'" in refused(capsys, runs, f"MF={again}")


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["mf"], "there is only 'MF' to compare; give runs of at least two"),
        (["nothing"], "nothing' does not exist; give folders that `fit` made"),
        (["mf/version_1/metrics"], "holds no run"),
        (["a="], "'a=' is no group; write `NAME=RUN`"),
        (["=b"], "is no group"),
        ([".", "--metric", "recall@7"], "`--metric` 'recall@7' was not kept; the runs have"),
        ([".", "--baseline", "NGCF"], "'NGCF' is none of the groups ['LightGCN', 'MF']"),
        ([".", "--draws", "0"], "`--draws` must be positive, got 0"),
        ([".", "--seed", "-1"], "`--seed` must not be negative, got -1"),
    ],
)
def test_what_cannot_be_compared_is_named(runs, capsys, monkeypatch, arguments, part):
    monkeypatch.chdir(runs)
    assert part in refused(capsys, *arguments)


def test_damaged_files_are_named(runs, capsys):
    folder = runs / "mf/version_1/metrics"
    table, record = folder / "val_per_user.parquet", folder / "val.json"
    kept, said = table.read_bytes(), record.read_text()
    table.write_bytes(kept[:200])
    assert f"cannot read '{table}'" in refused(capsys, runs)
    shutil.copy(runs / "mf/version_2/metrics/val_per_user.parquet", table)
    assert "but the record beside it says" in refused(capsys, runs)
    table.write_bytes(kept)
    record.write_text("{")
    assert f"'{record}' is no record" in refused(capsys, runs)
    record.write_text('{"stage": "val"}')
    assert "lacks ['model', 'profile', 'ks', 'metrics', 'data']" in refused(capsys, runs)
    record.write_text(said)
    (folder.parent / "config.yaml").write_text("a: [")
    assert "is not valid YAML" in refused(capsys, runs)


# Files.


def test_latex_is_a_booktabs_table_of_equal_rows(runs, tmp_path):
    write_run(runs / "odd", "VBPR", 1, shift=0.02)
    name = "50%_of $x$ & {all} #1 \\ ~^"
    arguments = [runs / "mf", runs / "lightgcn", f"{name}={runs / 'odd'}", "--out", tmp_path]
    for marks, n_columns in (("stars", 4), ("p", 6)):
        compare(*arguments, "--latex", marks)
        text = (tmp_path / "comparison.tex").read_text()
        for rule in ("toprule", "midrule", "bottomrule"):
            assert text.count(f"\\{rule}") == 1
        assert text.count("\\begin{") == text.count("\\end{") == 2
        bare = re.sub(r"\\[{}&%$#_\\]", "", text.replace("\\\\\n", "\n"))
        assert bare.count("{") == bare.count("}")
        assert bare.count("$") % 2 == 0
        assert len(re.search(r"tabular}{(\w+)}", text)[1]) == n_columns
        body = bare.split("\\midrule")[1].split("\\bottomrule")[0].strip().splitlines()
        assert [row.count("&") for row in body] == [n_columns - 1] * 3
        assert text.count("\\textbf{") == 2
        assert latex_escape(name) in text
        assert ("$^{***}$" in bare.split("\\midrule")[1]) == (marks == "stars")


def test_special_characters_of_latex_are_printed_as_they_are():
    escaped = latex_escape(r"a_b & 5% $x$ #1 {y} \z ~ ^ <p>")
    assert escaped == (
        r"a\_b \& 5\% \$x\$ \#1 \{y\} \textbackslash{}z \textasciitilde{} \textasciicircum{} "
        r"\textless{}p\textgreater{}"
    )


def test_pictures_are_drawn_whatever_the_names(runs, tmp_path):
    write_run(runs / "odd", "VBPR", 1)
    name = "a $very$ long_name \\frac{ of a model that needs more than one line"
    compare(runs / "mf", f"{name}={runs / 'odd'}", "--out", tmp_path / "new" / "folder")
    folder = tmp_path / "new" / "folder"
    assert (folder / "comparison.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "comparison.pdf").read_bytes().startswith(b"%PDF")


def test_brackets_in_names_are_no_markup(runs, tmp_path, capsys):
    compare(f"[red]x={runs / 'mf/version_1'}", f"[/b]={runs / 'mf/version_2'}")
    shown = capsys.readouterr().out
    assert "[red]x" in shown
    assert "[/b]" in shown


# Real runs.


@pytest.mark.slow
def test_runs_that_fit_made_are_compared(tmp_path, capsys):
    data = tmp_path / "films"
    prepare_dataset(simulate(n_users=60, n_items=50), data, Protocol(min_rating=4))
    for model in ("mf", "lightgcn"):
        for seed in (1, 2):
            arguments = ["--config", str(CONFIGS / "ml-100k.yaml")]
            arguments += ["--config", str(CONFIGS / f"models/{model}.yaml")]
            arguments += ["--data.root", str(data), "--seed_everything", str(seed)]
            arguments += ["--trainer.max_epochs", "2", "--trainer.accelerator", "cpu"]
            arguments += ["--trainer.default_root_dir", str(tmp_path), "--evaluation.ks", "[5]"]
            monitor = [f"--{k}.monitor=val/recall@5" for k in ("checkpoint", "early_stopping")]
            llmrec_pl.training.run(["fit", *arguments, *monitor])
    logs = tmp_path / "lightning_logs"
    compare(logs, "--out", tmp_path / "out", "--draws", "200")
    rows, content = written(tmp_path / "out")
    assert content["metrics"] == ["recall@5", "ndcg@5"]
    assert content["split"] == "val"
    for model in ("MF", "LightGCN"):
        folders = sorted((logs / f"films-{model}").iterdir())
        assert content["runs"][model] == [str(f) for f in folders]
        means = [json.loads((f / "metrics/val.json").read_text())["metrics"] for f in folders]
        stated = np.mean([m["recall@5"] for m in means])
        assert float(rows[model, "recall@5"]["mean"]) == pytest.approx(stated, abs=1e-9)
    assert not list(logs.rglob("test*"))
