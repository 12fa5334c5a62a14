"""Stopping anywhere and going on gives the same weights, bit for bit."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import lightning as L
import pytest
import torch

import llmrec_pl.training
from llmrec_pl.checkpoints import AtomicCheckpointIO, CheckpointWriteError, read_checkpoint
from llmrec_pl.errors import CheckpointMismatchError
from llmrec_pl.training import RecommenderCLI

EPOCHS = ("--trainer.max_epochs", "3", "--early_stopping.patience", "50")


class SaveEverywhere(L.Callback):
    """Writes a checkpoint after every step that `ResumeCheckpoint` would allow."""

    def __init__(self, folder):
        self.folder = Path(folder)

    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step % int(trainer.num_training_batches):
            trainer.save_checkpoint(self.folder / f"step{trainer.global_step}.ckpt")


class KeepLast(L.Callback):
    """Copies ``last.ckpt`` each time `ResumeCheckpoint` writes it within an epoch."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.seen = None

    def on_train_batch_start(self, trainer, *args):
        path = Path(trainer.log_dir) / "checkpoints" / "last.ckpt"
        if path.is_file() and path.stat().st_mtime_ns != self.seen:
            self.seen = path.stat().st_mtime_ns
            started = trainer.fit_loop.epoch_loop.batch_progress.total.ready - 1
            shutil.copy(path, self.folder / f"started{started}.ckpt")


def fit(arguments, root, *more):
    """Run in this process and return the trained CLI."""
    return llmrec_pl.training.run(
        [*arguments, *EPOCHS, "--trainer.default_root_dir", str(root), *map(str, more)]
    )


def final_state(folder):
    """Parameters and optimizer state of the last epoch of the only run in a folder."""
    checkpoint = read_checkpoint(next(Path(folder).rglob("last.ckpt")))
    return checkpoint["state_dict"], checkpoint["optimizer_states"][0]


def best_state(folder):
    """Parameters and optimizer state of the selected epoch."""
    checkpoint = read_checkpoint(next(Path(folder).rglob("best.ckpt")))
    return checkpoint["state_dict"], checkpoint["optimizer_states"][0]


def history(cli):
    """Validation metrics of every epoch."""
    return next(c for c in cli.trainer.callbacks if hasattr(c, "history")).history


def assert_equal(found, expected):
    for name, tensor in expected[0].items():
        assert torch.equal(found[0][name], tensor), name
    for key, state in expected[1]["state"].items():
        for name, value in state.items():
            assert torch.equal(found[1]["state"][key][name], value), (key, name)


@pytest.fixture(scope="module")
def whole_run(llmrec_arguments, tmp_path_factory):
    """An uninterrupted run that left a checkpoint after every step."""
    folder = tmp_path_factory.mktemp("whole")
    cli = fit(
        llmrec_arguments,
        folder,
        "--trainer.callbacks+",
        f"{{class_path: {SaveEverywhere.__module__}.SaveEverywhere, "
        f"init_args: {{folder: {folder}}}}}",
    )
    return folder, final_state(folder), history(cli), int(cli.trainer.num_training_batches)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("place", ["first step", "middle", "before last", "second epoch"])
def test_resume_in_the_middle_of_an_epoch(whole_run, llmrec_arguments, tmp_path, workers, place):
    folder, expected, epochs, n = whole_run
    assert n >= 4, "the data set must give several steps an epoch"
    step = {"first step": 1, "middle": n // 2, "before last": n - 1, "second epoch": n + n // 2}
    cli = fit(
        llmrec_arguments,
        tmp_path,
        *("--ckpt_path", folder / f"step{step[place]}.ckpt"),
        *("--data.num_workers", workers),
    )
    assert_equal(final_state(tmp_path), expected)
    resumed = history(cli)
    assert resumed == epochs
    assert_equal(best_state(tmp_path), best_state(folder))


def test_resume_at_an_epoch_end(whole_run, llmrec_arguments, tmp_path):
    fit(llmrec_arguments, tmp_path / "a", "--trainer.max_epochs", 1)
    path = next((tmp_path / "a").rglob("last.ckpt"))
    fit(llmrec_arguments, tmp_path / "b", "--ckpt_path", path)
    assert_equal(final_state(tmp_path / "b"), whole_run[1])


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_kill_9_in_the_middle_of_an_epoch(llmrec_arguments, tmp_path, command, workers):
    common = [*EPOCHS, "--data.num_workers", workers, "--resume.every_n_steps", 1]
    whole = tmp_path / "whole"
    command(*llmrec_arguments, *common, "--trainer.default_root_dir", whole)
    killed = tmp_path / "killed"
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "llmrec_pl", *llmrec_arguments, *map(str, common)),
            *("--trainer.default_root_dir", str(killed), "--trainer.max_epochs", "100000"),
        ],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        path = wait_for(lambda: next(killed.rglob("last.ckpt"), None))
        kept = tmp_path / "kept.ckpt"
        # Keep one that lies in the first two epochs: the process races on.
        wait_for(lambda: path.is_file() and (kept.write_bytes(path.read_bytes()) or True))
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    steps = read_checkpoint(path)["global_step"]
    n = read_checkpoint(path)["llmrec_pl"]["plan"]["batches an epoch"]
    assert steps % n, "the checkpoint must lie inside an epoch"
    start = path if steps < 3 * n else kept
    if read_checkpoint(start)["global_step"] >= 3 * n:
        pytest.fail("the run was killed too late to compare; make it longer")
    command(
        *(*llmrec_arguments, *common, "--ckpt_path", start),
        *("--trainer.default_root_dir", tmp_path / "resumed"),
    )
    assert_equal(final_state(tmp_path / "resumed"), final_state(whole))


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.02)
    pytest.fail("nothing happened in time")
    return None


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_a_checkpoint_and_status_not_0(llmrec_arguments, tmp_path, number):
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "llmrec_pl", *llmrec_arguments),
            *("--trainer.default_root_dir", str(tmp_path), "--trainer.max_epochs", "100000"),
            *("--early_stopping.patience", "100000"),
        ],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    wait_for(lambda: next(tmp_path.rglob("last.ckpt"), None))
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode != 0
    path = next(tmp_path.rglob("last.ckpt"))
    assert f"--ckpt_path {path}" in output
    assert "Traceback" not in output
    assert read_checkpoint(path)["global_step"] > 0


