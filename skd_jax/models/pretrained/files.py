"""Checkpoint files -> state dict."""

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from skd_jax.errors import UserError
from skd_jax.models.pretrained.state_dict import unwrap
from skd_jax.models.pretrained.unpickle import STORAGES, Storage, Tensor, Unpickler

# First pickle of the format before PyTorch 1.6, which torchvision's older files are in.
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


def load_state_dict(path: str | Path) -> dict[str, np.ndarray]:
    """The state dict in a checkpoint: .safetensors, or what `torch.save` wrote (.pth, .pt, .pyth).

    PyTorch is not needed, and no arbitrary pickle is executed. A state dict under "state_dict",
    "model_state" or "model" is taken out; what else is there (epoch, optimiser) is left.

    Args:
      path: of the file.

    Returns:
      {key: array} of the dtypes stored; bfloat16 is `jnp.bfloat16`.

    Raises:
      UserError: the file is absent, damaged, of another kind, without state dict, or its pickle
        asks for anything that tensors and containers do not need.
    """
    path = Path(path)
    try:
        if path.suffix == ".safetensors":
            return _safetensors(path)
        with path.open("rb") as file:
            content = _zip(file, path) if zipfile.is_zipfile(file) else _legacy(file, path)
            return _arrays(content, path)
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # pickle, zipfile and safetensors raise many kinds
        raise UserError(
            f"{path} is truncated or damaged, or no checkpoint of PyTorch "
            f"({type(error).__name__}: {str(error)[:200]}); download it again or check the path"
        ) from error


def _safetensors(path: Path) -> dict[str, np.ndarray]:
    # Here, since it is needed by this kind of file alone.
    from safetensors.numpy import load_file

    return load_file(path)


def _arrays(content: Any, path: Path) -> dict[str, np.ndarray]:
    state_dict = unwrap(content) if isinstance(content, Mapping) else {}
    others = [key for key, value in state_dict.items() if not isinstance(value, Tensor)]
    if others or not state_dict:
        has = f"its keys: {', '.join(map(str, others[:10]))}" if others else type(content).__name__
        raise UserError(
            f"{path} holds no state dict ({has}); one is expected at the top or under "
            "'state_dict', 'model_state' or 'model'"
        )
    return {str(key): tensor.array() for key, tensor in state_dict.items()}


def _zip(file: BinaryIO, path: Path) -> Any:
    """The format since PyTorch 1.6: NAME/data.pkl, and each storage as NAME/data/KEY."""
    archive = zipfile.ZipFile(file)
    pickles = [name for name in archive.namelist() if name.endswith("data.pkl")]
    if len(pickles) != 1:
        raise UserError(f"{path} is a zip archive, but not one of PyTorch (no data.pkl in it)")
    folder = pickles[0].removesuffix("data.pkl")
    if f"{folder}constants.pkl" in archive.namelist():
        raise UserError(
            f"{path} is a TorchScript program; save its state_dict() alone and give that"
        )
    big = (
        f"{folder}byteorder" in archive.namelist()
        and archive.read(f"{folder}byteorder").strip() == b"big"
    )

    def storage(kind, key, location, numel, *rest):
        dtype = STORAGES[kind]

        def read():
            stored = dtype.newbyteorder(">") if big else dtype
            data = np.frombuffer(archive.read(f"{folder}data/{key}"), stored)
            if len(data) < numel:
                raise ValueError(f"storage {key} is too short")
            return data.astype(dtype, copy=False)

        return Storage(dtype, numel, read)

    with archive.open(pickles[0]) as stream:
        return Unpickler(stream, str(path), storage).load()


def _legacy(file: BinaryIO, path: Path) -> Any:
    """The format before PyTorch 1.6: five pickles, then the storages in the order of the last.

    Magic number, version, description of the machine, the content, keys of the storages; then for
    each storage an int64 count and the numbers, little-endian on any machine.
    """
    file.seek(0)
    storages: dict[str, Storage] = {}
    numbers: dict[str, np.ndarray] = {}

    def storage(kind, key, location, numel, view=None):
        dtype = STORAGES[kind]
        whole = storages.setdefault(key, Storage(dtype, numel, lambda: numbers[key]))
        if view is None:
            return whole
        _, offset, size = view
        if offset < 0 or offset + size > numel:
            raise ValueError(f"a view that reaches beyond storage {key}")
        return Storage(dtype, size, lambda: numbers[key][offset : offset + size])

    if Unpickler(file, str(path)).load() != _LEGACY_MAGIC:
        raise pickle.UnpicklingError("the magic number is another")
    for _ in ("version", "machine"):
        Unpickler(file, str(path)).load()
    content = Unpickler(file, str(path), storage).load()
    for key in Unpickler(file, str(path)).load():
        count = np.frombuffer(file.read(8), "<i8")[0]
        stored = storages[key]
        if count != stored.numel:
            raise ValueError(f"storage {key} has {count} numbers, {stored.numel} are announced")
        data = file.read(int(count) * stored.dtype.itemsize)
        numbers[key] = np.frombuffer(data, stored.dtype, count)
    return content
