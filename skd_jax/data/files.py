"""Files on a disk or in an object store that appear whole or not at all."""

import contextlib
import json
import os
import pathlib
import shutil
import socket
import tempfile
from collections.abc import Iterator
from typing import BinaryIO

from etils import epath

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_INCOMPLETE = ".incomplete"


def is_remote(path: epath.PathLike) -> bool:
    """Whether the path is an object store's (gs://...), where no rename is atomic."""
    return "://" in os.fspath(path)


@contextlib.contextmanager
def staged(path: epath.PathLike) -> Iterator[BinaryIO]:
    """Yields a local file to write, whose content appears at `path` on a clean exit, else not.

    On a file system the file lies beside `path` and is renamed. Object stores have no rename that
    is atomic, but there an object appears only when its upload has ended.
    """
    path = epath.Path(path)
    if not is_remote(path):
        name = f"{_INCOMPLETE}-{socket.gethostname()}-{os.getpid()}-{path.name}"
        temporary = pathlib.Path(path.parent) / name
        try:
            with _open_locked(temporary) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())  # some network disks report that they are full only here
                os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    else:
        with tempfile.TemporaryFile() as file:
            yield file
            file.seek(0)
            with path.open("wb") as target:
                shutil.copyfileobj(file, target, 2**24)


def _open_locked(path: pathlib.Path) -> BinaryIO:
    """Opens a file under a lock that ends with the process and tells others that it is in use."""
    while True:
        file = path.open("wb")
        if fcntl is None:
            return file
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file.fileno()).st_nlink:
            return file
        file.close()  # `remove_abandoned` came between opening and locking


def remove_abandoned(root: epath.PathLike) -> None:
    """Removes what ended processes of this host left unfinished; other hosts may not see locks."""
    if is_remote(root) or fcntl is None:
        return
    for path in pathlib.Path(root).glob(f"{_INCOMPLETE}-{socket.gethostname()}-*"):
        # An OSError: it is in use, or renamed meanwhile.
        with contextlib.suppress(OSError), path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()


def write_bytes(path: epath.PathLike, data: bytes) -> None:
    """Writes a small file atomically."""
    with staged(path) as file:
        file.write(data)


def write_json(path: epath.PathLike, value: dict) -> None:
    """Writes a JSON file atomically, in the order of its keys."""
    write_bytes(path, json.dumps(value, indent=1).encode() + b"\n")
