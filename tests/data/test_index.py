"""Index readers on the official lists and real files, and on small trees that the tests make."""

import random
import shutil
from collections import Counter, defaultdict

import pytest

from skd_jax.data import duplicates
from skd_jax.data.duplicates import find_duplicates
from skd_jax.data.holdout import draw_groups, join_groups
from skd_jax.data.index import READERS, build_index
from skd_jax.data.readers import hmdb51, listing, ucf101
from skd_jax.errors import UserError


def touch(root, *paths):
    """Files that differ in content; the readers look at names and bytes only."""
    for path in paths:
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(path)
    return root


def ids(index, split):
    return [video.id for video in index.splits[split]]


def check_sound(index):
    """What holds of every index."""
    assert list(index.class_names) == sorted(set(index.class_names))
    assert index.splits.keys() == index.split_sources.keys()
    seen = Counter(video.id for videos in index.splits.values() for video in videos)
    assert max(seen.values()) == 1
    for videos in index.splits.values():
        assert videos and list(videos) == sorted(videos, key=lambda video: video.id)
        assert all(0 <= video.label < len(index.class_names) for video in videos)
    if "held out" in index.split_sources.get("validation", ""):
        train = {video.group for video in index.splits["train"]}
        assert train.isdisjoint(video.group for video in index.splits["validation"])


# --- UCF101


@pytest.mark.parametrize("split", [1, 2, 3])
def test_ucf101_real_subset(shared, split):
    root = shared / "data" / "ucf101_16"
    index = build_index("ucf101", root, split=split)
    check_sound(index)
    assert len(index.class_names) == 16 and index.missing == ()
    lists = root / "ucfTrainTestlist"
    for part, names in (("train", ["train", "validation"]), ("test", ["test"])):
        text = (lists / f"{part}list{split:02d}.txt").read_text()
        expected = {line.split()[0].removesuffix(".avi") for line in text.split("\n") if line}
        assert {i for name in names for i in ids(index, name)} == expected
    for videos in index.splits.values():
        for video in videos:
            assert video.id.split("/")[0] == index.class_names[video.label]
            assert video.path.endswith(f"UCF-101/{video.id}.avi")
    # Stratified: about a tenth of every class, which leaves most of it.
    held = Counter(video.label for video in index.splits["validation"])
    kept = Counter(video.label for video in index.splits["train"])
    assert all(0.05 < held[k] / (held[k] + kept[k]) < 0.2 for k in range(16))
    assert index.split_sources == {
        "train": f"UCF101 trainlist0{split} less the held-out validation",
        "validation": f"held out of UCF101 trainlist0{split} by group (seed 0, fraction 0.1)",
        "test": f"UCF101 testlist0{split}",
    }
    assert index.selection == {"validation_fraction": 0.1, "seed": 0, "split": split}


def test_ucf101_real_duplicates(shared):
    root = shared / "data" / "ucf101_16"
    index = build_index("ucf101", root)
    pair = ("Basketball/v_Basketball_g03_c01", "Basketball/v_Basketball_g23_c01")
    assert len(index.duplicates) == 6 and pair in index.duplicates
    straddling, within = [note for note in index.notes if "byte-identical" in note]
    assert straddling == (
        f"byte-identical files in two splits (1): {pair[0]} (test) = {pair[1]} (train)"
    )
    assert within.startswith("byte-identical files in one split and class (5): BandMarching/")
    # In split 2 all four are training videos: no seed may part groups that share a file.
    sides = set()
    for seed in range(20):
        index = build_index("ucf101", root, split=2, classes="Basketball", seed=seed)
        check_sound(index)
        side = {i.split("_")[2]: name for name in index.splits for i in ids(index, name)}
        assert side["g01"] == side["g05"] and side["g03"] == side["g23"]
        sides |= {side["g01"], side["g03"]}
    assert sides == {"train", "validation"}
    index = build_index("ucf101", root, split=2, classes=("Basketball", "Archery"))
    assert not any("two splits" in note for note in index.notes)  # Both are in its train list.


def test_ucf101_full_official_lists(shared):
    lists = shared / "annotations" / "ucfTrainTestlist"
    index = build_index("ucf101", shared / "data" / "ucf101_16", annotations=lists)
    check_sound(index)
    assert len(index.class_names) == 101
    assert sum(map(len, index.splits.values())) + len(index.missing) == 13320
    assert any("8018 of 9537 videos" in note for note in index.notes)
    some = build_index(
        "ucf101", shared / "data" / "ucf101_16", annotations=lists, classes="Punch,Archery"
    )
    assert some.class_names == ("Archery", "Punch") and some.missing == ()
    assert {video.label for video in some.splits["test"]} == {0, 1}


