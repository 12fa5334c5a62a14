from __future__ import annotations

import collections
import io
import os
import pickle
import pickletools

import numpy as np
import pytest
import scipy.sparse as sp

from llmrec_pl.data.unpickle import load_pickle, loads
from llmrec_pl.errors import DatasetError

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


def same(left, right):
    if isinstance(right, np.ndarray):
        assert type(left) is np.ndarray
        assert left.dtype == right.dtype
        np.testing.assert_array_equal(left, right)
    elif isinstance(right, dict):
        assert list(left) == list(right)
        for key in right:
            same(left[key], right[key])
    elif isinstance(right, list | tuple):
        assert type(left) is type(right)
        assert len(left) == len(right)
        for a, b in zip(left, right, strict=True):
            same(a, b)
    else:
        assert left == right
        assert type(left) is type(right)


ARRAYS = [
    np.arange(6, dtype=np.float32).reshape(2, 3),
    np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    np.arange(3, dtype=">i4"),
    np.zeros((0, 4), dtype=np.float16),
    np.array(["a", "bcd"]),
    np.array([b"x", b"yz"]),
    np.array([True, False]),
    np.array([1 + 2j]),
    np.array(5),
    np.array([[1, "two"], [None, [3.0]]], dtype=object),
]
CONTAINERS = [
    {"0": {0: "Heat", 1: ["a", 2.5, None]}, 7: (1, 2, (3,))},
    {"profile": np.ones(3), "rows": [np.zeros(2), {"deep": np.arange(2)}]},
    [np.float64(1.5), np.int32(7), np.bool_(True)],
    collections.OrderedDict([("b", 1), ("a", 2)]),
    collections.defaultdict(list, {1: [2]}),
    [{1, 2}, frozenset([3]), b"bytes", 2**80, -1.5, True, "\ud800"],
]


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("value", [*ARRAYS, *CONTAINERS], ids=lambda v: repr(v)[:30])
def test_data_come_back_as_they_were(value, protocol):
    data = pickle.dumps(value, protocol)
    # not `value` itself: numpy turns foreign byte orders into native ones up to protocol 4
    same(loads(data, "x"), pickle.loads(data))


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("form", ["csr", "csc", "coo"])
@pytest.mark.parametrize("kind", ["matrix", "array"])
def test_sparse_matrices(form, kind, protocol):
    dense = np.array([[0, 1, 0], [2, 0, 3]], dtype=np.float32)
    matrix = getattr(sp, f"{form}_{kind}")(dense)
    found = loads(pickle.dumps({"m": matrix}, protocol), "x")["m"]
    assert found.format == form
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found.toarray(), dense)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"scipy.sparse._csr", b"scipy.sparse.csr"),
        (b"numpy._core", b"numpy.core"),
        (b"numpy.core", b"numpy._core"),
    ],
)
def test_module_names_of_other_versions(old, new):
    data = pickle.dumps(sp.csr_matrix(np.eye(2)), protocol=0)
    assert old in data or new in data
    # protocol 0 has no length fields, so names can be exchanged
    assert loads(data.replace(old, new), "x").toarray().tolist() == [[1, 0], [0, 1]]


def test_torch_tensors():
    torch = pytest.importorskip("torch")
    tensor = torch.arange(6, dtype=torch.float32).reshape(2, 3).t()
    found = loads(pickle.dumps({"t": tensor}), "x")["t"]
    assert torch.equal(found, tensor)
    assert found.dtype == tensor.dtype


class Call:
    def __init__(self, function, *args):
        self.call = (function, args)

    def __reduce__(self):
        return self.call


def raw(module, name, *args):
    """A protocol 0 pickle that calls any global by name."""
    pushed = b"".join(pickle.dumps(a, 0)[:-1] for a in args)
    return f"c{module}\n{name}\n(".encode() + pushed + b"tR."


