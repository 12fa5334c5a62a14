"""Embedding tables split by row over two processes leave what one process leaves."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from pair import callback, do_together
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard

import llmrec_pl.training
from llmrec_pl.checkpoints import read_checkpoint
from llmrec_pl.data.dataset import InteractionDataset
from llmrec_pl.data.features import FeatureStore
from llmrec_pl.errors import ConfigError
from llmrec_pl.models.mf import MF
from llmrec_pl.sharding import full, shard_tables

pytestmark = [pytest.mark.ddp, pytest.mark.slow]
ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"
SHARDED = ("--config", CONFIGS / "parallel/row_sharded.yaml", "--trainer.devices", "2")
DDP = ("--trainer.devices", "2", "--trainer.strategy", "ddp")
STEPPING = ("--trainer.gradient_clip_val", "0.001", "--trainer.accumulate_grad_batches", "2")
CLIPPED = ("--trainer.gradient_clip_val", "0.001")
FUSED = ("--model.init_args.optimizer.init_args.fused", "true")
MODELS = {"mf": FUSED, "lightgcn": STEPPING, "vbpr": FUSED, "llmrec": (*CLIPPED, *FUSED)}
"""Models that are trained through the command line, each with some options."""


def contract():
    """The contract tests, for the models they find and build."""
    path = ROOT / "tests/contract/test_models.py"
    spec = importlib.util.spec_from_file_location("contract_of_models", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TRAINED = [c.__name__ for c in contract().TRAINED]


# What both processes do.


def compare_models(out):
    """Hold every model with sharded tables against the same with whole ones, in float64."""
    torch.distributed.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (2,))
    build = contract()
    dataset = build.taste_groups(n_users=41, n_items=31)
    features = build.features_of(dataset)
    found = {}
    for model_class in build.TRAINED:
        whole, sharded = (build.make(model_class, dataset, features).double() for _ in range(2))
        shard_tables(sharded, mesh)
        found[model_class.__name__] = differences(whole, sharded, build.batch_of(dataset))
    if torch.distributed.get_rank() == 0:
        Path(out).write_text(json.dumps(found))


def differences(whole, sharded, batch):
    """The largest of each kind, and how many tables are split."""

    def largest(pairs):
        return max((full(a) - full(b)).abs().max().item() for a, b in pairs)

    terms = []
    for model in (whole, sharded):
        torch.manual_seed(1)
        model.refresh()
        terms.append(model.losses(batch))
        sum(terms[-1].values()).backward()
    parameters = list(zip(whole.parameters(), sharded.parameters(), strict=True))
    users, items = batch["user"][:7], batch["pos_item"][:5]
    vectors = []
    for model in (whole, sharded):
        model.eval()
        vectors.append([*model.encode(), *model.encode_rows(users, items)])
    return {
        "losses": largest((terms[0][name], terms[1][name]) for name in terms[0]),
        "gradients": largest((a.grad, b.grad) for a, b in parameters),
        "vectors": largest(zip(*vectors, strict=True)),
        "tables": sum(isinstance(b, DTensor) for _, b in parameters),
        "split": all(b.grad.placements == (Shard(0),) for _, b in parameters if full(b) is not b),
    }


def measure_parts(out):
    """Count what each process holds of a table of an odd number of rows after a step."""
    torch.distributed.init_process_group("gloo")
    edges = np.stack([np.arange(101), np.arange(101) % 51])
    model = MF(embedding_dim=4)
    model.build_seeded(InteractionDataset.from_edges("odd", 101, 51, edges), FeatureStore({}), 0)
    shard_tables(model, init_device_mesh("cpu", (2,)))
    optimizer = torch.optim.AdamW(model.parameters())
    batch = {n: torch.arange(20) for n in ("user", "pos_item", "neg_item")}
    sum(model.losses(batch).values()).backward()
    optimizer.step()
    table = model.user_embedding.rows
    parts = {"weight": table, "gradient": table.grad} | optimizer.state[table]
    local = {n: full_local(t) for n, t in parts.items() if n != "step"}
    Path(out, f"parts{torch.distributed.get_rank()}.json").write_text(json.dumps(local))


def shard_few_rows():
    """One row cannot be split over two processes; padding is not looked up as others are."""
    torch.distributed.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (2,))
    single, several = torch.nn.Embedding(1, 4), torch.nn.Embedding(3, 4)
    padded = torch.nn.Embedding(3, 4, padding_idx=0)
    with pytest.raises(ConfigError, match=r"2 processes .* `trainer\.strategy`"):
        shard_tables(torch.nn.ModuleList([single, padded]), mesh)
    shard_tables(torch.nn.ModuleList([single, several]), mesh)
    assert type(single) is type(padded) is torch.nn.Embedding
    assert several.rows.to_local().shape == (2 - torch.distributed.get_rank(), 4)
    assert several.weight.shape == (3, 4)


def full_local(tensor):
    local = tensor.to_local()
    return [len(local), local.untyped_storage().nbytes()]


# The runs.


def saved(root, name="last"):
    return next(root.rglob(f"{name}.ckpt"))


def state(root):
    checkpoint = read_checkpoint(saved(root))
    return checkpoint["state_dict"], checkpoint["optimizer_states"][0]


def evaluate(stage, root, *more):
    """An evaluation of a run's best checkpoint."""
    best = saved(root, "best")
    return [stage, "--config", best.parents[1] / "config.yaml", "--ckpt_path", best, *more]


