"""Class folders: `train/<class>/...` with `val/` and `test/`, or just `<class>/...`."""

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping

from skd_jax.data.readers.listing import (
    Entry,
    File,
    Listing,
    printable,
    require_root,
    scan,
)
from skd_jax.errors import UserError
from skd_jax.names import unknown

LAYOUT = (
    "train/<class>/<video> and, optionally, val/<class>/<video> and test/<class>/<video>; "
    "or <class>/<video> alone, from which test and validation are drawn"
)
SPLIT_FOLDERS = {
    "train": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}


def read(root: str, annotations: str | None, split: int) -> Listing:
    """Reads a folder of one's own. Every video is its own group; a groups csv may say otherwise.

    Raises:
      UserError: no root, no videos in class folders, or a class without training videos.
    """
    del annotations, split
    require_root(root, LAYOUT)
    return read_class_folders(root, scan(root))


def read_class_folders(
    root: str, files: Mapping[str, File], class_of: Callable[[str], str] = str
) -> Listing:
    """Sorts files into splits and classes by the folders they lie in (see `LAYOUT`).

    Args:
      root: the scanned folder.
      files: what `scan(root)` found.
      class_of: name of a class folder -> name of the class.

    Raises:
      UserError: no videos in class folders, or a class without training videos.
    """
    # A folder is a split only if it holds class folders: "train" may also be a class of vehicles.
    divided = {path.split("/")[0] for path in files if path.count("/") >= 2}
    split_folders = sorted(divided & SPLIT_FOLDERS.keys())
    whole = os.path.basename(root.rstrip("/"))
    if "train" in split_folders:
        wanted = {name: SPLIT_FOLDERS[name] for name in split_folders}
        sources = {split: f"folder {whole}/{name}" for name, split in wanted.items()}
    elif split_folders and divided <= SPLIT_FOLDERS.keys():
        raise UserError(f"{root} has {split_folders[0]}/ but no train/. Expected: {LAYOUT}")
    else:
        wanted, sources = None, {"train": f"folder {whole}"}

    names = Counter(os.path.splitext(path)[0] for path in files)
    splits, stray = defaultdict(list), []
    for path, file in files.items():
        *folders, _ = path.split("/")
        if wanted is None:
            split, class_name = "train", folders[0] if folders else None
        else:
            split = wanted.get(folders[0]) if folders else None
            class_name = folders[1] if len(folders) > 1 else None
        if split is None or class_name is None:
            stray.append(path)
            continue
        bare = os.path.splitext(path)[0]
        id_ = printable(bare if names[bare] == 1 else path)
        splits[split].append(Entry(*file, id_, class_of(printable(class_name)), id_))
    if not splits["train"]:
        raise UserError(f"no videos in class folders below {root}. Expected: {LAYOUT}")

    classes = {entry.class_name for entry in splits["train"]}
    for split, entries in splits.items():
        extra = sorted({entry.class_name for entry in entries} - classes)
        if extra:
            raise unknown(f"class in {sources[split]} but not in train", extra[0], classes)
    notes = ()
    if stray:
        notes = (
            (
                f"{len(stray)} videos lie in no class folder of a split and are left out "
                f"(first: {printable(stray[0])})"
            ),
        )
    return Listing(
        tuple(sorted(classes)),
        {name: tuple(entries) for name, entries in splits.items()},
        sources,
        notes=notes,
        draw_test=wanted is None,
    )