def test_ucf101_gapped_numbers_and_crlf(tmp_path):
    touch(tmp_path, *(f"UCF-101/{c}/v_{c}_g0{g}_c01.avi" for c in "BA" for g in range(1, 6)))
    lists = tmp_path / "ucfTrainTestlist"
    lists.mkdir()
    (lists / "classInd.txt").write_bytes(b"7 A\r\n90 B\r\n")
    train = "".join(
        f"{c}/v_{c}_g0{g}_c01.avi {n}\r\n" for c, n in (("B", 90), ("A", 7)) for g in range(2, 6)
    )
    (lists / "trainlist01.txt").write_bytes(train.encode())
    (lists / "testlist01.txt").write_bytes(b"B/v_B_g01_c01.avi\r\nA/v_A_g01_c01.avi\r\n\r\n")
    index = build_index("ucf101", tmp_path, validation_fraction=0.25)
    check_sound(index)
    assert index.class_names == ("A", "B")
    assert [(v.id, v.label) for v in index.splits["test"]] == [
        ("A/v_A_g01_c01", 0),
        ("B/v_B_g01_c01", 1),
    ]
    assert Counter(v.label for v in index.splits["validation"]) == {0: 1, 1: 1}
    # The folder with the classes will do as the root, and the lists are found beside it.
    assert build_index("ucf101", tmp_path / "UCF-101").class_names == ("A", "B")
    with pytest.raises(UserError, match=r"no split 4; .* has \[1\]"):
        build_index("ucf101", tmp_path, split=4)
    (lists / "trainlist01.txt").write_text("A/v_A_g02_c01.avi 8\n")
    with pytest.raises(UserError, match="another number than classInd.txt's 7"):
        build_index("ucf101", tmp_path)


def test_lists_naming_only_missing_files(tmp_path, shared):
    (tmp_path / "UCF-101").mkdir()
    lists = shared / "annotations" / "ucfTrainTestlist"
    with pytest.raises(UserError, match="train split is empty: none of the 9537 videos.*data.root"):
        build_index("ucf101", tmp_path, annotations=lists)


# --- HMDB51


@pytest.fixture(scope="module")
def hmdb_root(shared, tmp_path_factory):
    """Empty files under the names of three classes of the official lists."""
    root = tmp_path_factory.mktemp("hmdb51")
    for class_name in ("wave", "climb", "climb_stairs"):
        path = shared / "annotations" / "hmdb51_splits" / f"{class_name}_test_split1.txt"
        for line in path.read_text().splitlines():
            if line.strip():
                touch(root, f"{class_name}/{line.rsplit(maxsplit=1)[0]}")
    return root


@pytest.mark.parametrize("split", [1, 2, 3])
def test_hmdb51_official_lists(shared, hmdb_root, split):
    lists = shared / "annotations" / "hmdb51_splits"
    classes = ("wave", "climb", "climb_stairs")
    index = build_index("hmdb51", hmdb_root, annotations=lists, split=split, classes=classes)
    check_sound(index)
    assert index.class_names == ("climb", "climb_stairs", "wave") and index.missing == ()
    assert index.selection["split"] == split
    # 70 training and 30 test videos a class are the data set's own numbers.
    assert Counter(v.label for v in index.splits["test"]) == {0: 30, 1: 30, 2: 30}
    learned = Counter(v.label for k in ("train", "validation") for v in index.splits[k])
    assert learned == {0: 70, 1: 70, 2: 70}
    whole = build_index("hmdb51", hmdb_root, annotations=lists, split=split)
    assert len(whole.class_names) == 51 and len(whole.missing) == 48 * 100
    for flag, name in ((1, "train"), (2, "test")):
        text = (lists / f"wave_test_split{split}.txt").read_text().split("\n")
        listed = {f"wave/{x.split()[0][:-4]}" for x in text if x.split()[1:] == [str(flag)]}
        found = {v.id for v in index.splits[name] if v.id.startswith("wave/")}
        assert found <= listed and (found == listed or name == "train")


