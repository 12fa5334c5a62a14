"""Open pickles of others without running their code.

Unpickling calls whatever the file names. Here it can name only numpy arrays, scipy sparse
matrices, torch tensors and builtin containers, and even those are rebuilt by functions of this
file: numpy's own ``dtype.__setstate__`` trusts flags in the file, and torch's
``_load_from_bytes`` is a full unpickler. Guards against code, not against a file that asks for
more memory than there is.
"""

from __future__ import annotations

import collections
import io
import pickle
import re
from typing import TYPE_CHECKING, Any

import numpy as np

from llmrec_pl.errors import DatasetError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_DTYPE = re.compile(r"[|<>=]?(?:[?bBhHiIlLqQefdgFD]|[biufc]\d{1,2}|[SUV]\d*|O8?)")


def load_pickle(path: Path) -> Any:  # noqa: ANN401 - a pickle holds what it holds
    """Open a pickle file.

    Args:
        path: the file.

    Returns:
        Its content: arrays as ``np.ndarray``, sparse matrices as ``csr_array`` and the like,
        tensors as CPU tensors.

    Raises:
        DatasetError: the file cannot be read, is damaged, or names something that is not allowed.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DatasetError(f"cannot read {str(path)!r}: {error.strerror}.") from error
    return loads(data, str(path))


def loads(data: bytes, where: str) -> Any:  # noqa: ANN401
    """Open the bytes of a pickle; as `load_pickle`.

    Args:
        data: the pickle.
        where: the file, for messages.

    Raises:
        DatasetError: it is damaged, or names something that is not allowed.
    """
    try:
        return _plain(_Unpickler(data, where).load())
    except DatasetError:
        raise
    except Exception as error:
        # a damaged pickle can raise nearly every error there is
        raise DatasetError(
            f"{where!r} is no pickle that can be opened ({type(error).__name__}: {error}). It is "
            "damaged or of another format; fetch it again."
        ) from error


class _Unpickler(pickle.Unpickler):
    """An unpickler whose only globals are those of ``_ALLOWED`` and two of torch."""

    def __init__(self, data: bytes, where: str) -> None:
        super().__init__(io.BytesIO(data), encoding="latin1")  # so that Python 2 arrays load
        self._where = where

    def find_class(self, module: str, name: str) -> Any:  # noqa: ANN401
        """Look a global up by its exact name; dotted names are never walked.

        Raises:
            DatasetError: it is not allowed.
        """
        found = _ALLOWED.get((_canonical_module(module), name))
        if found is not None:
            return found
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _torch_tensor
        if (module, name) == ("torch.storage", "_load_from_bytes"):
            return _torch_storage
        raise DatasetError(
            f"pickle {self._where!r} names {f'{module}.{name}'!r}, which is not opened: only numpy "
            "arrays, scipy sparse matrices, torch tensors and builtin containers are allowed. If "
            "you trust the file, load it yourself and save it as .npy, .npz or .json."
        )


def _canonical_module(module: str) -> str:
    """Map the names of numpy 2, new scipy and Python 2 to the ones of ``_ALLOWED``."""
    module = {"__builtin__": "builtins", "copy_reg": "copyreg"}.get(module, module)
    module = module.replace("numpy._core", "numpy.core")
    return re.sub(r"^scipy\.sparse(\._?(csr|csc|coo))?$", "scipy.sparse", module)


class _Dtype:
    """A dtype under construction: only plain ones, without fields."""

    def __init__(self, code: str, align: object = False, copy: object = True) -> None:
        if not isinstance(code, str) or not _DTYPE.fullmatch(code):
            raise pickle.UnpicklingError(f"dtype {code!r} is not allowed")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if any(part is not None for part in state[2:5]) or len(state) > 8:
            raise pickle.UnpicklingError("structured dtypes are not allowed")
        if state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])


class _NdArray:
    """Stands for ``numpy.ndarray``, which a pickle may name but not call."""

    def __new__(cls) -> _NdArray:
        raise pickle.UnpicklingError("numpy.ndarray may not be called")


class _Array(np.ndarray[Any, Any]):
    """An array under construction; `_plain` turns it into an ``np.ndarray``."""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        version, shape, dtype, fortran, raw = state
        super().__setstate__((version, shape, dtype.dtype, fortran, raw))


def _reconstruct(kind: object, shape: object, code: object) -> _Array:
    """Stand in for ``numpy.core.multiarray._reconstruct``: an empty array for ``__setstate__``."""
    return np.zeros(0, dtype=np.int8).view(_Array)


def _from_buffer(buffer: Any, dtype: _Dtype, shape: Any, order: Any) -> np.ndarray[Any, Any]:  # noqa: ANN401
    """Stand in for ``numpy.core.numeric._frombuffer`` of protocol 5."""
    return np.frombuffer(buffer, dtype=dtype.dtype).reshape(shape, order=order)


def _scalar(dtype: _Dtype, raw: bytes | str) -> Any:  # noqa: ANN401
    """Stand in for ``numpy.core.multiarray.scalar``."""
    data = raw.encode("latin1") if isinstance(raw, str) else raw
    return np.frombuffer(data, dtype=dtype.dtype)[0]


def _encode(text: str, encoding: str) -> bytes:
    """Stand in for ``_codecs.encode``, which old protocols use for bytes."""
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"encoding {encoding!r} is not allowed")
    return text.encode("latin1")


class _Sparse:
    """The state of a sparse matrix; `_plain` checks it and makes the matrix."""

    form = ""


class _Csr(_Sparse):
    form = "csr"


class _Csc(_Sparse):
    form = "csc"


class _Coo(_Sparse):
    form = "coo"


def _new_object(cls: type, base: type, state: object) -> object:
    """Stand in for ``copyreg._reconstructor`` of protocols 0 and 1."""
    if not issubclass(cls, _Sparse) or base is not object or state is not None:
        raise pickle.UnpicklingError(f"{cls.__name__} may not be made from {base.__name__}")
    return cls()


def _torch_storage(data: bytes) -> Any:  # noqa: ANN401
    """Stand in for ``torch.storage._load_from_bytes``, with torch's restricted unpickler."""
    import torch

    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def _torch_tensor(storage: Any, offset: int, size: Any, stride: Any, *_: object) -> Any:  # noqa: ANN401
    """Stand in for ``torch._utils._rebuild_tensor_v2``; hooks and gradients are left out."""
    import torch

    typed = torch.tensor([], dtype=storage.dtype)
    return typed.set_(storage._untyped_storage, offset, torch.Size(size), tuple(stride))


