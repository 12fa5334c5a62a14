"""A store with a planned task, filled without any server."""

import pytest
import yaml
from answered import config_of, simulated
from cli_calls import KEY
from store_rows import row_of, spec_of

from augment.store import Store, add_spec, plan
from llmrec_pl.data.dataset import InteractionDataset
from tests.augment.films import write_films


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "store", create=True, spool_size=65536) as opened:
        yield opened


@pytest.fixture
def planned(store):
    """A store with 20 planned requests; gives (store, spec id, run id)."""
    spec_id, _ = store.do(lambda db: add_spec(db, spec_of(), 0))
    store.do(lambda db: plan(db, spec_id, [row_of(i) for i in range(20)]))
    run = store.do(lambda db: db.execute("INSERT INTO run(t0) VALUES (0)").lastrowid)
    return store, spec_id, run


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """Simulated films, for what is filled by hand with `answered`."""
    return InteractionDataset.load(simulated(tmp_path_factory.mktemp("data") / "films"))


@pytest.fixture
def config(tmp_path, data):
    """A config for them."""
    return config_of(tmp_path, data.root)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty working directory with a data set `films` and a config for it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    write_films(tmp_path / "films")
    config = {
        "dataset": "films",
        "store": "store",
        "out": "out",
        "provider": {"name": "heuristic", "embed_model": "hashing-256", "concurrency": 4},
        "tasks": {"pairs": {"pool": "random", "n_candidates": 5}},
    }
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    return tmp_path