def test_hmdb51_real_files(shared, tmp_path):
    for path in (shared / "fixtures" / "hmdb51").iterdir():
        (tmp_path / "wave").mkdir(exist_ok=True)
        shutil.copy(path, tmp_path / "wave")
    lists = tmp_path / "splits"
    lists.mkdir()
    (lists / "wave_test_split1.txt").write_text(
        "RATRACE_wave_f_nm_np1_fr_goo_37.avi 1 \n"
        "SchoolRulesHowTheyHelpUs_wave_f_nm_np1_ba_med_0.avi 2 \nunused_wave_1.avi 0 \n"
    )
    index = build_index("hmdb51", tmp_path)
    check_sound(index)
    assert [(v.id, v.group) for v in index.splits["train"]] == [
        ("wave/RATRACE_wave_f_nm_np1_fr_goo_37", "RATRACE")
    ]
    assert index.missing == () and "validation" not in index.splits  # One video cannot be shared.
    assert any("no validation split could be held out" in note for note in index.notes)


def test_hmdb51_source():
    assert hmdb51.source_of("April_09_brush_hair_u_nm_np1_ba_goo_0", "brush_hair") == "April_09"
    assert hmdb51.source_of("a_climb_stairs_b_climb_f_nm", "climb") == "a_climb_stairs_b"
    assert hmdb51.source_of("odd", "climb") == "odd"


def test_hmdb51_bad_line(tmp_path):
    touch(tmp_path, "wave/a_wave_1.avi")
    (tmp_path / "wave_test_split1.txt").write_text("a_wave_1.avi 3 \n")
    with pytest.raises(UserError, match=r"wave_test_split1.txt: expected .* 'a_wave_1.avi 3'"):
        build_index("hmdb51", tmp_path)
    with pytest.raises(UserError, match=r"HMDB51 has no split 2; .* \[1\]"):
        build_index("hmdb51", tmp_path, split=2)


# --- Kinetics

HEADER = "label,youtube_id,time_start,time_end,split\n"


def kinetics_rows(split, videos):
    return "".join(
        f"{label},{video},{10 * i},{10 * i + 10},{split}\n" for label, video, i in videos
    )


TRAIN = [
    (label, f"{label[:2]}_train__{i:02d}", i)
    for label in ("air drumming", "tai chi")
    for i in range(8)
]
VAL = [("tai chi", "-tc_val__00", 3), ("air drumming", "ad_val___00", 4)]


def clip(video, i):
    return f"{video}_{10 * i:06d}_{10 * i + 10:06d}.mp4"


@pytest.mark.parametrize("layout", ["flat", "spaces", "underscores"])
@pytest.mark.parametrize("one_csv", [True, False])
def test_kinetics_csv(tmp_path, layout, one_csv):
    for split, rows in (("train", TRAIN), ("val", VAL)):
        for label, video, i in rows:
            folder = {
                "flat": "",
                "spaces": f"{label}/",
                "underscores": label.replace(" ", "_") + "/",
            }
            touch(tmp_path, f"{split}/{folder[layout]}{clip(video, i)}")
    tables = tmp_path / "annotations"
    tables.mkdir()
    train, val = kinetics_rows("train", TRAIN), kinetics_rows("val", VAL)
    if one_csv:
        (tables / "kinetics.csv").write_text(HEADER + train + val)
    else:
        (tables / "train.csv").write_text(HEADER + train)
        # Some editions have no split column; the file's name tells.
        short = "".join(line.rsplit(",", 1)[0] + "\n" for line in val.splitlines())
        (tables / "val.csv").write_text("label,youtube_id,time_start,time_end\n" + short)
    index = build_index("kinetics", tmp_path)
    check_sound(index)
    assert index.class_names == ("air drumming", "tai chi") and index.missing == ()
    assert [(v.id, v.label, v.group) for v in index.splits["test"]] == [
        ("air drumming/ad_val___00_000040_000050", 0, "ad_val___00"),
        ("tai chi/-tc_val__00_000030_000040", 1, "-tc_val__00"),
    ]
    assert len(index.splits["train"]) == 14 and len(index.splits["validation"]) == 2
    assert "held out of Kinetics train" in index.split_sources["validation"]
    assert index.split_sources["test"] == "Kinetics val csv"
    # Ids say nothing of the layout, so preparation and sampling do not depend on it either.
    assert ids(index, "train")[0].startswith("air drumming/ai_train__")


@pytest.mark.parametrize("mark", [" ", "_"])
def test_kinetics_class_folders(tmp_path, mark):
    for label, video, i in TRAIN:
        touch(tmp_path, f"train/{label.replace(' ', mark)}/{clip(video, i)}")
    for label, video, i in VAL:
        touch(tmp_path, f"val/{label}/{clip(video, i)}")
    index = build_index("kinetics", tmp_path)
    check_sound(index)
    assert index.class_names == ("air drumming", "tai chi")
    assert len(index.splits["test"]) == 2 and index.splits["test"][0].group == "ad_val___00"
    assert index.split_sources["test"].endswith("/val")
    assert "held out of" in index.split_sources["validation"]


