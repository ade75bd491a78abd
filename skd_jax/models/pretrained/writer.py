"""State dict -> a file that `torch.load` reads."""

import itertools
import os
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from skd_jax.errors import UserError
from skd_jax.models.pretrained.unpickle import STORAGES

_STORAGE_OF = {dtype: name for name, dtype in STORAGES.items()}
_FOLDER = "archive"


def save_torch(path: str | Path, state_dict: Mapping[str, np.ndarray]) -> None:
    """Writes arrays as `torch.save(state_dict, path)` would, in the zip format of PyTorch >= 1.6.

    `torch.load(path, weights_only=True)` gives {key: tensor}. PyTorch is not needed here. The file
    is written beside `path` and renamed: a file with that name is complete.

    Args:
      path: of the file; one that exists is replaced.
      state_dict: {key: array} of float, integer or bool dtype.

    Raises:
      UserError: an array is of a dtype that PyTorch's storages do not have, or the file cannot be
        written.
    """
    path = Path(path)
    arrays = {key: _plain(key, value) for key, value in state_dict.items()}
    part = path.with_name(path.name + ".part")
    try:
        with zipfile.ZipFile(part, "w", zipfile.ZIP_STORED) as archive:

            def write(name, data):
                # A fixed date: the same weights make the same file.
                archive.writestr(zipfile.ZipInfo(f"{_FOLDER}/{name}", (1980, 1, 1, 0, 0, 0)), data)

            write("data.pkl", _pickle(arrays))
            write("byteorder", b"little")
            for number, array in enumerate(arrays.values()):
                write(f"data/{number}", array.tobytes())
            write("version", b"3\n")
        os.replace(part, path)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        part.unlink(missing_ok=True)


def _plain(key: str, value: np.ndarray) -> np.ndarray:
    array = np.asarray(value)
    array = array.astype(array.dtype.newbyteorder("<"), order="C", copy=False)
    if array.dtype not in _STORAGE_OF:
        raise UserError(f"{key} is of dtype {array.dtype}, for which PyTorch has no storage")
    return array


def _pickle(arrays: Mapping[str, np.ndarray]) -> bytes:
    """The pickle, put together by hand: `pickle` writes no global that it cannot import."""
    parts = [pickle.PROTO, b"\x02", pickle.EMPTY_DICT, pickle.MARK]
    for number, (key, array) in enumerate(arrays.items()):
        strides = tuple(stride // array.itemsize for stride in array.strides)
        parts += [
            _value(key),
            _global("torch._utils", "_rebuild_tensor_v2"),
            pickle.MARK,
            # The persistent id of the storage.
            pickle.MARK,
            _value("storage"),
            _global("torch", _STORAGE_OF[array.dtype]),
            _value(str(number)),
            _value("cpu"),
            _value(array.size),
            pickle.TUPLE,
            pickle.BINPERSID,
            # Offset, size, strides, requires_grad, hooks.
            _value(0),
            _value(array.shape),
            _value(strides),
            pickle.NEWFALSE,
            _global("collections", "OrderedDict"),
            pickle.EMPTY_TUPLE,
            pickle.REDUCE,
            pickle.TUPLE,
            pickle.REDUCE,
        ]
    return b"".join(itertools.chain(parts, [pickle.SETITEMS, pickle.STOP]))


def _value(value: str | int | tuple[int, ...]) -> bytes:
    """Pickle of a plain value without its frame, the protocol's two bytes and the final stop."""
    return pickle.dumps(value, protocol=2)[2:-1]


def _global(module: str, name: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()
