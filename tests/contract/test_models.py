"""What every Recommender must do; a new model is found by its file and its YAML."""

import importlib
import inspect
import pkgutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import llmrec_pl.models
from llmrec_pl.data.dataset import InteractionDataset
from llmrec_pl.data.features import Feature, FeatureStore
from llmrec_pl.data.triplets import TripletSampler
from llmrec_pl.evaluation.ranking import sparse_rows, top_k
from llmrec_pl.models.base import Recommender
from llmrec_pl.models.closed_form import ClosedForm
from llmrec_pl.models.popularity import Popularity

CONFIGS = Path(__file__).parents[2] / "configs" / "models"


def find_models():
    classes = []
    for module in pkgutil.iter_modules(llmrec_pl.models.__path__):
        members = vars(importlib.import_module(f"llmrec_pl.models.{module.name}")).values()
        classes += [
            c
            for c in members
            if inspect.isclass(c)
            and issubclass(c, Recommender)
            and c is not Recommender
            and not inspect.isabstract(c)
        ]
    return sorted(set(classes), key=lambda c: c.__name__)


MODELS = find_models()
TRAINED = [c for c in MODELS if not issubclass(c, ClosedForm)]
PERSONAL = [c for c in MODELS if c is not Popularity]


def config_of(model_class):
    path = CONFIGS / f"{model_class.__module__.rpartition('.')[2]}.yaml"
    assert path.is_file(), f"{model_class.__name__} needs {path}"
    return yaml.safe_load(path.read_text())["model"]


def arguments_of(model_class):
    arguments = config_of(model_class)["init_args"]
    return {k: v for k, v in arguments.items() if not k.endswith(("optimizer", "lr_scheduler"))}


def make(model_class, dataset, features, **changes):
    arguments = arguments_of(model_class)
    if "embedding_dim" in arguments:
        arguments["embedding_dim"] = 16
    model = model_class(**{**arguments, **changes})
    model.build_seeded(dataset, features, seed=3)
    return model


def taste_groups(n_users=40, n_items=30, held_out=True):
    """Two disjoint taste groups; each user's held-out item is liked by the own group only."""
    random = np.random.default_rng(0)
    user_group, item_group = np.arange(n_users) % 2, np.arange(n_items) % 2
    dense = user_group[:, None] == item_group[None, :]
    val = np.zeros_like(dense)
    for user in range(n_users if held_out else 0):
        val[user, random.choice(np.flatnonzero(dense[user]))] = True
    train = dense & ~val
    return InteractionDataset.from_edges(
        "taste", n_users, n_items, np.stack(np.nonzero(train)), np.stack(np.nonzero(val))
    )


def features_of(dataset, dim=5):
    random = np.random.default_rng(1)

    def feature(name, side, group, n):
        values = random.normal(size=(n, dim)).astype(np.float32)
        return Feature(name, side, group, values)

    return FeatureStore(
        {
            "text": feature("text", "item", "modality", dataset.n_items),
            "image": feature("image", "item", "modality", dataset.n_items),
            "profile": feature("profile", "user", "profile", dataset.n_users),
            "director": feature("director", "item", "attribute", dataset.n_items),
        }
    )


def batch_of(dataset, size=64, step=0):
    triplets = TripletSampler(dataset.train, size, seed=0).batch(0, step)
    names = ("user", "pos_item", "neg_item", "source")
    return {name: torch.from_numpy(getattr(triplets, name)) for name in names}


@pytest.fixture(scope="module")
def data():
    dataset = taste_groups()
    return dataset, features_of(dataset)


def train(model, dataset, steps, lr=0.02):
    n_batches = TripletSampler(dataset.train, 64, seed=0).n_batches
    if isinstance(model, ClosedForm):
        for _ in range(0, steps, n_batches):
            model.refresh()
        return []
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0)
    losses = []
    model.train()
    for step in range(steps):
        torch.manual_seed(step)
        if step % n_batches == 0:
            model.refresh()
        loss = sum(model.losses(batch_of(dataset, step=step % n_batches)).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def check_restated(config, model_class):
    assert config["class_path"] == f"{model_class.__module__}.{model_class.__qualname__}"
    names = set(inspect.signature(model_class.__init__).parameters) - {"self", "lr_scheduler"}
    assert set(config["init_args"]) == names, "an overlay keeps same-named values of another model"


@pytest.mark.parametrize("model_class", MODELS)
def test_its_config_restates_every_hyper_parameter(model_class):
    check_restated(config_of(model_class), model_class)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda p: p.stem)