def test_kinetics_official_rows(shared, tmp_path):
    table = shared / "annotations" / "kinetics600_val_head.csv"
    lines = table.read_text().splitlines()[1:]
    for line in lines[5:]:
        _label, video, start, end, _ = line.split(",")
        touch(tmp_path, f"val/{video}_{int(start):06d}_{int(end):06d}.mp4")
    with pytest.raises(UserError, match="no training split.*Kinetics val csv"):
        build_index("kinetics", tmp_path, annotations=table)
    tables = tmp_path / "lists"
    tables.mkdir()
    shutil.copy(table, tables / "val.csv")
    rows = [("abseiling", f"own_video_{i}", i) for i in range(4)]
    touch(tmp_path, *(f"train/{clip(video, i)}" for _, video, i in rows[1:]))
    touch(tmp_path, f"train/{rows[0][1]}.mp4")  # Some collections leave the times out.
    # The official test split is not read, with or without labels.
    unused = "abseiling,test_video_,0,10,test\n"
    (tables / "train.csv").write_text(HEADER + kinetics_rows("train", rows) + unused)
    index = build_index("kinetics", tmp_path, annotations=tables, validation_fraction=0)
    check_sound(index)
    assert ids(index, "train")[0] == "abseiling/own_video_0_000000_000010"
    assert len(index.splits["test"]) == len(lines) - 5 and len(index.missing) == 5
    assert f"5 of {len(lines)} videos that Kinetics val csv names are not on disk" in "".join(
        index.notes
    )
    assert "1 rows of Kinetics' official test split are not used" in index.notes


def test_kinetics_bad_csv(tmp_path):
    touch(tmp_path, clip("some_video_", 0))
    table = tmp_path / "all.csv"
    table.write_text("label,id\nabseiling,some_video_\n")
    with pytest.raises(UserError, match="all.csv: no column youtube_id, time_start, time_end"):
        build_index("kinetics", tmp_path)
    table.write_text("label,youtube_id,time_start,time_end\nabseiling,some_video_,0,10\n")
    with pytest.raises(UserError, match="line 2 names no split"):
        build_index("kinetics", tmp_path)
    with pytest.raises(UserError, match="no csv file at .*nowhere"):
        build_index("kinetics", tmp_path, annotations=tmp_path / "nowhere")


# --- own folder


def test_folder_with_splits(tmp_path):
    touch(tmp_path, *(f"train/{c}/{i}.mp4" for c in ("run", "walk") for i in range(10)))
    touch(tmp_path, "val/walk/a.MOV", "val/run/deep/b.mkv", "train/.DS_Store", "train/run/._0.mp4")
    touch(tmp_path, "train/run/readme.txt", "train/stray.mp4")
    index = build_index("folder", tmp_path)
    check_sound(index)
    assert {k: len(v) for k, v in index.splits.items()} == {"train": 20, "validation": 2}
    assert index.selection == {}
    assert ids(index, "validation") == ["val/run/deep/b", "val/walk/a"]
    assert index.split_sources["validation"].endswith("/val")
    assert index.notes == (
        "1 videos lie in no class folder of a split and are left out (first: train/stray.mp4)",
    )
    touch(tmp_path, "test/run/c.mp4", "test/walk/c.mp4")
    assert len(build_index("folder", tmp_path).splits["test"]) == 2
    touch(tmp_path, "val/runs/a.mp4")
    with pytest.raises(UserError, match="'runs'; did you mean 'run'"):
        build_index("folder", tmp_path)


def test_folder_without_splits(tmp_path):
    # One class is called like a split, which does not make it one.
    touch(tmp_path, *(f"{c}/{i}.mp4" for c in ("bus", "train") for i in range(20)))
    index = build_index("folder", tmp_path, seed=3)
    check_sound(index)
    assert index.class_names == ("bus", "train")
    assert {k: len(v) for k, v in index.splits.items()} == {
        "train": 28,
        "validation": 4,
        "test": 8,
    }
    assert index.split_sources["test"].endswith("by group (seed 3, fraction 0.2)")
    assert index.selection == {"test_fraction": 0.2, "validation_fraction": 0.1, "seed": 3}
    assert index.split_sources["train"].endswith("less the held-out test and validation")
    only = build_index("folder", tmp_path, validation_fraction=0, test_fraction=0)
    assert {k: len(v) for k, v in only.splits.items()} == {"train": 40}
    assert only.selection == {"test_fraction": 0, "validation_fraction": 0}
    with pytest.raises(UserError, match="data.test_fraction must be .* not 1"):
        build_index("folder", tmp_path, test_fraction=1)