def test_other_data_are_refused_naming_both(whole_run, llmrec_arguments, tmp_path):
    from llmrec_pl.cli import main

    other = tmp_path / "other"
    main(["prepare", "simulated", "--out", str(other), "--seed", "7"])
    main(["features", str(other), "--text", "title,genres", "--encoder", "tfidf", "--dim", "8"])
    arguments = list(llmrec_arguments)
    arguments[arguments.index("--data.root") + 1] = str(other)
    place = arguments.index("--data.augmentation")
    del arguments[place : place + 2]
    with pytest.raises(CheckpointMismatchError) as error:
        fit(arguments, tmp_path, "--ckpt_path", whole_run[0] / "step1.ckpt")
    record = read_checkpoint(whole_run[0] / "step1.ckpt")["llmrec_pl"]
    assert record["fingerprint"] in str(error.value)
    assert str(other) in str(error.value)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (("--data.batch_size", 256), "batch"),
        (("--seed_everything", 5), "seed_everything"),
        (("--data.sampling", "edge"), "sampling"),
        (("--data.n_negatives", 3), "n_negatives"),
        (("--trainer.limit_train_batches", 2), "limit_train_batches"),
    ],
    ids=str,
)
def test_another_batch_plan_is_refused_by_name(
    whole_run, llmrec_arguments, tmp_path, change, named
):
    with pytest.raises(CheckpointMismatchError, match=named):
        fit(llmrec_arguments, tmp_path, *change, "--ckpt_path", whole_run[0] / "step1.ckpt")


def test_the_best_epoch_before_a_stop_stays_the_best(llmrec_arguments, tmp_path):
    early = []
    for mode in ("min", "max"):
        root = tmp_path / mode
        select = ("--checkpoint.mode", mode, "--trainer.max_epochs")
        whole = fit(llmrec_arguments, root / "whole", *select, 4)
        fit(llmrec_arguments, root / "half", *select, 2)
        path = next((root / "half").rglob("last.ckpt"))
        cli = fit(llmrec_arguments, root / "resumed", *select, 4, "--ckpt_path", path)
        assert history(cli) == history(whole)
        assert len(history(cli)) == 4
        assert_equal(best_state(root / "resumed"), best_state(root / "whole"))
        early.append(read_checkpoint(next((root / "whole").rglob("best.ckpt")))["epoch"])
    assert 0 in early, "the test needs a best epoch before the stop"
    assert 1 in early, "and one in the epoch of the stop, which `last.ckpt` has to know of"


@pytest.mark.parametrize("step", [2, 4])
def test_accumulated_gradients_are_not_lost(llmrec_arguments, tmp_path, step):
    more = ("--trainer.accumulate_grad_batches", 2, "--trainer.limit_train_batches", 6)
    every = ("--resume.every_n_steps", 1, "--trainer.max_epochs", 1)
    saved = (
        "--trainer.callbacks+",
        f"{{class_path: {SaveEverywhere.__module__}.KeepLast, init_args: {{folder: {tmp_path}}}}}",
    )
    fit(llmrec_arguments, tmp_path / "a", *more, *every, *saved)
    assert sorted(p.name for p in tmp_path.glob("started*.ckpt")) == [
        "started2.ckpt",
        "started4.ckpt",
    ], "only where the optimizer has stepped"
    path = tmp_path / f"started{step}.ckpt"
    fit(llmrec_arguments, tmp_path / "b", *more, *every, "--ckpt_path", path)
    assert_equal(final_state(tmp_path / "b"), final_state(tmp_path / "a"))