def test_further_configs_of_a_model_restate_too(path):
    config = yaml.safe_load(path.read_text())["model"]
    module, _, name = config["class_path"].rpartition(".")
    check_restated(config, getattr(importlib.import_module(module), name))


def test_every_model_config_has_a_model():
    named = {yaml.safe_load(p.read_text())["model"]["class_path"] for p in CONFIGS.glob("*.yaml")}
    assert named == {f"{c.__module__}.{c.__qualname__}" for c in MODELS}


@pytest.mark.parametrize("model_class", MODELS)
def test_shapes_and_finiteness(model_class, data):
    dataset, features = data
    model = make(model_class, dataset, features).eval()
    user, item = model.encode()
    assert user.shape[0] == dataset.n_users
    assert item.shape[0] == dataset.n_items
    assert user.shape[1] == item.shape[1]
    assert user.isfinite().all()
    assert item.isfinite().all()
    terms = model.train().losses(batch_of(dataset))
    assert all(term.shape == () and bool(term.isfinite()) for term in terms.values())


@pytest.mark.parametrize("model_class", MODELS)
def test_initial_weights_do_not_depend_on_device_or_precision(model_class, data):
    # What Lightning's strategies and precisions set while they call `configure_model`.
    expected = make(model_class, *data)
    with torch.device("meta"):
        moved = make(model_class, *data)
    torch.set_default_dtype(torch.float64)
    try:
        wider = make(model_class, *data)
    finally:
        torch.set_default_dtype(torch.float32)
    for found in (moved, wider):
        assert found.fingerprint() == expected.fingerprint()
        for a, b in zip(found.buffers(), expected.buffers(), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("model_class", MODELS)
def test_eval_encode_is_deterministic_and_pure(model_class, data):
    model = make(model_class, *data).eval()
    before = {n: t.clone() for n, t in [*model.named_parameters(), *model.named_buffers()]}
    first, second = model.encode(), model.encode()
    torch.testing.assert_close(first.user, second.user, rtol=0, atol=0)
    torch.testing.assert_close(first.item, second.item, rtol=0, atol=0)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)


@pytest.mark.parametrize("model_class", MODELS)
def test_encode_is_the_same_in_inference_mode(model_class, data):
    model = make(model_class, *data).eval()
    with torch.no_grad():
        expected = model.encode()
    # As `validate` and `test` run it.
    with torch.inference_mode():
        found = model.encode()
    torch.testing.assert_close(found.user, expected.user, rtol=0, atol=0)
    torch.testing.assert_close(found.item, expected.item, rtol=0, atol=0)


@pytest.mark.parametrize("model_class", TRAINED)
def test_loss_falls_and_every_parameter_learns(model_class, data):
    dataset, features = data
    model = make(model_class, dataset, features)
    losses = train(model, dataset, steps=20)
    assert np.mean(losses[-5:]) < np.mean(losses[:5])
    model.zero_grad()
    sum(model.losses(batch_of(dataset)).values()).backward()
    without = [n for n, p in model.named_parameters() if p.grad is None]
    assert not without, "unused parameters abort distributed training"