_SPARSE = {f"{c.form}_{kind}": c for c in (_Csr, _Csc, _Coo) for kind in ("matrix", "array")}
_ALLOWED: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "dtype"): _Dtype,
    ("numpy", "ndarray"): _NdArray,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy.core.numeric", "_frombuffer"): _from_buffer,
    ("_codecs", "encode"): _encode,
    ("copyreg", "_reconstructor"): _new_object,
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("collections", "defaultdict"): collections.defaultdict,
    **{("scipy.sparse", name): stub for name, stub in _SPARSE.items()},
    **{
        ("builtins", kind.__name__): kind
        for kind in (
            object,
            bool,
            int,
            float,
            complex,
            str,
            bytes,
            list,
            tuple,
            dict,
            set,
            frozenset,
        )
    },
}


def _plain(value: Any) -> Any:  # noqa: ANN401
    """Replace what is under construction by arrays and matrices, through all containers."""
    if isinstance(value, _Array):
        array = value.view(np.ndarray)
        if array.dtype.hasobject:
            for place in np.ndindex(array.shape):
                array[place] = _plain(array[place])
        return array
    if isinstance(value, _Dtype):
        return value.dtype
    if isinstance(value, _Sparse):
        return _sparse(value)
    if isinstance(value, dict):
        for key in value:
            value[key] = _plain(value[key])
        return value
    if isinstance(value, list):
        value[:] = [_plain(part) for part in value]
        return value
    if type(value) is tuple:
        return tuple(_plain(part) for part in value)
    return value


def _sparse(stub: _Sparse) -> Any:  # noqa: ANN401
    """Make the matrix and check its indices: scipy's C code trusts them."""
    import scipy.sparse as sp

    state = {key: _plain(part) for key, part in vars(stub).items()}
    shape = state.get("_shape")
    if stub.form == "coo":
        rows, columns = state["coords"] if "coords" in state else (state["row"], state["col"])
        return sp.coo_array((state["data"], (rows, columns)), shape=shape)
    kind = sp.csr_array if stub.form == "csr" else sp.csc_array
    matrix = kind((state["data"], state["indices"], state["indptr"]), shape=shape)
    matrix.check_format(full_check=True)
    return matrix
