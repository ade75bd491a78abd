"""Annotation files and folders to a `VideoIndex`: class names, and the videos of every split.

Knows nothing of pixels. The one place, beside the configs, where data sets differ: `READERS` maps a
name to the function that reads its layout; class ids, held-out splits, identical files and all
checks are the same for every data set.
"""

import csv
import dataclasses
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

from skd_jax.data.duplicates import find_duplicates
from skd_jax.data.files import is_remote
from skd_jax.data.holdout import draw_groups, join_groups
from skd_jax.data.readers import folder, hmdb51, kinetics, ucf101
from skd_jax.data.readers.listing import Entry, Listing, is_file, printable, read_lines
from skd_jax.errors import UserError
from skd_jax.names import unknown

READERS: Mapping[str, Callable[[str, str | None, int], Listing]] = {
    "ucf101": ucf101.read,
    "hmdb51": hmdb51.read,
    "kinetics": kinetics.read,
    "folder": folder.read,
}

_SHOWN = 5  # So many examples in a note.
_CSV_GROUP = "group:"  # Before names from a groups csv, lest one meets that of an unlisted video.


@dataclasses.dataclass(frozen=True)
class Video:
    """One video.

    Attributes:
      path: absolute, or an object store's.
      label: row of the index's class names; -1 is unlabelled.
      id: stable name that does not depend on where the data lies, e.g. "Punch/v_Punch_g01_c01".
      group: videos of a group come from one source and stay on one side of a held-out split.
    """

    path: str
    label: int
    id: str
    group: str


@dataclasses.dataclass(frozen=True)
class VideoIndex:
    """A data set: what to learn from, to select by and to report on.

    Attributes:
      name: the reader's.
      class_names: sorted; a label is a position in it.
      splits: "train" and, where they exist, "validation" and "test"; videos sorted by id.
      split_sources: where each split comes from, in words to be shown beside results.
      missing: ids that the lists name and the disk lacks.
      duplicates: ids of byte-identical files.
      notes: warnings for the user.
      selection: what made the splits: of "split", "validation_fraction", "test_fraction" and "seed" of
        `build_index` those that counted for this data set.
    """

    name: str
    class_names: tuple[str, ...]
    splits: Mapping[str, tuple[Video, ...]]
    split_sources: Mapping[str, str]
    missing: tuple[str, ...] = ()
    duplicates: tuple[tuple[str, ...], ...] = ()
    notes: tuple[str, ...] = ()
    selection: Mapping[str, int | float] = dataclasses.field(default_factory=dict)


def build_index(
    name: str,
    root: str | os.PathLike,
    *,
    annotations: str | os.PathLike | None = None,
    split: int = 1,
    classes: Sequence[str] | str = (),
    validation_fraction: float = 0.1,
    test_fraction: float = 0.2,
    seed: int = 0,
    groups_csv: str | os.PathLike | None = None,
) -> VideoIndex:
    """Reads a data set's annotations and looks for its files.

    Args:
      name: a key of `READERS`.
      root: folder with the videos; see each reader's `LAYOUT`.
      annotations: folder (Kinetics: or csv file) with the lists, if not below or beside the root.
      split: official split of UCF101 and HMDB51, from 1.
      classes: a subset of class names, or these separated by commas; empty takes all.
      validation_fraction: share of the training videos held out, by group, to select checkpoints
        by, where the data has no validation split of its own; 0 holds out none. Never test videos.
      test_fraction: share held out as the test, where there are only class folders; 0 for none.
      seed: of what is held out.
      groups_csv: lines `path,group`, paths relative to the root; overrides the reader's groups.

    Raises:
      UserError: names the file, key or class at fault and what to do.
    """
    if name not in READERS:
        raise unknown("data set (data.name)", name, READERS)
    for key, value in (("validation", validation_fraction), ("test", test_fraction)):
        if not 0 <= value < 1:
            raise UserError(f"data.{key}_fraction must be at least 0 and below 1, not {value}")
    root = _absolute(root)
    listing = READERS[name](root, None if annotations is None else _absolute(annotations), split)
    listing = _with_classes(listing, classes)
    _check_not_empty(listing, root)

    splits = {key: _sorted_once(entries) for key, entries in listing.splits.items()}
    notes = list(listing.notes) + _notes_on_missing(listing)
    if groups_csv is not None:
        splits, note = _with_groups(splits, root, _absolute(groups_csv))
        notes += note + _notes_on_shared_groups(splits)
    notes += _notes_on_shared(splits)
    duplicates = _duplicates(splits)
    splits = _with_joined_groups(splits, duplicates)

    wanted = {"test": test_fraction} if listing.draw_test else {}
    wanted |= {} if "validation" in splits else {"validation": validation_fraction}
    selection = {f"{key}_fraction": fraction for key, fraction in wanted.items()}
    selection |= {"seed": seed} if any(wanted.values()) else {}
    selection |= {"split": listing.number} if listing.number is not None else {}
    sources = dict(listing.sources)
    for key, fraction in wanted.items():
        if fraction and not _hold_out(splits, key, fraction, seed):
            notes.append(
                f"no {key} split could be held out of {listing.sources['train']}: no class has two "
                "groups of videos of which one can be spared"
            )
        elif fraction:
            how = f"by group (seed {seed}, fraction {fraction:g})"
            sources[key] = f"held out of {listing.sources['train']} {how}"
    drawn = [key for key in wanted if key in splits]
    if drawn:
        sources["train"] += f" less the held-out {' and '.join(drawn)}"

    if is_remote(root):
        notes.append(f"identical files were not looked for: {root} is remote")
    notes += _notes_on_duplicates(splits, duplicates)
    notes += _notes_on_classes(listing.class_names, splits)
    ids = {entry.path: entry.id for entries in splits.values() for entry in entries}
    labels = {class_name: label for label, class_name in enumerate(listing.class_names)}
    return VideoIndex(
        name=name,
        class_names=listing.class_names,
        splits={
            key: tuple(Video(e.path, labels[e.class_name], e.id, e.group) for e in splits[key])
            for key in ("train", "validation", "test")
            if key in splits
        },
        split_sources=sources,
        missing=tuple(sorted({m.id for items in listing.missing.values() for m in items})),
        duplicates=tuple(sorted(tuple(sorted(ids[path] for path in p)) for p in duplicates)),
        notes=tuple(notes),
        selection=selection,
    )