@pytest.mark.parametrize("model_class", MODELS)
def test_encode_rows_equals_encode(model_class, data):
    dataset, features = data
    model = make(model_class, dataset, features)
    train(model, dataset, steps=3)
    model.eval()
    users, items = torch.tensor([3, 0, 3, 17]), torch.tensor([5, 5, 29])
    whole, rows = model.encode(), model.encode_rows(users, items)
    torch.testing.assert_close(rows.user, whole.user[users], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(rows.item, whole.item[items], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("model_class", MODELS)
def test_ranking_rows_give_the_scores_of_encode(model_class, data):
    dataset, features = data
    model = make(model_class, dataset, features)
    train(model, dataset, steps=3)
    users = torch.tensor([3, 0, 3, 17])
    whole, rows = model.eval().encode(), model.ranking_rows(users)
    scores = rows.user @ rows.item.T
    assert not scores.requires_grad
    torch.testing.assert_close(scores, whole.user[users] @ whole.item.T, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("model_class", TRAINED)
def test_encode_rows_has_the_gradients_of_encode(model_class, data):
    model = make(model_class, *data).eval()
    users, items = torch.tensor([3, 0, 3, 17]), torch.tensor([5, 5, 29])
    names, parameters = zip(*model.named_parameters(), strict=True)
    gradients = []
    for user, item in (model.encode_rows(users, items), index(model.encode(), users, items)):
        score = (user.sum(0) * item.square().sum(0)).sum()
        gradients.append(torch.autograd.grad(score, parameters, allow_unused=True))
    for name, a, b in zip(names, *gradients, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6, msg=name)


def index(representations, users, items):
    return representations.user[users], representations.item[items]


@pytest.mark.parametrize("model_class", MODELS)
def test_state_dict_round_trip_gives_equal_scores(model_class, data):
    dataset, features = data
    model = make(model_class, dataset, features)
    train(model, dataset, steps=3)
    other = make(model_class, dataset, features)
    other.load_state_dict(model.state_dict())
    a, b = model.eval().encode(), other.eval().encode()
    torch.testing.assert_close(a.user @ a.item.T, b.user @ b.item.T, rtol=0, atol=0)


@pytest.mark.parametrize("model_class", TRAINED)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_losses_run_under_autocast_with_finite_gradients(model_class, data, dtype):
    dataset, features = data
    model = make(model_class, dataset, features).train()
    batch = batch_of(dataset)
    torch.manual_seed(0)
    exact = sum(model.losses(batch).values())
    torch.manual_seed(0)
    with torch.autocast("cpu", dtype=dtype):
        loss = sum(model.losses(batch).values())
    loss.backward()
    assert loss.dtype == torch.float32
    assert float(loss.detach()) == pytest.approx(float(exact.detach()), rel=0.02)
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("model_class", PERSONAL)
def test_checkerboard_every_held_out_item_ranks_first(model_class, data):
    dataset, features = data
    # The class's own defaults: a config's values were tuned on real data, where features mean
    # something.
    narrow = {"embedding_dim": 16} if "embedding_dim" in arguments_of(model_class) else {}
    model = model_class(**narrow)
    model.build_seeded(dataset, features, seed=3)
    train(model, dataset, steps=300)
    user, item = model.eval().encode()
    every = np.arange(dataset.n_users)
    ids, _ = top_k(user.detach(), item.detach(), 1, sparse_rows(dataset.train, every))
    wanted = dataset.val.indices.reshape(-1, 1)
    assert (ids.numpy() == wanted).mean() >= 0.95


@pytest.mark.parametrize("model_class", MODELS)
def test_renumbering_users_and_items_renumbers_scores(model_class, data):
    dataset, features = data
    random = np.random.default_rng(4)
    user_new, item_new = random.permutation(dataset.n_users), random.permutation(dataset.n_items)
    users, items = dataset.train.tocoo().coords
    moved = InteractionDataset.from_edges(
        "moved", dataset.n_users, dataset.n_items, np.stack([user_new[users], item_new[items]])
    )
    back = {"user": np.argsort(user_new), "item": np.argsort(item_new)}
    moved_features = FeatureStore(
        {
            n: Feature(n, f.side, f.group, np.ascontiguousarray(f.values[back[f.side]]))
            for n, f in features.items()
        }
    )
    model, other = make(model_class, dataset, features), make(model_class, moved, moved_features)
    state = model.state_dict()
    # Only tables with one row a user or item are renumbered.
    for name, tensor in state.items():
        for side, count in (("user", dataset.n_users), ("item", dataset.n_items)):
            if tensor.ndim and tensor.shape[0] == count:
                state[name] = tensor[torch.from_numpy(back[side])]
    other.load_state_dict(state)
    for either in (model, other):
        either.refresh()  # what holds ids or is solved for is no table that could be renumbered
    a, b = model.eval().encode(), other.eval().encode()
    torch.testing.assert_close(
        (a.user @ a.item.T)[back["user"]][:, back["item"]], b.user @ b.item.T, rtol=1e-4, atol=1e-5
    )


def named_features(dataset, names):
    random = np.random.default_rng(2)
    return FeatureStore(
        {
            n: Feature(n, "item", "modality", random.normal(size=(dataset.n_items, d)).astype("f4"))
            for d, n in enumerate(names, start=4)
        }
    )


@pytest.mark.parametrize("names", [["poster"], ["items", "type"], ["a", "training", "values"]])
@pytest.mark.parametrize("model_class", TRAINED)
def test_modalities_may_have_any_number_and_any_name(model_class, names):
    dataset = taste_groups()
    features = named_features(dataset, names)
    model, other = (make(model_class, dataset, features) for _ in range(2))
    train(model, dataset, steps=2)
    other.load_state_dict(model.state_dict())
    a, b = model.eval().encode(), other.eval().encode()
    torch.testing.assert_close(a.user @ a.item.T, b.user @ b.item.T, rtol=0, atol=0)
