"""Kinetics-400, -600 and -700 (Kay et al., 2017; Carreira et al., 2018, 2019).

Annotations are csv files `label,youtube_id,time_start,time_end,split`, one per split or for all;
videos are `<id>_<start:06d>_<end:06d>.mp4`, flat or in folders of any kind. Without a csv the class
folders speak: `train/<class>/` and `val/<class>/`, with spaces or underscores in the names.
"""

import csv
import dataclasses
import re
from collections import defaultdict
from collections.abc import Iterator

from skd_jax.data.readers.folder import read_class_folders
from skd_jax.data.readers.listing import (
    Entry,
    File,
    Listing,
    Missing,
    is_file,
    join,
    names_in,
    printable,
    read_lines,
    require_root,
    scan,
    stem,
)
from skd_jax.errors import UserError

LAYOUT = (
    "<id>_<start>_<end>.mp4 in any folders, with csv files "
    "'label,youtube_id,time_start,time_end,split'; or train/<class>/ and val/<class>/"
)
_COLUMNS = ("label", "youtube_id", "time_start", "time_end")
# Test labels are not public for every edition: as is usual, val is what is reported on.
_SPLITS = {"train": "train", "val": "test", "validate": "test", "validation": "test", "test": ""}


def read(root: str, annotations: str | None, split: int) -> Listing:
    """Reads the train and val splits; official val becomes "test".

    Raises:
      UserError: no root, no csv where one was named, or a csv without the columns.
    """
    del split
    require_root(root, LAYOUT)
    tables = _tables(root, annotations)
    files = scan(root)
    return _from_tables(tables, files) if tables else _from_folders(root, files)


def _tables(root: str, annotations: str | None) -> list[str]:
    if annotations and is_file(annotations):
        return [annotations]
    for folder in [annotations] if annotations else [root, join(root, "annotations")]:
        tables = [join(folder, name) for name in names_in(folder) if name.endswith(".csv")]
        if tables:
            return tables
    if annotations:
        raise UserError(f"data.annotations: no csv file at {annotations}. Expected: {LAYOUT}")
    return []


def _rows(table: str) -> Iterator[tuple[str, str, str, str]]:
    """(label, youtube_id, clip name, split) of each row."""
    reader = csv.DictReader(read_lines(table))
    absent = [name for name in _COLUMNS if name not in (reader.fieldnames or ())]
    if absent:
        raise UserError(f"{table}: no column {', '.join(absent)}; expected {','.join(_COLUMNS)}")
    by_name = re.search(r"train|val|test", stem(table).rsplit("/", 1)[-1])
    for row in reader:
        split = row.get("split") or (by_name[0] if by_name else "")
        if split not in _SPLITS:
            raise UserError(
                f"{table}: line {reader.line_num} names no split; give a column 'split' or call "
                "the file train.csv or val.csv"
            )
        try:
            start, end = (int(float(row[name])) for name in ("time_start", "time_end"))
        except (TypeError, ValueError):
            raise UserError(
                f"{table}: line {reader.line_num}: time_start and time_end are no numbers"
            ) from None
        yield row["label"], row["youtube_id"], f"{row['youtube_id']}_{start:06d}_{end:06d}", split


def _from_tables(tables: list[str], files: dict[str, File]) -> Listing:
    by_stem = defaultdict(list)
    for path in files:
        by_stem[stem(path)].append(path)
    splits, missing, seen = defaultdict(list), defaultdict(list), {}
    unused, repeated, official = 0, 0, defaultdict(set)
    for table in tables:
        for label, video, clip, name in _rows(table):
            split = _SPLITS[name]
            if not split:
                unused += 1
                continue
            if clip in seen:
                repeated += seen[clip] != (label, split)
                continue
            seen[clip] = label, split
            official[split].add(name)
            id_ = printable(f"{label}/{clip}")
            paths = by_stem.get(clip) or by_stem.get(video)
            if not paths:
                missing[split].append(Missing(id_, label))
                continue
            # The same clip in two folders: the one under the row's own split.
            path = next((p for p in paths if name in p.split("/")[:-1]), paths[0])
            splits[split].append(Entry(*files[path], id_, label, video))
    notes = []
    if unused:
        notes.append(f"{unused} rows of Kinetics' official test split are not used")
    if repeated:
        notes.append(f"{repeated} clips are listed twice with another label or split; first kept")
    return Listing(
        tuple(sorted({label for label, _ in seen.values()})),
        {name: tuple(splits[name]) for name in official},
        {name: f"Kinetics {'/'.join(sorted(names))} csv" for name, names in official.items()},
        {name: tuple(missing[name]) for name in official},
        tuple(notes),
    )


def _from_folders(root: str, files: dict[str, File]) -> Listing:
    # Spelt as in the csv files, which have spaces.
    listing = read_class_folders(root, files, lambda folder: folder.replace("_", " "))
    splits, sources, notes = {}, {}, listing.notes
    # Here val is the test; where there is also an official test folder it is left alone.
    for name in ("train", "validation", "test"):
        if name not in listing.splits:
            continue
        target = "test" if name == "validation" else name
        if target in splits:
            notes += (f"{listing.sources[name]} is not used: Kinetics' val is the test",)
            continue
        splits[target] = tuple(_grouped(entry) for entry in listing.splits[name])
        sources[target] = f"Kinetics {listing.sources[name]}"
    return dataclasses.replace(listing, splits=splits, sources=sources, notes=notes)


def _grouped(entry: Entry) -> Entry:
    """The entry with its YouTube video as the group."""
    name = stem(entry.id)
    clip = re.fullmatch(r"(.{11})_\d{6}_\d{6}", name)
    return entry._replace(group=clip[1] if clip else name)
