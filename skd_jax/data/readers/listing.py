"""What every reader gives, and the few file operations they share."""

import dataclasses
import os
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from etils import epath

from skd_jax.data.decode import VIDEO_SUFFIXES
from skd_jax.data.files import is_remote
from skd_jax.errors import UserError

_MAX_DEPTH = 8  # Links are followed; this ends a circle of them.


class File(NamedTuple):
    """A video file below a root: its path, and its size in bytes (-1 where unknown)."""

    path: str
    size: int


class Entry(NamedTuple):
    """A video that a data set names and the disk holds."""

    path: str
    size: int
    id: str
    class_name: str
    group: str


class Missing(NamedTuple):
    """A video that a data set names and the disk lacks."""

    id: str
    class_name: str


@dataclasses.dataclass(frozen=True)
class Listing:
    """A data set as its own files describe it, before any class is left out or any video held out.

    Attributes:
      class_names: every class the data set knows.
      splits: "train" and, where the data set has them, "validation" and "test".
      missing: per split, what is named but not on disk.
      sources: per split, where it comes from, in words for a person.
      notes: warnings for the user.
      draw_test: whether a test split should be drawn from "train", there being none.
      number: of the official split that was read, where there are several.
    """

    class_names: tuple[str, ...]
    splits: Mapping[str, tuple[Entry, ...]]
    sources: Mapping[str, str]
    missing: Mapping[str, tuple[Missing, ...]] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()
    draw_test: bool = False
    number: int | None = None


def join(root: str, *parts: str) -> str:
    """Path below a local or remote root."""
    return "/".join([root.rstrip("/"), *parts]) if is_remote(root) else os.path.join(root, *parts)


def is_dir(path: str) -> bool:
    """Whether a local or remote folder exists."""
    return epath.Path(path).is_dir() if is_remote(path) else os.path.isdir(path)


def is_file(path: str) -> bool:
    """Whether a local or remote file exists."""
    return epath.Path(path).is_file() if is_remote(path) else os.path.isfile(path)


def names_in(folder: str) -> list[str]:
    """Sorted names of what a folder holds; none if there is no such folder."""
    if not is_dir(folder):
        return []
    names = os.listdir(folder) if not is_remote(folder) else epath.Path(folder).listdir()
    return sorted(map(str, names))


def read_lines(path: str) -> list[str]:
    """Lines of a text file without surrounding white space (CRLF, blanks); no empty ones."""
    # Bytes that are no UTF-8 become what `os.listdir` makes of them, so that names still match.
    text = epath.Path(path).read_bytes().decode("utf-8-sig", errors="surrogateescape")
    return [stripped for line in text.splitlines() if (stripped := line.strip())]


def scan(root: str) -> dict[str, File]:
    """Video files below a folder: POSIX path relative to it -> File, sorted; no hidden ones."""
    found: dict[str, File] = {}
    if is_remote(root):
        start = root.rstrip("/") + "/"
        for folder, _, names in epath.Path(root).walk():
            for name in names:
                path = join(os.fspath(folder), name)
                relative = path.removeprefix(start)
                if _is_video(name) and not any(p.startswith(".") for p in relative.split("/")):
                    found[relative] = File(path, -1)
    else:
        _scan_local(root, "", 0, found)
    return dict(sorted(found.items()))


def _scan_local(folder: str, prefix: str, depth: int, found: dict[str, File]) -> None:
    with os.scandir(folder) as items:
        for item in items:
            if item.name.startswith("."):  # Also the `._name` files that macOS leaves behind.
                continue
            if item.is_dir():
                if depth < _MAX_DEPTH:
                    _scan_local(item.path, f"{prefix}{item.name}/", depth + 1, found)
            elif _is_video(item.name) and item.is_file():
                found[prefix + item.name] = File(item.path, item.stat().st_size)


def _is_video(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in VIDEO_SUFFIXES and not name.startswith(".")


def stem(path: str) -> str:
    """File name without folders and without a video's extension."""
    name = path.rsplit("/", 1)[-1]
    base, suffix = os.path.splitext(name)
    return base if suffix.lower() in VIDEO_SUFFIXES else name


def printable(text: str) -> str:
    """The text with bytes that are no UTF-8 written as escapes, so that it can be stored."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def first_dir(candidates: Iterable[str]) -> str | None:
    """The first of the folders that exists."""
    return next((folder for folder in candidates if is_dir(folder)), None)


def require_root(root: str, layout: str) -> None:
    """Raises UserError, saying what layout is expected, unless the folder exists."""
    if not is_dir(root):
        raise UserError(f"data.root: there is no folder {root}. Expected there: {layout}")


def find_lists(
    root: str, annotations: str | None, folders: Iterable[str], pattern: str, layout: str
) -> tuple[str, list[str]]:
    """Folder holding annotation files, and the names of those that match.

    Looks in `annotations` and its `folders`; where None, in the root, beside it, and in theirs.

    Raises:
      UserError: none is found; says where it looked.
    """
    bases = [annotations] if annotations else [root, os.path.dirname(root.rstrip("/"))]
    places = [place for base in bases for place in (base, *(join(base, f) for f in folders))]
    for place in places:
        names = [name for name in names_in(place) if re.fullmatch(pattern, name)]
        if names:
            return place, names
    looked = ", ".join(places)
    raise UserError(
        f"no annotation lists found; looked in {looked}. Expected: {layout}. "
        "Set data.annotations to the folder that holds the lists"
    )