def _absolute(path: str | os.PathLike) -> str:
    path = os.fspath(path)
    return path if is_remote(path) else os.path.abspath(os.path.expanduser(path))


def _with_classes(listing: Listing, classes: Sequence[str] | str) -> Listing:
    """The listing less every class that was not asked for."""
    if isinstance(classes, str):
        classes = [part.strip() for part in classes.split(",") if part.strip()]
    if not classes:
        return listing
    for class_name in classes:
        if class_name not in listing.class_names:
            raise unknown("class (data.classes)", class_name, listing.class_names)
    wanted = frozenset(classes)

    def keep(items: Mapping[str, tuple]) -> dict[str, tuple]:
        return {
            key: tuple(item for item in part if item.class_name in wanted)
            for key, part in items.items()
        }

    return dataclasses.replace(
        listing,
        class_names=tuple(sorted(wanted)),
        splits=keep(listing.splits),
        missing=keep(listing.missing),
    )


def _check_not_empty(listing: Listing, root: str) -> None:
    if "train" not in listing.splits:
        found = ", ".join(listing.sources.values()) or "nothing"
        raise UserError(f"there is no training split: the lists give only {found}")
    for key, entries in listing.splits.items():
        absent = listing.missing.get(key, ())
        if not entries and absent:
            raise UserError(
                f"the {key} split is empty: none of the {len(absent)} videos that "
                f"{listing.sources[key]} names lies below {root} (first: {absent[0].id}); "
                "check data.root"
            )
        if not entries:
            raise UserError(
                f"the {key} split is empty: {listing.sources[key]} names no videos"
                " of the chosen classes; check data.classes and the lists"
            )


def _sorted_once(entries: Iterable[Entry]) -> tuple[Entry, ...]:
    """By id, so that nothing depends on the order of files; a video listed twice counts once."""
    return tuple(sorted({entry.id: entry for entry in entries}.values(), key=lambda e: e.id))


def _with_groups(
    splits: Mapping[str, tuple[Entry, ...]], root: str, path: str
) -> tuple[dict[str, tuple[Entry, ...]], list[str]]:
    """Entries with the groups of a csv file; those it does not name keep theirs."""
    if not is_file(path):
        raise UserError(f"data.groups_csv: there is no file {path}")
    groups = {}
    for number, row in enumerate(csv.reader(read_lines(path)), 1):
        if len(row) != 2:
            raise UserError(f"{path}: line {number}: expected 'path,group', found {row}")
        if number == 1 and row == ["path", "group"]:
            continue
        groups[row[0].strip().removeprefix("./")] = printable(row[1].strip())
    used = set()
    result = {}
    for key, entries in splits.items():
        renamed = []
        for entry in entries:
            relative = entry.path.removeprefix(root).lstrip("/").replace(os.sep, "/")
            for known in (relative, entry.path, entry.id):
                if known in groups:
                    used.add(known)
                    entry = entry._replace(group=_CSV_GROUP + groups[known])
                    break
            renamed.append(entry)
        result[key] = tuple(renamed)
    unused = sorted(groups.keys() - used)
    if not used:
        first = f" (first: {unused[0]})" if unused else ""
        raise UserError(
            f"{path} names no video of this data set{first}; paths are relative to {root}"
        )
    notes = []
    if unused:
        notes.append(f"{len(unused)} paths in {path} name no video (first: {unused[0]})")
    return result, notes