def test_object_stores_are_scanned_alike(tmp_path, monkeypatch):
    touch(tmp_path, "a/x.mp4", "a/deep/y.avi", "z.webm", "a/.hidden/q.mp4", "a/._x.mp4", "a/n.txt")
    local = listing.scan(str(tmp_path))
    assert list(local) == ["a/deep/y.avi", "a/x.mp4", "z.webm"]
    monkeypatch.setattr(listing, "is_remote", lambda path: True)  # Goes through etils.epath.
    remote = listing.scan(str(tmp_path))
    assert {key: file.path for key, file in remote.items()} == {
        key: file.path for key, file in local.items()
    }
    assert {file.size for file in remote.values()} == {-1}


def test_folder_ids_stay_unique(tmp_path):
    touch(tmp_path, "a/x.mp4", "a/x.avi", "a/y.mp4")
    index = build_index("folder", tmp_path, validation_fraction=0, test_fraction=0)
    assert ids(index, "train") == ["a/x.avi", "a/x.mp4", "a/y"]


def test_folder_groups_csv(tmp_path):
    paths = [f"{c}/{i}.mp4" for c in ("run", "walk") for i in range(12)]
    touch(tmp_path, *paths)
    table = tmp_path / "groups.csv"
    lines = [f"{path},person{index % 6}" for index, path in enumerate(paths)]
    table.write_text("path,group\r\n" + "\r\n".join(lines) + "\r\nrun/absent.mp4,person0\r\n")
    for seed in range(5):
        index = build_index("folder", tmp_path, groups_csv=table, seed=seed)
        check_sound(index)
        sides = defaultdict(set)
        for name, videos in index.splits.items():
            for video in videos:
                sides[int(video.id.split("/")[1]) % 6].add(name)
        assert all(len(names) == 1 for names in sides.values())
        assert {"train", "validation", "test"} == set.union(*sides.values())
    assert any("1 paths in" in note and "run/absent.mp4" in note for note in index.notes)
    table.write_text("elsewhere/1.mp4,a\n")
    with pytest.raises(UserError, match="names no video of this data set.*elsewhere/1.mp4"):
        build_index("folder", tmp_path, groups_csv=table)
    table.write_text("run/1.mp4\n")
    with pytest.raises(UserError, match="line 1: expected 'path,group'"):
        build_index("folder", tmp_path, groups_csv=table)


def test_folder_groups_csv_across_ready_made_splits(tmp_path):
    names = {"train": "abc", "val": "de", "test": "fg"}
    videos = {x: f"{folder}/run/{x}.mp4" for folder, xs in names.items() for x in xs}
    touch(tmp_path, *videos.values())
    table = tmp_path / "groups.csv"

    def notes(groups: dict[str, str]) -> list[str]:
        table.write_text("".join(f"{videos[x]},{group}\n" for x, group in groups.items()))
        index = build_index("folder", tmp_path, groups_csv=table)
        assert {key: len(split) for key, split in index.splits.items()} == {
            "train": 3,
            "validation": 2,
            "test": 2,
        }
        return [note for note in index.notes if "group" in note]

    assert notes({"a": "anna", "d": "anna", "g": "anna", "b": "ben", "c": "ben"}) == [
        "groups with videos in more than one split (1): anna (test, train, validation)"
    ]
    assert notes({"a": "anna", "e": "eve", "f": "eve", "b": "anna", "g": "ben"}) == [
        "groups with videos in more than one split (1): eve (test, validation)"
    ]
    assert notes({"a": "anna", "b": "anna", "d": "dan", "e": "dan", "f": "fay"}) == []


def test_folder_contradicting_copies(tmp_path):
    touch(tmp_path, *(f"{c}/{i}.mp4" for c in ("run", "walk") for i in range(4)))
    (tmp_path / "walk/9.mp4").write_bytes((tmp_path / "run/0.mp4").read_bytes())
    index = build_index("folder", tmp_path)
    check_sound(index)
    assert index.duplicates == (("run/0", "walk/9"),)
    assert any("identical files with two classes (1): run/0" in note for note in index.notes)


# --- what users get wrong