def fit(llmrec_arguments, model, root, *more):
    arguments = [a.replace("models/llmrec.yaml", f"models/{model}.yaml") for a in llmrec_arguments]
    if model != "llmrec":
        place = arguments.index("--model.init_args.dropout")
        del arguments[place : place + 2]
    plan = ("--data.sampling", "edge", "--data.batch_size", "250", "--trainer.max_epochs", "2")
    return [*arguments, *plan, *MODELS[model], "--trainer.default_root_dir", root, *more]


def alone(arguments):
    return llmrec_pl.training.run([str(word) for word in arguments])


@pytest.fixture(scope="module")
def root(llmrec_arguments, tmp_path_factory):
    """A folder with what one process and two processes did."""
    root = tmp_path_factory.mktemp("sharded")
    for model in MODELS:
        keep = callback("SaveAt", step=17, path=root / "middle1.ckpt") if model == "vbpr" else ()
        alone(fit(llmrec_arguments, model, root / f"{model}1", *keep))
    mf = root / "mf1"

    def groups(size):
        part = "--trainer.strategy.init_args"
        return f"{part}.data_parallel_size", size, f"{part}.tensor_parallel_size", 2 // size

    middle = callback("SaveAt", step=17, path=root / "middle2.ckpt")
    jobs = {
        "compare": ["call", "test_row_sharded:compare_models", root / "models.json"],
        "measure": ["call", "test_row_sharded:measure_parts", root],
        "few rows": ["call", "test_row_sharded:shard_few_rows"],
        **{
            model: fit(
                llmrec_arguments,
                model,
                root / f"{model}2",
                *(*SHARDED, *(middle if model == "vbpr" else ())),
            )
            for model in MODELS
        },
        **{
            f"resumed{n}": fit(
                llmrec_arguments,
                "vbpr",
                root / f"resumed{n}",
                *(*SHARDED, "--ckpt_path", root / f"middle{n}.ckpt"),
            )
            for n in (1, 2)
        },
        "groups": fit(llmrec_arguments, "mf", root / "groups", *SHARDED, *groups(2)),
        "ddp": fit(llmrec_arguments, "mf", root / "ddp", *DDP),
        **{
            # One user is left over, and one of the two processes without any.
            stage: evaluate(
                stage,
                mf,
                *("--predictions.out", root / "lists2", "--data.eval_batch_size", 57, *SHARDED),
            )
            for stage in ("validate", "test", "predict")
        },
        "other": evaluate("validate", mf, "--model.init_args.embedding_dim", 8, *SHARDED),
    }
    first, _ = do_together(jobs.values(), root / "jobs")
    done = dict(zip(jobs, first, strict=True))
    for name, result in done.items():
        assert name == "other" or result["status"] == 0, (name, result)
    (root / "done.json").write_text(json.dumps(done))
    return root


# Every model.


@pytest.mark.parametrize("model", TRAINED)
def test_sharded_tables_change_no_number_of_a_model(root, model):
    found = json.loads((root / "models.json").read_text())[model]
    assert found["tables"] >= 1
    assert found["split"], "gradients are of a process's own rows"
    for kind in ("losses", "gradients", "vectors"):
        assert found[kind] < 1e-11, kind


def test_tables_of_few_rows_stay_whole(root):
    assert json.loads((root / "done.json").read_text())["few rows"]["status"] == 0


