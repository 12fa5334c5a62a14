"""`tune` on a small data set: budget, resume, lost trials, failures, pruning."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState

from llmrec_pl import progress_bar
from llmrec_pl.cli import main
from llmrec_pl.errors import ConfigError
from llmrec_pl.tuning.storage import counted, open_study, rescue_lost
from llmrec_pl.tuning.trial import TrialJob, run_trial

ROOT = Path(__file__).parents[2]
MF = [str(ROOT / "configs/ml-100k.yaml"), str(ROOT / "configs/models/mf.yaml")]
LR = "model.init_args.optimizer.init_args.lr"
SPACE = {LR: {"low": 1e-4, "high": 0.1, "log": True}, "model.init_args.embedding_dim": [8, 64]}
FAST = ("--trainer.max_epochs", "2", "--trainer.accelerator", "cpu")


def arguments(folder, data, trials, *more, space=None):
    path = folder / "space.yaml"
    path.write_text(yaml.safe_dump(space or SPACE))
    study = folder / "study"
    configs = [x for c in MF for x in ("--config", c)]
    out = ("--out", str(folder / "tuned.yaml"), "--log", str(folder / "log.json"))
    fixed = ["tune", *configs, "--space", str(path), "--study", str(study), *out]
    return [*fixed, "--trials", str(trials), *more, "--", "--data.root", str(data), *FAST]


def tune(folder, data, trials, *more, space=None):
    folder.mkdir(exist_ok=True)
    main(arguments(folder, data, trials, *more, space=space))
    return json.loads((folder / "log.json").read_text())


def values_of(log):
    return [(t["number"], t["values"], t["value"]) for t in log["trials"]]


@pytest.mark.slow
def test_a_search_starts_at_the_config_and_goes_on_as_if_never_stopped(tmp_path, small_data):
    whole = tune(tmp_path / "whole", small_data, 4)
    assert whole["trials"][0]["values"] == {LR: 3e-3, "model.init_args.embedding_dim": 64}
    assert len({t["values"][LR] for t in whole["trials"]}) == 4
    part = tune(tmp_path / "part", small_data, 2)
    assert values_of(part) == values_of(whole)[:2]
    assert values_of(tune(tmp_path / "part", small_data, 4)) == values_of(whole)
    best = max(whole["trials"], key=lambda t: t["value"])
    assert whole["chosen"] == best["number"]
    chosen = yaml.safe_load((tmp_path / "part/tuned.yaml").read_text())
    found = chosen["model"]["init_args"]
    assert found["optimizer"]["init_args"]["lr"] == pytest.approx(best["values"][LR], rel=0.01)
    assert found["embedding_dim"] == best["values"]["model.init_args.embedding_dim"]
    assert (tmp_path / "part/study/trials.png").stat().st_size > 5_000


@pytest.mark.slow
def test_the_chosen_config_gives_the_value_of_its_trial(tmp_path, small_data):
    log = tune(tmp_path, small_data, 2)
    run = ["--data.root", str(small_data), *FAST, "--trainer.default_root_dir", str(tmp_path / "r")]
    configs = [x for c in [*MF, str(tmp_path / "tuned.yaml")] for x in ("--config", c)]
    main(["fit", *configs, *run])
    record = next((tmp_path / "r").rglob("val.json"))
    found = json.loads(record.read_text())["metrics"]["recall@20"]
    best = max(t["value"] for t in log["trials"])
    assert found == pytest.approx(best, abs=1e-6)


@pytest.mark.slow
def test_two_calls_share_one_budget(tmp_path, small_data):
    command = [sys.executable, "-m", "llmrec_pl", *arguments(tmp_path, small_data, 4)]
    calls = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [c.wait(timeout=240) for c in calls] == [0, 0]
    trials = counted(open_study(tmp_path / "study"))
    assert [t.state for t in trials] == [TrialState.COMPLETE] * 4


@pytest.mark.slow
def test_chosen_values_go_into_the_config_and_the_study_goes_on(tmp_path, small_data):
    own = tmp_path / "mf.yaml"
    own.write_text(Path(MF[1]).read_text())
    space = {LR: {"low": 0.01, "high": 0.1, "log": True}}
    (tmp_path / "space.yaml").write_text(yaml.safe_dump(space))
    words = ["tune", "--config", MF[0], "--config", str(own), "--space"]
    words += [str(tmp_path / "space.yaml"), "--study", str(tmp_path / "study")]
    words += ["--out", str(tmp_path / "out.yaml"), "--into", str(own)]
    more = ["--", "--data.root", str(small_data), *FAST]
    main([*words, "--trials", "1", *more])
    chosen = yaml.safe_load((tmp_path / "out.yaml").read_text())
    wanted = chosen["model"]["init_args"]["optimizer"]["init_args"]["lr"]
    config = yaml.safe_load(own.read_text())["model"]["init_args"]
    assert config["optimizer"]["init_args"]["lr"] == wanted != 3e-3
    assert "coupled decay" in own.read_text()
    main([*words, "--trials", "2", *more])
    assert len(counted(open_study(tmp_path / "study"))) == 2


def test_another_search_in_the_same_folder_is_refused(tmp_path, small_data):
    tune(tmp_path, small_data, 1)
    with pytest.raises(SystemExit):
        main(arguments(tmp_path, small_data, 2, space={LR: [1e-3]}))


def test_a_trial_whose_process_died_is_tried_again(tmp_path):
    study = open_study(tmp_path)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    trial = study.ask({"x": FloatDistribution(0, 1)})
    trial.set_user_attr("worker", {"host": socket.gethostname(), "pid": gone.pid})
    other = study.ask({"x": FloatDistribution(0, 1)})
    other.set_user_attr("worker", {"host": "elsewhere", "pid": gone.pid})
    assert rescue_lost(study) == 1
    again = study.ask({"x": FloatDistribution(0, 1)})
    assert again.params == trial.params
    assert {t.number for t in counted(study)} == {other.number, again.number}


def test_values_whose_process_dies_again_and_again_are_given_up(tmp_path):
    study = open_study(tmp_path)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    space = {"x": FloatDistribution(0, 1)}
    study.enqueue_trial({"x": 0.25})
    for _ in range(3):
        trial = study.ask(space)
        assert trial.params == {"x": 0.25}
        trial.set_user_attr("worker", {"host": socket.gethostname(), "pid": gone.pid})
        rescue_lost(study)
    (given_up,) = counted(study)
    assert given_up.params == {"x": 0.25}
    assert "died 3 times" in given_up.user_attrs["result"]["error"]
    assert study.ask(space).params != {"x": 0.25}


def test_a_setting_that_cannot_train_ends_its_own_trial_only(tmp_path, small_data, capsys):
    space = {"model.init_args.embedding_dim": [64, 0]}
    log = tune(tmp_path, small_data, 6, space=space)
    failed = [t for t in log["trials"] if t["value"] is None]
    assert failed
    assert "embedding_dim" in failed[0]["error"]
    assert "embedding_dim" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="embedding_dim"):
        run_all_bad(tmp_path / "bad", small_data)


def run_all_bad(folder, data):
    from llmrec_pl.cli import run_plain

    folder.mkdir()
    words = arguments(folder, data, 2, space={"model.init_args.embedding_dim": [0, -1]})
    run_plain("tune", words[1:])


def test_a_setting_the_parser_refuses_is_told_in_one_line(tmp_path, small_data, capfd):
    words = arguments(tmp_path, small_data, 1, space={"model.init_args.embeding_dim": [8]})
    with pytest.raises(SystemExit) as stop:
        main(words)
    out, err = capfd.readouterr()
    assert stop.value.code == 1
    assert "the config as it stands is no trial: it does not state ['model.init_args.embe" in out
    assert "unknown key `model.init_args.embeding_dim`" in err
    assert "usage:" not in out + err


def test_an_unknown_metric_names_those_that_are_computed(tmp_path, small_data, capfd):
    with pytest.raises(SystemExit):
        main(arguments(tmp_path, small_data, 1, "--metric", "recal@20"))
    err = capfd.readouterr().err
    assert "'val/recal@20', which is not computed" in err
    assert "'val/recall@20'" in err


def test_a_call_that_finds_all_trials_given_out_says_so(tmp_path, small_data):
    from llmrec_pl.cli import run_plain

    words = arguments(tmp_path, small_data, 1)
    study = open_study(tmp_path / "study")
    elsewhere = study.ask()
    elsewhere.set_user_attr("worker", {"host": "another machine", "pid": 1})
    with pytest.raises(ConfigError, match="another process still runs some"):
        run_plain("tune", words[1:])


def job(study, data, trial, **changes):
    words = [x for c in MF for x in ("--config", c)]
    words += ["--data.root", str(data), "--trainer.max_epochs", "6", "--trainer.accelerator", "cpu"]
    fixed = {"metric": "recall@20", "seconds": 600.0, "warmup": 1}
    return TrialJob(study, trial._trial_id, words, {}, **{**fixed, **changes})


def test_a_trial_below_the_median_is_stopped_early(tmp_path, small_data):
    study = open_study(tmp_path, warmup=2)
    for _ in range(3):
        earlier = study.ask()
        for step in range(1, 7):
            earlier.report(0.99, step)
        study.tell(earlier, 0.99)
    result = run_trial(job(tmp_path, small_data, study.ask(), warmup=2))
    assert result["stopped"] == "pruned"
    assert result["epochs"] == 2, "the median is first asked at the second evaluation"


def test_a_trial_ends_when_its_time_is_up(tmp_path, small_data):
    study = open_study(tmp_path)
    result = run_trial(job(tmp_path, small_data, study.ask(), seconds=1e-6))
    assert result["stopped"] == "time"
    assert result["epochs"] == 1
    assert result["value"] == result["curve"][0] or abs(result["value"] - result["curve"][0]) < 1e-6


def test_a_trial_says_where_it_is_on_standard_error(tmp_path, small_data, monkeypatch, capsys):
    monkeypatch.setattr(progress_bar, "PLAIN_INTERVAL", 0.0)
    study = open_study(tmp_path / "mf")
    result = run_trial(job(tmp_path / "mf", small_data, study.ask()))
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if line.startswith("mf, trial 0: epoch ")]
    assert f"best val/recall@20 {max(result['curve'][:-1]):.4f}" in lines[-1]
    assert out == ""


@pytest.mark.parametrize("flag", ["--trials", "--workers", "--seconds"])
def test_a_budget_must_be_positive(tmp_path, small_data, flag, capsys):
    with pytest.raises(SystemExit):
        main(arguments(tmp_path, small_data, 1, flag, "0"))
    assert "must be positive" in capsys.readouterr().err


@pytest.mark.parametrize(
    "path", sorted((ROOT / "configs/spaces").glob("*.yaml")), ids=lambda p: p.stem
)
def test_every_shipped_space_names_values_of_its_model(path):
    from llmrec_pl.configs import merged
    from llmrec_pl.tuning.space import current_values, read_space

    model = ROOT / "configs/models" / path.name
    assert current_values(merged([MF[0], model]), read_space(path)) is not None
