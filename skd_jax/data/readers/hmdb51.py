"""HMDB51 (Kuehne et al., 2011): `<class>/*.avi` and `<class>_test_split{1,2,3}.txt`."""

import re

from skd_jax.data.readers.listing import (
    Entry,
    Listing,
    Missing,
    find_lists,
    first_dir,
    join,
    printable,
    read_lines,
    require_root,
    scan,
    stem,
)
from skd_jax.errors import UserError

LAYOUT = "<class>/<video>.avi and <class>_test_split1.txt in testTrainMulti_7030_splits/"
_FOLDERS = ("testTrainMulti_7030_splits", "hmdb51_splits", "test_train_splits", "splits")
_SPLIT_OF_FLAG = {"1": "train", "2": "test"}  # 0: in neither.


def read(root: str, annotations: str | None, split: int) -> Listing:
    """Reads one of the three official splits.

    Raises:
      UserError: no root or lists, an unknown split, or a line that is not `<video> <0|1|2>`.
    """
    require_root(root, LAYOUT)
    folder, names = find_lists(root, annotations, _FOLDERS, r".+_test_split\d+\.txt", LAYOUT)
    suffix = f"_test_split{split}.txt"
    lists = [name for name in names if name.endswith(suffix)]
    if not lists:
        known = sorted({int(re.search(r"(\d+)\.txt$", name)[1]) for name in names})
        raise UserError(f"data.split: HMDB51 has no split {split}; {folder} has {known}")
    videos = first_dir([join(root, "hmdb51_org"), join(root, "videos")]) or root
    files = {}
    for path, file in scan(videos).items():
        parent = path.split("/")[-2] if "/" in path else ""
        files[parent, stem(path)] = file

    classes = tuple(sorted(name.removesuffix(suffix) for name in lists))
    splits = {"train": [], "test": []}
    missing = {"train": [], "test": []}
    for class_name in classes:
        path = join(folder, class_name + suffix)
        for line in read_lines(path):
            item, _, flag = line.rpartition(" ")
            if flag not in ("0", "1", "2") or not item:
                raise UserError(f"{path}: expected '<video>.avi <0, 1 or 2>', found {line!r}")
            if flag == "0":
                continue
            video = stem(item.strip())
            name = _SPLIT_OF_FLAG[flag]
            id_ = printable(f"{class_name}/{video}")
            file = files.get((class_name, video))
            if file is None:
                missing[name].append(Missing(id_, class_name))
            else:
                group = printable(source_of(video, class_name))
                splits[name].append(Entry(*file, id_, class_name, group))
    return Listing(
        classes,
        {name: tuple(entries) for name, entries in splits.items()},
        {name: f"HMDB51 split {split} {name}" for name in splits},
        {name: tuple(items) for name, items in missing.items()},
        number=split,
    )


def source_of(video: str, class_name: str) -> str:
    """The film or clip that a video was cut from: its name before `_<class>_`.

    Films occur in many classes; a film is one group in all of them.
    """
    head, found, _ = video.rpartition(f"_{class_name}_")
    return head if found and head else video