def test_unknown_names(tmp_path, shared):
    with pytest.raises(UserError, match=r"data set \(data.name\) 'ufc101'; did you mean 'ucf101'"):
        build_index("ufc101", tmp_path)
    root = shared / "data" / "ucf101_16"
    with pytest.raises(UserError, match=r"class .* 'pushup'; did you mean 'PushUps'"):
        build_index("ucf101", root, classes=("Punch", "pushup"))
    with pytest.raises(UserError, match=r"'xyzzy'\. Known: ApplyEyeMakeup.*\(16 in all\)"):
        build_index("ucf101", root, classes="xyzzy")


@pytest.mark.parametrize("name", sorted(READERS))
def test_missing_root(tmp_path, name):
    with pytest.raises(UserError, match="data.root: there is no folder .*nowhere.*Expected"):
        build_index(name, tmp_path / "nowhere")


@pytest.mark.parametrize("name", sorted(READERS))
def test_empty_root(tmp_path, name):
    with pytest.raises(UserError, match=f"{tmp_path.name}.*Expected"):
        build_index(name, tmp_path)


def test_empty_split(tmp_path):
    touch(tmp_path, *(f"train/{c}/{i}.mp4" for c in "ab" for i in range(3)), "test/a/0.mp4")
    with pytest.raises(UserError, match="test split is empty: folder .*/test.*data.classes"):
        build_index("folder", tmp_path, classes="b")


def test_val_without_train(tmp_path):
    touch(tmp_path, "val/run/0.mp4")
    with pytest.raises(UserError, match="has val/ but no train/"):
        build_index("folder", tmp_path)


# --- holding out and duplicates


def test_held_out_split_is_a_function_of_names_and_seed(shared, monkeypatch):
    root = shared / "data" / "ucf101_16"
    first = build_index("ucf101", root, classes="Punch,Lunges", seed=1)

    def shuffled(path):
        lines = read_lines(path)
        random.Random(0).shuffle(lines)
        return lines

    read_lines = ucf101.read_lines
    monkeypatch.setattr(ucf101, "read_lines", shuffled)
    assert build_index("ucf101", root, classes="Lunges,Punch", seed=1) == first
    other = build_index("ucf101", root, classes="Punch,Lunges", seed=2)
    assert ids(other, "validation") != ids(first, "validation")


def test_draw_groups():
    members = {f"g{i}": ["a"] * 5 + ["b"] * (i % 3) for i in range(20)}
    chosen = draw_groups(members, 0.2, 0, "x")
    assert len(chosen) == 4  # Four groups of five are a fifth of a's hundred.
    assert chosen == draw_groups(dict(reversed(members.items())), 0.2, 0, "x")
    assert chosen != draw_groups(members, 0.2, 0, "y") != draw_groups(members, 0.2, 1, "y")
    assert draw_groups(members, 0.0, 0, "x") == frozenset()
    # A class of two single videos still gives one, one of a single group none.
    assert len(draw_groups({"p": ["a"], "q": ["a"]}, 0.1, 0, "x")) == 1
    assert draw_groups({"p": ["a"] * 9}, 0.5, 0, "x") == frozenset()
    assert draw_groups({"p": ["a"] * 9, "q": ["a"]}, 0.1, 0, "x") == {"q"}
    # No fraction empties a class.
    assert len(draw_groups({str(i): ["a"] for i in range(5)}, 0.99, 0, "x")) == 4


def test_join_groups():
    joined = join_groups("abcdef", [("b", "a"), ("c", "d"), ("d", "b")])
    assert joined == {"a": "a", "b": "a", "c": "a", "d": "a", "e": "e", "f": "f"}


def test_find_duplicates(tmp_path, monkeypatch):
    long = bytes(300_000)
    contents = {
        "one": b"same",
        "two": b"same",
        "three": b"diff",
        "alone": b"other length",
        "long1": long,
        "long2": long,
        "long3": long[:150_000] + b"x" + long[150_001:],  # Differs where the ends do not show.
        "empty1": b"",
        "empty2": b"",
    }
    files = []
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        files.append((str(tmp_path / name), len(content)))
    opened = []
    whole = duplicates._content
    monkeypatch.setattr(duplicates, "_content", lambda path: opened.append(path) or whole(path))
    expected = [("long1", "long2"), ("one", "two")]
    found = find_duplicates([*files, (str(tmp_path / "vanished"), 4)])
    assert found == [tuple(str(tmp_path / name) for name in group) for group in expected]
    assert not any("alone" in path or "three" in path for path in opened)