HOSTILE = {
    "os.system": pickle.dumps(Call(os.system, "touch owned")),
    "eval": raw("builtins", "eval", "open('owned', 'w')"),
    "python 2 eval": raw("__builtin__", "eval", "open('owned', 'w')"),
    "exec": raw("builtins", "exec", "open('owned', 'w')"),
    "getattr": raw("builtins", "getattr", "x", "join"),
    "import": raw("builtins", "__import__", "os"),
    "dotted": b"\x80\x04\x8c\x05numpy\x8c\x14dtype.__init_subclass\x93.",
    "dotted os": b"\x80\x04\x8c\x05numpy\x8c\x0bcore.os.sys\x93.",
    "walk from an allowed class": b"\x80\x04\x8c\x08builtins\x8c\x10object.__reduce__\x93.",
    "type": raw("builtins", "type", "X"),
    "open": raw("io", "open", "owned", "w"),
    "numpy.load": raw("numpy", "load", "owned"),
    "numpy exec": raw("numpy.testing._private.utils", "runstring", "1", {}),
    "numpy memmap": raw("numpy", "memmap", "owned"),
    "scipy": raw("scipy.sparse", "load_npz", "owned"),
    "torch.load": raw("torch", "load", "owned"),
    "pickle": raw("pickle", "loads", pickle.dumps(Call(os.system, "touch owned"))),
    "copyreg": raw("copyreg", "__newobj__"),
    "functools": raw("functools", "partial", "x"),
    "defaultdict with a call": raw("subprocess", "Popen", ["touch", "owned"]),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pickles_are_refused_and_do_nothing(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DatasetError, match=r"which is not opened|no pickle that can be opened"):
        loads(HOSTILE[name], "evil.pkl")
    assert not list(tmp_path.iterdir())


def test_the_forbidden_global_is_named():
    with pytest.raises(DatasetError, match=r"'evil.pkl' names '(posix|nt).system'"):
        loads(HOSTILE["os.system"], "evil.pkl")


def test_a_pickle_inside_a_torch_storage_is_refused(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    inner = io.BytesIO()
    torch.save(Call(os.system, "touch owned"), inner)
    with pytest.raises(DatasetError):
        loads(raw("torch.storage", "_load_from_bytes", inner.getvalue()), "evil.pkl")
    assert not list(tmp_path.iterdir())


def forge(matrix, **changes):
    state = dict(vars(matrix), **changes)

    class Forged:
        def __reduce__(self):
            return (object.__new__, (type(matrix),), state)

    # `object.__new__` is no allowed global; NEWOBJ is what protocol 2 writes for it
    buffer = io.BytesIO()
    pickler = pickle.Pickler(buffer, 2)
    pickler.dump(type(matrix))
    head = buffer.getvalue()[:-1] + b")\x81"
    return head + pickle.dumps(state, 2)[2:-1].replace(b"\x80\x02", b"") + b"b."


@pytest.mark.parametrize(
    "changes",
    [
        {"indices": np.array([0, 1_000_000], dtype=np.int32)},
        {"indices": np.array([0, -5], dtype=np.int32)},
        {"indptr": np.array([0, 1, 900], dtype=np.int32)},
        {"_shape": (2, 1)},
    ],
)
def test_a_matrix_that_points_outside_itself_is_refused(changes):
    eye = sp.csr_matrix(np.eye(2))
    assert loads(forge(eye), "x").toarray().tolist() == [[1, 0], [0, 1]]
    with pytest.raises(DatasetError):
        loads(forge(eye, **changes), "x")


def test_structured_and_object_dtypes_cannot_forge_pointers():
    record = np.zeros(2, dtype=[("a", "i4"), ("b", "f8")])
    with pytest.raises(DatasetError):
        loads(pickle.dumps(record), "x")
    # raw bytes read as object pointers would crash the interpreter
    objects = raw("numpy.core.multiarray", "scalar", np.dtype("O"), b"A" * 8)
    with pytest.raises(DatasetError):
        loads(objects, "x")
    direct = raw("numpy", "ndarray", (1,), np.dtype("O"), b"A" * 8)
    with pytest.raises(DatasetError):
        loads(direct, "x")


def test_damaged_pickles_are_an_error_not_a_crash():
    data = pickle.dumps({"a": np.arange(10), "m": sp.csr_matrix(np.eye(3))})
    for end in range(0, len(data) - 1, 7):
        with pytest.raises(DatasetError, match=r"'cut\.pkl'"):
            loads(data[:end], "cut.pkl")
    assert pickletools.optimize(data)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DatasetError, match="train_mat"):
        load_pickle(tmp_path / "train_mat")
    path = tmp_path / "ok"
    path.write_bytes(pickle.dumps([1]))
    assert load_pickle(path) == [1]
