"""Two processes: each rank its own triplets, every user once, the metrics of one process."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from pair import callback, do_together

import llmrec_pl.training
from llmrec_pl.checkpoints import read_checkpoint
from llmrec_pl.data.dataset import InteractionDataset
from llmrec_pl.data.features import FeatureStore
from llmrec_pl.data.triplets import TripletSampler
from llmrec_pl.errors import CheckpointMismatchError
from llmrec_pl.models.mf import MF

pytestmark = [pytest.mark.ddp, pytest.mark.slow]
ROOT = Path(__file__).parents[2]
TWO = ("--trainer.devices", "2", "--trainer.strategy", "ddp")
ONE = ("--trainer.devices", "1", "--trainer.strategy", "auto")
PLAN = ("--data.batch_size", "250", "--data.sampling", "edge", "--trainer.max_epochs")
LR, BATCH, EPOCHS = 5.0, 700, 2
SGD = (
    *("--model.init_args.optimizer.class_path", "torch.optim.SGD"),
    *("--model.init_args.optimizer.init_args.lr", LR),
    *("--model.init_args.optimizer.init_args.weight_decay", 0),
)
LESS_COPYING = ("--config", ROOT / "configs/parallel/ddp.yaml", "--trainer.devices", "2")
BOTH = {"gradient_clip_val": 0.001, "accumulate_grad_batches": 2}
STEPPING = {
    "plain": (TWO, {}),
    "clipped and accumulated": (TWO, BOTH),
    "less copying": (LESS_COPYING, {}),
    "less copying, clipped and accumulated": (LESS_COPYING, BOTH),
}


def saved(root, name="last"):
    return next(root.rglob(f"{name}.ckpt"))


def weights(root):
    return read_checkpoint(saved(root))["state_dict"]


def optimizer_state(root):
    return read_checkpoint(saved(root))["optimizer_states"][0]["state"]


def evaluate(stage, run, *more):
    of_run = ("--config", run / "config.yaml", "--ckpt_path", run / "checkpoints/best.ckpt")
    return [stage, *of_run, *more]


def mf_arguments(small_data, root, options):
    more = [word for key, value in options.items() for word in (f"--trainer.{key}", value)]
    return [
        *(
            "fit",
            "--data.root",
            small_data,
            "--model",
            "llmrec_pl.models.mf.MF",
            "--model.embedding_dim",
            8,
        ),
        *("--model.l2_weight", 0.1, *SGD, "--data.batch_size", BATCH),
        *("--trainer.max_epochs", EPOCHS, "--trainer.accelerator", "cpu"),
        *("--trainer.precision", "64-true", "--evaluation.ks", "[5,20]"),
        *("--trainer.default_root_dir", root, *more),
    ]


@pytest.fixture(scope="module")
def root(llmrec_arguments, small_data, tmp_path_factory):
    """A folder with all that two processes did together."""
    root = tmp_path_factory.mktemp("ddp")

    def llmrec(name, *more):
        return [*llmrec_arguments, *TWO, *more, "--trainer.default_root_dir", root / name]

    def copied(stage):
        """An evaluation whose files do not lie where those of one process will."""
        folder = root / f"two-{stage}"
        return evaluate(stage, root / "two/run", "--predictions.out", folder, *TWO)

    middle = root / "middle.ckpt"
    kept = ("--trainer.logger.class_path", "lightning.pytorch.loggers.CSVLogger")
    kept += ("--trainer.logger.save_dir", root, "--trainer.logger.name", "two")
    kept += ("--trainer.logger.version", "run")
    jobs = [
        llmrec("two", *PLAN, 2, *kept),
        llmrec(
            "whole",
            *(*PLAN, 3, *callback("SaveAt", step=17, path=middle)),
            *callback("Recorder", folder=root),
        ),
        llmrec("from_end", *PLAN, 3, "--ckpt_path", root / "two/run/checkpoints/last.ckpt"),
        llmrec("from_middle", *PLAN, 3, "--ckpt_path", middle),
        *(copied(stage) for stage in ("validate", "test", "predict")),
        *(
            [*mf_arguments(small_data, root / name, options), *strategy]
            for name, (strategy, options) in STEPPING.items()
        ),
    ]
    first, second = do_together(jobs, root / "jobs")
    for job, of_first, of_second in zip(jobs, first, second, strict=True):
        assert of_first["status"] == of_second["status"] == 0, (job, of_first, of_second)
    return root


# Training.


def test_ranks_together_visit_each_interaction_once_an_epoch(root, small_data):
    train = InteractionDataset.load(small_data).train
    both = np.concatenate([np.load(root / f"rank{r}.npz")["triplets"] for r in range(2)], axis=1)
    edges = np.repeat(np.arange(train.shape[0]), np.diff(train.indptr)), train.indices
    padding = train.nnz % 2
    for epoch in range(3):
        visits = Counter(zip(*both[1:3, both[0] == epoch].tolist(), strict=True))
        assert set(visits) == set(zip(*(e.tolist() for e in edges), strict=True))
        assert sum(visits.values()) == train.nnz + padding
    assert train[both[1], both[3]].sum() == 0, "negatives are unseen"


def test_ranks_draw_other_negatives(root):
    ranks = [np.load(root / f"rank{rank}.npz")["triplets"][3] for rank in range(2)]
    assert (ranks[0] == ranks[1]).mean() < 0.1


def test_graphs_and_features_are_not_sent_in_every_step(root):
    counts = np.load(root / "rank0.npz")
    assert counts["sent"] == counts["kept"]
    assert counts["buffers"] - counts["kept"] > 5


@pytest.mark.parametrize("name", STEPPING)
def test_a_step_is_that_of_both_batches_in_one_process(root, small_data, name):
    options = STEPPING[name][1]
    dataset = InteractionDataset.load(small_data)
    model = MF(embedding_dim=8, l2_weight=0.1)
    model.build_seeded(dataset, FeatureStore({}), seed=2026)
    model.double()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    sampler = TripletSampler(dataset.train, BATCH, seed=2026, world_size=2)
    together = options.get("accumulate_grad_batches", 1)
    assert sampler.n_batches % 2, "the last step of an epoch must be shorter"
    for epoch in range(EPOCHS):
        for step in range(sampler.n_batches):
            for rank in range(2):
                drawn = sampler.batch(epoch, step, rank)
                names = ("user", "pos_item", "neg_item")
                batch = {n: torch.from_numpy(getattr(drawn, n)) for n in names}
                (sum(model.losses(batch).values()) / 2 / together).backward()
            if (step + 1) % together and step + 1 < sampler.n_batches:
                continue
            if "gradient_clip_val" in options:
                norm = torch.cat([p.grad.flatten() for p in model.parameters()]).norm()
                assert norm > options["gradient_clip_val"], "clipping must change something"
                for parameter in model.parameters():
                    parameter.grad.mul_(options["gradient_clip_val"] / (norm + 1e-6))
            optimizer.step()
            optimizer.zero_grad()
    found = weights(root / name)
    for key, tensor in model.state_dict().items():
        assert torch.allclose(found[key], tensor, rtol=0, atol=1e-12), key


# Evaluation.


def test_every_user_is_ranked_once_by_some_process(root, small_data):
    dataset = InteractionDataset.load(small_data)
    users = [np.load(root / f"rank{rank}.npz")["users"] for rank in range(2)]
    epochs = 3
    expected = np.repeat(np.flatnonzero(np.diff(dataset.val.indptr)), epochs)
    assert np.array_equal(np.sort(np.concatenate(users)), expected)


@pytest.mark.parametrize("stage", ["validate", "test"])
def test_one_and_two_processes_evaluate_alike(root, stage):
    run, split = root / "two/run", {"validate": "val", "test": "test"}[stage]

    def results():
        metrics = json.loads((run / "metrics" / f"{split}.json").read_text())
        return metrics, pl.read_parquet(run / "metrics" / f"{split}_per_user.parquet")

    two, two_users = results()
    llmrec_pl.training.run([str(w) for w in evaluate(stage, run, *ONE)])
    one, one_users = results()
    assert two_users["user"].is_unique().all()
    assert two_users.equals(one_users)
    for part in ("metrics", "exposure"):
        assert two[part] == pytest.approx(one[part], abs=1e-12)
    for group, values in one["groups"].items():
        assert two["groups"][group] == pytest.approx(values, abs=1e-12)


def test_one_and_two_processes_predict_alike(root):
    run = root / "two/run"
    out = root / "one-predict"
    more = (*ONE, "--predictions.out", out)
    llmrec_pl.training.run([str(w) for w in evaluate("predict", run, *more)])
    for name in ("top_k", "candidates"):
        one, two = (
            pl.read_parquet(root / f"{n}-predict" / f"{name}.parquet") for n in ("one", "two")
        )
        assert one["user"].equals(two["user"])
        assert one["item"].equals(two["item"])
    one, two = (
        json.loads((root / f"{n}-predict/predictions.json").read_text()) for n in ("one", "two")
    )
    assert one == two


# Resuming.


@pytest.mark.parametrize("place", ["end", "middle"])
def test_resume_in_two_processes_is_bit_identical(root, place):
    if place == "middle":
        checkpoint = read_checkpoint(root / "middle.ckpt")
        assert checkpoint["global_step"] % checkpoint["llmrec_pl"]["plan"]["batches an epoch"]
    whole, resumed = weights(root / "whole"), weights(root / f"from_{place}")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    whole, resumed = (optimizer_state(root / d) for d in ("whole", f"from_{place}"))
    for key, state in whole.items():
        assert all(torch.equal(state[name], resumed[key][name]) for name in state)


def test_another_number_of_processes_is_refused_with_a_remedy(root, llmrec_arguments, tmp_path):
    arguments = [*llmrec_arguments, *PLAN, 3, "--trainer.default_root_dir", tmp_path]
    arguments += ["--ckpt_path", root / "middle.ckpt"]
    with pytest.raises(CheckpointMismatchError, match="number of processes = 2, now it is 1") as e:
        llmrec_pl.training.run([str(word) for word in arguments])
    assert "`--trainer.devices`" in str(e.value)
    assert "`--trainer.num_nodes`" in str(e.value)


def test_there_is_one_record_of_a_run(root):
    assert [p.name for p in (root / "whole").rglob("version_*")] == ["version_0"]
    assert not list(root.rglob("unused"))
    checkpoint = read_checkpoint(saved(root / "whole"))
    plan = checkpoint["llmrec_pl"]["plan"]
    assert checkpoint["global_step"] == 3 * plan["batches an epoch"]
