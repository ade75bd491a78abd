"""UCF101 (Soomro et al., 2012): `UCF-101/<Class>/v_<Class>_gNN_cNN.avi` and `ucfTrainTestlist/`."""

import re

from skd_jax.data.readers.listing import (
    Entry,
    Listing,
    Missing,
    find_lists,
    first_dir,
    is_file,
    join,
    read_lines,
    require_root,
    scan,
    stem,
)
from skd_jax.errors import UserError
from skd_jax.names import unknown

LAYOUT = (
    "UCF-101/<Class>/v_<Class>_gNN_cNN.avi and "
    "ucfTrainTestlist/{classInd,trainlist01,testlist01}.txt"
)


def read(root: str, annotations: str | None, split: int) -> Listing:
    """Reads one of the three official splits.

    The label is the class folder in the list's path, since test lists carry no number; the numbers
    of the train lists are checked against classInd.txt, in which subsets leave gaps.

    Raises:
      UserError: no root or lists, an unknown split, or lists that contradict each other.
    """
    require_root(root, LAYOUT)
    folder, names = find_lists(
        root, annotations, ["ucfTrainTestlist"], r"trainlist\d+\.txt", LAYOUT
    )
    known = [int(re.sub(r"\D", "", name)) for name in names]
    if split not in known:
        raise UserError(f"data.split: UCF101 has no split {split}; {folder} has {known}")
    videos = first_dir([join(root, "UCF-101"), join(root, "UCF101")]) or root
    files = {stem(path): file for path, file in scan(videos).items()}

    numbers = _class_numbers(folder)
    splits, missing, classes = {}, {}, set(numbers)
    for name in ("train", "test"):
        path = join(folder, f"{name}list{split:02d}.txt")
        if not is_file(path):
            raise UserError(f"{path} is absent, but {folder} has other lists of UCF101")
        entries, absent = [], []
        for line in read_lines(path):
            item, *number = line.split()
            class_name, slash, _ = item.rpartition("/")
            if not slash:
                raise UserError(f"{path}: expected '<Class>/<file>.avi', found {line!r}")
            _check_class(path, line, class_name, number, numbers)
            classes.add(class_name)
            video = stem(item)
            id_ = f"{class_name}/{video}"
            if video in files:
                entries.append(Entry(*files[video], id_, class_name, _group(class_name, video)))
            else:
                absent.append(Missing(id_, class_name))
        splits[name], missing[name] = tuple(entries), tuple(absent)
    sources = {name: f"UCF101 {name}list{split:02d}" for name in splits}
    return Listing(tuple(sorted(classes)), splits, sources, missing, number=split)


def _class_numbers(folder: str) -> dict[str, int]:
    path = join(folder, "classInd.txt")
    if not is_file(path):
        return {}
    numbers = {}
    for line in read_lines(path):
        number, _, name = line.partition(" ")
        if not number.isdigit() or not name:
            raise UserError(f"{path}: expected '<number> <Class>', found {line!r}")
        numbers[name.strip()] = int(number)
    return numbers


def _check_class(path, line, class_name, number, numbers) -> None:
    if not numbers:
        return
    if class_name not in numbers:
        raise unknown(f"class in {path}", class_name, numbers)
    if number and number[0] != str(numbers[class_name]):
        raise UserError(
            f"{path}: {line!r} gives another number than classInd.txt's {numbers[class_name]}"
        )


def _group(class_name: str, video: str) -> str:
    """Clips cut from one source video share a group; group numbers mean nothing across classes."""
    match = re.search(r"_g(\d+)_c\d+$", video)
    return f"{class_name}/g{match[1]}" if match else f"{class_name}/{video}"