@pytest.mark.parametrize("precision", ["64-true", "bf16-true"])
def test_other_precisions_resume_too(llmrec_arguments, tmp_path, precision):
    save = (
        "--trainer.callbacks+",
        f"{{class_path: {SaveEverywhere.__module__}.SaveEverywhere, "
        f"init_args: {{folder: {tmp_path}}}}}",
    )
    # Without dropout features go their lean ways, which give float32.
    dry = ("--model.init_args.dropout", 0)
    common = ("--trainer.precision", precision, "--trainer.max_epochs", 2, *dry)
    fit(llmrec_arguments, tmp_path / "a", *common, *save)
    fit(llmrec_arguments, tmp_path / "b", *common, "--ckpt_path", tmp_path / "step3.ckpt")
    assert_equal(final_state(tmp_path / "b"), final_state(tmp_path / "a"))


def test_limited_epochs_resume_too(llmrec_arguments, tmp_path):
    limit = ("--trainer.limit_train_batches", 3)
    save = (
        "--trainer.callbacks+",
        f"{{class_path: {SaveEverywhere.__module__}.SaveEverywhere, "
        f"init_args: {{folder: {tmp_path}}}}}",
    )
    fit(llmrec_arguments, tmp_path / "a", *limit, *save)
    path = tmp_path / "step5.ckpt"
    fit(llmrec_arguments, tmp_path / "b", *limit, "--ckpt_path", path)
    assert_equal(final_state(tmp_path / "b"), final_state(tmp_path / "a"))


@pytest.mark.parametrize("workers", [0, 2])
def test_many_negatives_and_replaced_items_resume_too(llmrec_arguments, tmp_path, workers):
    arguments = [a.replace("models/llmrec.yaml", "models/clcrec.yaml") for a in llmrec_arguments]
    place = arguments.index("--model.init_args.dropout")
    del arguments[place : place + 2]
    save = (
        "--trainer.callbacks+",
        f"{{class_path: {SaveEverywhere.__module__}.SaveEverywhere, "
        f"init_args: {{folder: {tmp_path}}}}}",
    )
    fit(arguments, tmp_path / "a", "--data.n_negatives", 5, *save)
    path = tmp_path / "step2.ckpt"
    more = ("--ckpt_path", path, "--data.num_workers", workers)
    fit(arguments, tmp_path / "b", "--data.n_negatives", 5, *more)
    assert_equal(final_state(tmp_path / "b"), final_state(tmp_path / "a"))


@pytest.mark.parametrize("model", ["lattice", "micro"])
def test_item_graphs_chosen_once_an_epoch_resume_too(llmrec_arguments, tmp_path, model):
    arguments = [a.replace("models/llmrec.yaml", f"models/{model}.yaml") for a in llmrec_arguments]
    place = arguments.index("--model.init_args.dropout")
    del arguments[place : place + 2]
    more = ("--model.init_args.original_weight", 0.0)
    save = (
        "--trainer.callbacks+",
        f"{{class_path: {SaveEverywhere.__module__}.SaveEverywhere, "
        f"init_args: {{folder: {tmp_path}}}}}",
    )
    cli = fit(arguments, tmp_path / "a", *more, *save)
    path = tmp_path / f"step{int(cli.trainer.num_training_batches) + 2}.ckpt"
    name = "item_graphs.0.neighbours"
    kept = read_checkpoint(path)["state_dict"]
    assert not torch.equal(kept[name], read_checkpoint(tmp_path / "step1.ckpt")["state_dict"][name])
    cli.model.load_state_dict(kept)
    cli.model.refresh()
    assert not torch.equal(cli.model.state_dict()[name], kept[name]), "weights alone are no help"
    fit(arguments, tmp_path / "b", *more, "--ckpt_path", path)
    assert_equal(final_state(tmp_path / "b"), final_state(tmp_path / "a"))


def test_checkpoints_hold_nothing_but_plain_data(whole_run):
    for path in whole_run[0].rglob("*.ckpt"):
        checkpoint = torch.load(path, weights_only=True)
        assert "hyper_parameters" not in checkpoint, "it would overrule YAML on resume"
        assert not any("feature" in n or "graph" in n for n in checkpoint["state_dict"])


def test_a_damaged_checkpoint_is_one_clear_error(tmp_path):
    path = tmp_path / "cut.ckpt"
    torch.save({"a": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:1500])
    with pytest.raises(CheckpointMismatchError, match=r"cut\.ckpt"):
        read_checkpoint(path)


FULL_DISK = """
import resource, sys, torch
from llmrec_pl.checkpoints import AtomicCheckpointIO
io = AtomicCheckpointIO()
io.save_checkpoint({"x": torch.zeros(10), "llmrec_pl": {}}, sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    io.save_checkpoint({"x": torch.zeros(1_000_000)}, sys.argv[1])
except Exception as error:
    print(type(error).__name__, error)
    sys.exit(3)
"""


def test_a_full_disk_leaves_the_old_checkpoint_and_no_litter(tmp_path):
    path = tmp_path / "last.ckpt"
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 3, done.stderr
    assert CheckpointWriteError.__name__ in done.stdout
    assert "--ckpt_path" in done.stdout
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]
    assert AtomicCheckpointIO().load_checkpoint(path)["x"].shape == (10,)


def test_the_run_can_be_driven_from_python(llmrec_arguments, tmp_path):
    cli = fit(llmrec_arguments, tmp_path, "--trainer.fast_dev_run", "true")
    assert isinstance(cli, RecommenderCLI)