def _duplicates(splits: Mapping[str, tuple[Entry, ...]]) -> list[tuple[str, ...]]:
    """Groups of paths whose files have the same bytes."""
    return find_duplicates({e.path: e.size for es in splits.values() for e in es}.items())


def _with_joined_groups(
    splits: Mapping[str, tuple[Entry, ...]], duplicates: Iterable[Sequence[str]]
) -> dict[str, tuple[Entry, ...]]:
    """Entries with one group name for all groups that share a byte-identical file."""
    group_of = {entry.path: entry.group for entries in splits.values() for entry in entries}
    ties = [[group_of[path] for path in paths] for paths in duplicates]
    joined = join_groups(set(group_of.values()), ties)
    return {
        key: tuple(entry._replace(group=joined[entry.group]) for entry in entries)
        for key, entries in splits.items()
    }


def _hold_out(
    splits: dict[str, tuple[Entry, ...]], key: str, fraction: float, seed: int
) -> frozenset[str]:
    """Moves groups from "train" to a new split, in place; returns them, none if impossible."""
    members = defaultdict(list)
    for entry in splits["train"]:
        members[entry.group].append(entry.class_name)
    chosen = draw_groups(members, fraction, seed, key)
    if chosen:
        splits[key] = tuple(e for e in splits["train"] if e.group in chosen)
        splits["train"] = tuple(e for e in splits["train"] if e.group not in chosen)
    return chosen


def _notes_on_missing(listing: Listing) -> list[str]:
    notes = []
    for key, absent in listing.missing.items():
        if absent:
            total = len(absent) + len(listing.splits[key])
            named = f"{len(absent)} of {total} videos that {listing.sources[key]} names"
            notes.append(f"{named} are not on disk (first: {absent[0].id})")
    return notes


def _notes_on_duplicates(
    splits: Mapping[str, tuple[Entry, ...]], duplicates: Iterable[Sequence[str]]
) -> list[str]:
    """What is identical: pairs across splits or classes one by one, those within one counted."""
    where = defaultdict(list)
    for key, entries in splits.items():
        for entry in entries:
            where[entry.path].append((key, entry))
    across, contradicting, within = [], [], []
    for paths in duplicates:
        items = [item for path in paths for item in where[path]]
        told = " = ".join(f"{entry.id} ({key})" for key, entry in items)
        if len({key for key, _ in items}) > 1:
            across.append(told)
        if len({entry.class_name for _, entry in items}) > 1:
            contradicting.append(told)
        if told not in across and told not in contradicting:
            within.append(told)
    notes = []
    if across:
        notes.append(f"byte-identical files in two splits ({len(across)}): {_examples(across)}")
    if contradicting:
        told = _examples(contradicting)
        notes.append(f"byte-identical files with two classes ({len(contradicting)}): {told}")
    if within:
        told = _examples(within)
        notes.append(f"byte-identical files in one split and class ({len(within)}): {told}")
    return notes


def _notes_on_shared(splits: Mapping[str, tuple[Entry, ...]]) -> list[str]:
    """Warnings about videos that two splits name."""
    places = defaultdict(list)
    for key, entries in splits.items():
        for entry in entries:
            places[entry.path].append((key, entry.id))
    shared = [items[0][1] for items in places.values() if len(items) > 1]
    return [f"{len(shared)} videos are in two splits: {_examples(shared)}"] if shared else []


def _notes_on_shared_groups(splits: Mapping[str, tuple[Entry, ...]]) -> list[str]:
    """Warnings about groups of a csv file that have videos in more than one split."""
    places = defaultdict(set)
    for key, entries in splits.items():
        for entry in entries:
            if entry.group.startswith(_CSV_GROUP):
                places[entry.group.removeprefix(_CSV_GROUP)].add(key)
    shared = [
        f"{group} ({', '.join(sorted(keys))})"
        for group, keys in sorted(places.items())
        if len(keys) > 1
    ]
    if not shared:
        return []
    return [f"groups with videos in more than one split ({len(shared)}): {_examples(shared)}"]


def _notes_on_classes(
    class_names: Sequence[str], splits: Mapping[str, tuple[Entry, ...]]
) -> list[str]:
    """Warnings about classes that a split has no video of."""
    notes = []
    expected = class_names
    for key in ("train", "validation", "test"):
        if key not in splits:
            continue
        present = {entry.class_name for entry in splits[key]}
        absent = [class_name for class_name in expected if class_name not in present]
        if absent:
            few = f"{len(absent)} of {len(class_names)} classes"
            notes.append(f"{few} have no {key} video: {_examples(absent)}")
        if key == "train":  # What cannot be learned need not be missed again below.
            expected = [class_name for class_name in class_names if class_name in present]
    return notes


def _examples(items: Sequence[str]) -> str:
    more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return "; ".join(items[:_SHOWN]) + more
