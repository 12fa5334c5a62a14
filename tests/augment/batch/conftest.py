"""An account with a Batch API on loopback, and a job that uses it."""

import pytest

from tests.augment.batch_job import KEY, KEY_ENV, USERS, Job
from tests.augment.batch_server import Account
from tests.augment.fault_server import FaultServer
from tests.augment.films import write_films


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    return write_films(tmp_path_factory.mktemp("films") / "data", users=USERS)


@pytest.fixture
def account():
    return Account()


@pytest.fixture
def server(account):
    with FaultServer(routes=account) as running:
        yield running


@pytest.fixture
def job(tmp_path, films, account, server, monkeypatch):
    monkeypatch.setenv(KEY_ENV, KEY)
    return Job(tmp_path, films, account, server.url)