def test_each_process_holds_its_rows_alone(root):
    for rank, rows in enumerate((51, 50)):
        parts = json.loads((root / f"parts{rank}.json").read_text())
        assert set(parts) == {"weight", "gradient", "exp_avg", "exp_avg_sq"}
        for name, (n, size) in parts.items():
            assert (n, size) == (rows, rows * 4 * 4), name


# Training through the command line.


@pytest.mark.parametrize("model", MODELS)
def test_training_ends_in_the_weights_of_one_process(root, model):
    (one, _), (two, _) = state(root / f"{model}1"), state(root / f"{model}2")
    assert list(one) == list(two)
    for name, tensor in one.items():
        assert type(two[name]) is torch.Tensor
        assert torch.allclose(two[name], tensor, rtol=1e-5, atol=1e-6), name


@pytest.mark.parametrize("model", MODELS)
def test_the_loss_curve_is_that_of_one_process(root, model):
    one, two = (
        pl.read_csv(next((root / f"{model}{n}").rglob("metrics.csv")))["train/loss"].drop_nulls()
        for n in (1, 2)
    )
    assert len(one) == 2
    assert two.to_list() == pytest.approx(one.to_list(), rel=1e-6)


def test_look_ups_are_exact_so_that_mf_is_bit_identical(root):
    (one, one_optimizer), (two, two_optimizer) = state(root / "mf1"), state(root / "mf2")
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert one_optimizer["param_groups"] == two_optimizer["param_groups"]
    for key, values in one_optimizer["state"].items():
        for name, tensor in values.items():
            assert torch.equal(tensor, two_optimizer["state"][key][name])


def test_groups_split_batches_as_processes_do(root):
    (ddp, _), (groups, _) = state(root / "ddp"), state(root / "groups")
    for name, tensor in ddp.items():
        assert torch.allclose(groups[name], tensor, rtol=1e-5, atol=1e-6), name


# Checkpoints.


def test_a_group_resumes_its_own_checkpoint_bit_for_bit(root):
    (whole, whole_optimizer), (resumed, optimizer) = (
        state(root / n) for n in ("vbpr2", "resumed2")
    )
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    for key, values in whole_optimizer["state"].items():
        assert all(torch.equal(t, optimizer["state"][key][n]) for n, t in values.items())


def test_a_group_goes_on_from_the_checkpoint_of_one_process(root):
    (whole, _), (resumed, _) = state(root / "vbpr1"), state(root / "resumed1")
    assert all(torch.allclose(resumed[n], t, rtol=1e-5, atol=1e-6) for n, t in whole.items())


def test_one_process_goes_on_from_the_checkpoint_of_a_group(root, llmrec_arguments, tmp_path):
    alone(fit(llmrec_arguments, "vbpr", tmp_path, "--ckpt_path", root / "middle2.ckpt"))
    (whole, _), (resumed, _) = state(root / "vbpr1"), state(tmp_path)
    assert all(torch.allclose(resumed[n], t, rtol=1e-5, atol=1e-6) for n, t in whole.items())


def test_a_checkpoint_of_other_settings_is_refused_before_it_is_read(root):
    done = json.loads((root / "done.json").read_text())["other"]
    assert done["status"] == 1
    assert "embedding_dim = 16 (now 8)" in done["stderr"]


# Evaluation.


@pytest.mark.parametrize("stage", ["validate", "test"])
def test_sharded_tables_are_evaluated_alike(root, stage):
    folder = saved(root / "mf1", "best").parents[1] / "metrics"
    split = {"validate": "val", "test": "test"}[stage]

    def results():
        record = json.loads((folder / f"{split}.json").read_text())
        return record, pl.read_parquet(folder / f"{split}_per_user.parquet")

    two, two_users = results()
    alone(evaluate(stage, root / "mf1"))
    one, one_users = results()
    assert two_users.equals(one_users)
    assert two["metrics"] == pytest.approx(one["metrics"], abs=1e-12)
    assert two["exposure"] == pytest.approx(one["exposure"], abs=1e-12)


def test_sharded_tables_predict_alike(root):
    alone(evaluate("predict", root / "mf1", "--predictions.out", root / "lists1"))
    one, two = (pl.read_parquet(root / f"lists{n}" / "top_k.parquet") for n in (1, 2))
    assert two.select("user", "item").equals(one.select("user", "item"))
    one, two = (json.loads((root / f"lists{n}/predictions.json").read_text()) for n in (1, 2))
    assert two == one, "the model's fingerprint is of whole tables"
