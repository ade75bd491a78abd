"""PyTorch's pickles without PyTorch, and without running anything that a pickle may name.

A pickle is a program that can call whatever it can import. Here it can import nothing: every global
it asks for comes from the table below, whose entries only put tensors and containers together;
any other ends the reading. What training scripts store beside the weights and nobody needs (their
argparse options, NumPy's arrays) becomes an empty placeholder.
"""

import collections
import dataclasses
import pickle
from collections.abc import Callable
from typing import Any, BinaryIO

import jax.numpy as jnp
import numpy as np

from skd_jax.errors import UserError

# Little-endian, as PyTorch stores them on the usual machines.
STORAGES: dict[str, np.dtype] = {
    "FloatStorage": np.dtype("<f4"),
    "DoubleStorage": np.dtype("<f8"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype(jnp.bfloat16),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}

_SKIPPED = {
    ("argparse", "Namespace"),
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "scalar"),
    ("_codecs", "encode"),
    ("torch", "device"),
}


@dataclasses.dataclass
class Storage:
    """A flat run of numbers that tensors are views of.

    Attributes:
      dtype, numel: of the whole.
      read: gives the whole, shape (numel,).
    """

    dtype: np.dtype
    numel: int
    read: Callable[[], np.ndarray]


@dataclasses.dataclass
class Tensor:
    """A view of a storage, read when asked for.

    Attributes:
      storage: what holds the numbers.
      offset: of the first, in numbers.
      shape, strides: strides in numbers.
    """

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def array(self) -> np.ndarray:
        """A copy of the numbers, in C order.

        Raises:
          ValueError: it reaches beyond the storage.
        """
        steps = [*zip(self.shape, self.strides, strict=True)]
        last = self.offset + sum((size - 1) * stride for size, stride in steps)
        if self.offset < 0 or any(size < 0 or stride < 0 for size, stride in steps):
            raise ValueError("a tensor with a negative size, stride or offset")
        if 0 in self.shape:
            return np.zeros(self.shape, self.storage.dtype)
        if last >= self.storage.numel:
            raise ValueError("a tensor that reaches beyond its storage")
        flat = self.storage.read()[self.offset :]
        size = flat.dtype.itemsize
        strides = tuple(stride * size for stride in self.strides)
        view = np.lib.stride_tricks.as_strided(flat, self.shape, strides, writeable=False)
        return np.array(view, order="C")


class Unpickler(pickle.Unpickler):
    """Reads one pickle of PyTorch's; tensors come out as `Tensor`.

    Args:
      file: at the pickle's beginning.
      source: names the file in errors.
      storage: gives the `Storage` of a persistent id without its leading "storage":
        (name of the storage type, key, location, number of elements, ...).
    """

    def __init__(self, file: BinaryIO, source: str, storage: Callable[..., Storage] | None = None):
        # PyTorch's own default; pickles of Python 2 hold byte strings.
        super().__init__(file, encoding="utf-8")
        self._source = source
        self._storage = storage
        self._globals = _globals()

    def find_class(self, module: str, name: str) -> Any:
        """What a pickle's global stands for here; never an import."""
        found = self._globals.get((module, name))
        if found is None:
            raise UserError(
                f"{self._source} refused: it asks for {module}.{name}, which a state dict does not "
                "need; no arbitrary pickle is executed. If you trust the file, save its state dict "
                "alone with PyTorch: torch.save(model.state_dict(), ...)"
            )
        return found

    def persistent_load(self, pid: Any) -> Storage:
        """The storage of a tensor."""
        if self._storage is None or not isinstance(pid, tuple) or pid[0] != "storage":
            raise pickle.UnpicklingError(f"unknown persistent id {str(pid)[:80]}")
        return self._storage(*pid[1:])


def _globals() -> dict[tuple[str, str], Any]:
    """The table, made anew for each pickle: a pickle can set attributes of what it is given."""

    def rebuild_tensor(storage, offset, shape, strides, *rest):
        if not isinstance(storage, Storage):
            raise pickle.UnpicklingError("a tensor without storage")
        return Tensor(storage, int(offset), tuple(map(int, shape)), tuple(map(int, strides)))

    def rebuild_parameter(tensor, *rest):
        return tensor

    class Dict(dict):
        """Stands for subclasses of dict, whatever other arguments they take."""

        def __init__(self, *args):
            super().__init__(*(arg for arg in args if isinstance(arg, dict)))

    class Skipped:
        """Stands for what is not needed."""

        def __init__(self, *args):
            pass

        def __setstate__(self, state):
            pass

    table = {
        ("torch._utils", "_rebuild_tensor"): rebuild_tensor,  # before PyTorch 0.4
        ("torch._utils", "_rebuild_tensor_v2"): rebuild_tensor,
        ("torch._utils", "_rebuild_parameter"): rebuild_parameter,
        ("torch", "Size"): tuple,
        ("collections", "OrderedDict"): collections.OrderedDict,
        ("collections", "defaultdict"): Dict,
        ("collections", "Counter"): Dict,
    }
    for module in ("builtins", "__builtin__"):
        table |= {(module, kind.__name__): kind for kind in (dict, list, set, tuple)}
    table |= {("torch", name): name for name in STORAGES}
    return table | dict.fromkeys(_SKIPPED, Skipped)
