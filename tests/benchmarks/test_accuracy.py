"""The accuracy harness: statistics against closed forms, budgets, resuming; one tiny run for real."""

import json
import subprocess
import sys
import threading

import numpy as np
import pytest

from benchmarks import accuracy, accuracy_run, accuracy_table
from skd_jax.errors import UserError
from tests import tiny
from tests.fakes import quick_compilation  # noqa: F401  a fixture

RNG = np.random.default_rng(0)


# --- statistics ---


def runs_of(table):
    """{seed: {group: correctness}} of (seeds, groups, videos)."""
    return {
        seed: {f"g{group:02d}": videos for group, videos in enumerate(rows)}
        for seed, rows in enumerate(np.asarray(table, np.float64))
    }


def test_a_constant_difference_has_no_width():
    second = RNG.integers(2, size=(4, 6, 5)).astype(float)
    second[:, :, 0] = 0
    first = second.copy()
    first[:, :, 0] = 1  # one video more in each group, at each seed
    got = accuracy_table.paired_interval(runs_of(first), runs_of(second))
    for key in ("difference", "low", "high"):
        np.testing.assert_allclose(got[key], 1 / 5)
    assert (got["seeds"], got["wins"]) == (4, 4)


def test_two_seeds_have_three_means():
    """Groups alike: the resampled mean is 0, 1/2 or 1 with probability 1/4, 1/2, 1/4."""
    second = np.zeros((2, 3, 4))
    first = second.copy()
    first[1] = 1
    for level, low, high in ((0.9, 0, 1), (0.4, 0.5, 0.5)):
        got = accuracy_table.paired_interval(runs_of(first), runs_of(second), level=level)
        assert (got["difference"], got["low"], got["high"]) == (0.5, low, high)
    assert got["wins"] == 1.5


def test_variances_of_seeds_and_groups_add_up():
    """For d = a_seed + b_group the bootstrap's variance is var(a) / n + var(b) / m, its law normal."""
    seeds, groups, videos = 40, 50, 2
    a, b = RNG.normal(size=seeds), RNG.normal(size=groups)
    first = (a[:, None, None] + b[:, None]) * np.ones(videos)
    got = accuracy_table.paired_interval(runs_of(first), runs_of(0 * first))
    centre, half = a.mean() + b.mean(), 1.96 * np.sqrt(a.var() / seeds + b.var() / groups)
    np.testing.assert_allclose(got["difference"], centre)
    np.testing.assert_allclose([got["low"], got["high"]], [centre - half, centre + half], atol=0.02)


def test_noise_of_seed_and_group_counts_three_times():
    """The bootstrap's variance given the data, in closed form; of noise it is nearly thrice the truth."""
    n, m = 30, 40
    noise = RNG.normal(size=(n, m))
    got = accuracy_table.paired_interval(
        runs_of(noise[:, :, None]), runs_of(np.zeros((n, m, 1))), level=0.95
    )
    # Multinomial counts w of k have E[w w'] = I + (1 - 1/k) J.
    total, shrink = noise.sum(), (1 - 1 / n) * (1 - 1 / m) - 1
    rows, columns = (noise.sum(1) ** 2).sum(), (noise.sum(0) ** 2).sum()
    squares = (noise**2).sum() + (1 - 1 / m) * rows + (1 - 1 / n) * columns + shrink * total**2
    half = 1.96 * np.sqrt(squares) / (n * m)
    np.testing.assert_allclose((got["high"] - got["low"]) / 2, half, rtol=0.03)
    naive = 1.96 * noise.std() / np.sqrt(n * m)
    np.testing.assert_allclose(half / naive, np.sqrt(3), rtol=0.1)


def test_groups_weigh_by_their_videos():
    first = {0: {"a": np.ones(3), "b": np.zeros(1)}}
    second = {0: {"a": np.zeros(3), "b": np.zeros(1)}}
    got = accuracy_table.paired_interval(first, second)
    # Two of two draws are a with probability 1/4, b with 1/4.
    assert (got["difference"], got["low"], got["high"]) == (0.75, 0, 1)


def test_only_common_seeds_are_paired_and_other_videos_are_refused():
    one, two = runs_of(np.ones((3, 2, 2))), runs_of(np.zeros((5, 2, 2)))
    assert accuracy_table.paired_interval(one, two)["seeds"] == 3
    with pytest.raises(ValueError, match="no seed in common"):
        accuracy_table.paired_interval(one, {7: two[0]})
    with pytest.raises(ValueError, match="seed 0 was tested on other videos"):
        accuracy_table.paired_interval(one, {0: {"g00": np.zeros(2)}})


def test_view_values():
    logits, embedding = RNG.normal(size=(6, 3, 4)), RNG.normal(size=(6, 3, 5))
    got = accuracy_table.view_values(logits, embedding)
    classes = logits.argmax(-1)
    unit = embedding / np.linalg.norm(embedding, axis=-1, keepdims=True)
    pairs = [(0, 1), (0, 2), (1, 2)]
    wanted = {
        "view_agreement": [[classes[i, a] == classes[i, b] for a, b in pairs] for i in range(6)],
        "view_cosine": [[unit[i, a] @ unit[i, b] for a, b in pairs] for i in range(6)],
        "between_cosine": [
            [
                unit[i, a] @ unit[j, b]
                for j in range(6)
                if i != j
                for a in range(3)
                for b in range(3)
            ]
            for i in range(6)
        ],
    }
    assert got.keys() == wanted.keys()
    for name, values in wanted.items():
        np.testing.assert_allclose(got[name], np.mean(values, axis=1), atol=1e-12)


def test_groups_of_ucf101_and_of_others():
    ids = ["Punch/v_Punch_g02_c01", "Punch/v_Punch_g01_c02", "Punch/v_Punch_g01_c01", "own/x_c1"]
    got = accuracy_run.by_group(ids, np.array([0.1, 0.2, 0.3, 0.4]))
    assert got == {"v_Punch_g01": [0.3, 0.2], "v_Punch_g02": [0.1], "own/x_c1": [0.4]}


# --- the table ---


COMMIT = {"commit": "0123456789", "uncommitted": False}


def row(variant, seed, top1, **more):
    flags = "".join("1" if i < round(10 * top1) else "0" for i in range(10))
    return {
        "variant": variant,
        "method": variant,
        "seed": seed,
        "test_top1": top1,
        "test_correct": {f"g{i}": flags[2 * i : 2 * i + 2] for i in range(5)},
        "validation_top1": top1,
        "validation_curve": [[1, 0.1], [2, top1]],
        "step_seconds": 0.2 if variant == "skd_srl" else 0.1,
        "view_agreement": 0.8,
        "view_cosine": 0.9,
        "between_cosine": 0.5,
        "clips_seen": 1600,
        "settings_from": "none",
        "data": {"name": "ucf101", "train": 9, "validation": 3, "test": 10},
        "device": "Some CPU, 2 cores",
        "commits": [COMMIT],
        "parameters": 900_000,
        **more,
    }


ROWS = [
    *(row("supervised_2v", seed, 0.5 + 0.1 * seed) for seed in range(3)),
    *(row("skd_srl", seed, 0.6 + 0.1 * seed, settings_from="swept") for seed in range(3)),
    row("supervised", 0, 0.4),
]


def tables(rows, **options):
    """Of accuracy and of views: (cells of the rows by variant, the caption) each."""
    text = accuracy_table.markdown(rows, accuracy.BASELINES, resamples=200, **options)
    blocks, found = text.strip().split("\n\n"), []
    for lines, caption in zip(blocks[::2], blocks[1::2], strict=True):
        cells = [[cell.strip() for cell in ln.strip("|").split("|")] for ln in lines.splitlines()]
        assert len({len(each) for each in cells}) == 1
        by_name = {each[0]: dict(zip(cells[0], each, strict=True)) for each in cells[2:]}
        found.append((by_name, caption))
    return found


def table(rows, **options):
    """(cells of the rows by variant, the caption) of the accuracies."""
    return tables(rows, **options)[0]


def test_table():
    cells, caption = table(ROWS)
    assert list(cells) == ["skd_srl", "supervised_2v", "supervised"]
    ours, two, one = cells.values()
    assert ours["test top-1"] == "0.700 ± 0.100" and one["test top-1"] == "0.400"
    against = "against supervised_2v [95 %]", "against supervised [95 %]"
    assert ours[against[0]].startswith("+0.100 [") and ours[against[0]].endswith("ahead at 3 of 3")
    # One seed says nothing of how seeds differ: no interval.
    assert ours[against[1]] == "+0.200, one seed"
    assert two[against[0]] == "" and two[against[1]] == "+0.100, one seed"
    assert [each["time of a step"] for each in cells.values()] == ["2.00", "1.00", "1.00"]
    assert "by a factor of up to 1.0 from one seed" in caption
    assert "1,600 clips seen" in caption and "5 groups" in caption
    assert caption.endswith("Made on Some CPU, 2 cores, at 0123456.")


def test_of_one_seed_the_table_speaks_of_no_interval_and_no_spread():
    _, caption = table([each for each in ROWS if each["seed"] == 0])
    assert "no intervals" in caption and "bootstraps" not in caption
    assert "from one seed to another" not in caption


def test_chance_is_told_where_the_classes_are_known():
    # P(3 of 3) = 1/8, P(2 or 3) = 1/2.
    assert accuracy_table.chance_bound(3, 2, probability=0.2) == 1
    assert accuracy_table.chance_bound(3, 2, probability=0.6) == 2 / 3
    assert accuracy_table.chance_bound(1, 2, probability=0.1) == 2  # no number of videos would do
    draws = np.random.default_rng(0).binomial(192, 1 / 8, 200_000) / 192
    bound = accuracy_table.chance_bound(192, 8)
    assert (draws >= bound).mean() < 0.001 < (draws >= bound - 2 / 192).mean()
    assert "Guessing" not in table(ROWS)[1]
    known = [each | {"data": each["data"] | {"classes": 8}} for each in ROWS]
    assert "among the 8 classes is right in 0.125 of them, and in 0.600 or" in table(known)[1]


def test_the_table_of_views():
    """Paired by seed and video where rows have the videos' values; the oldest have means alone."""

    def of_videos(agreement, within, between):
        values = {
            "view_agreement": agreement,
            "view_cosine": within,
            "between_cosine": between,
        }
        return {name: {f"g{i}": [value, value] for i in range(5)} for name, value in values.items()}

    rows = [
        *(row("supervised_2v", seed, 0.5, test_views=of_videos(0.7, 0.8, 0.6)) for seed in (0, 1)),
        *(row("skd_srl", seed, 0.4, test_views=of_videos(0.8, 0.85, 0.7)) for seed in (0, 1)),
        row("supervised", 0, 0.3),
    ]
    cells, _ = tables(rows)[1]
    ours, two, one = (cells[name] for name in ("skd_srl", "supervised_2v", "supervised"))
    assert ours["views agree"] == "0.800 ± 0.000" and one["views agree"] == "0.800"
    for name, difference in (
        ("views agree", "+0.100 [+0.100, +0.100], ahead at 2 of 2"),
        ("cosine within a video", "+0.050 [+0.050, +0.050], ahead at 2 of 2"),
        ("within less between", "-0.050 [-0.050, -0.050], ahead at 0 of 2"),
    ):
        column = f"{name}, against supervised_2v [95 %]"
        assert (ours[column], two[column], one[column]) == (difference, "", "")
    assert ours["cosine between videos"] == "0.500 ± 0.000"
    cells, caption = tables(ROWS)[1]
    assert not any("against" in column for column in cells["skd_srl"])
    assert caption.startswith("Views are the clips")


def test_the_short_table_has_the_cells_of_the_long_one():
    text = accuracy_table.short_markdown(ROWS, accuracy.BASELINES, resamples=200)
    head, _, *lines = [[c.strip() for c in ln.strip("|").split("|")] for ln in text.splitlines()]
    short = {each[0].strip("`"): dict(zip(head, each, strict=True)) for each in lines}
    (long, _), (views, _) = tables(ROWS)
    assert list(short) == list(long)
    for name, cells in short.items():
        for column in ("seeds", "test top-1", "time of a step"):
            assert cells[column] == long[name][column]
        for other in accuracy.BASELINES:
            assert cells[f"against `{other}` [95 %]"] == long[name][f"against {other} [95 %]"]
        for column in ("views agree", "cosine within a video"):
            assert cells[column] == views[name][column].split(" ±")[0]
    with pytest.raises(ValueError, match="no run of supervised_2v"):
        accuracy_table.short_markdown(ROWS[-1:], accuracy.BASELINES)


def test_the_table_says_where_hyper_parameters_come_from():
    cells, caption = table([*ROWS, row("byot", 0, 0.1, settings_from="published")])
    assert [cells[name]["hyper-parameters"] for name in ("skd_srl", "supervised", "byot")] == [
        "swept",
        "none",
        "published",
    ]
    assert '"Swept" are defaults' in caption and '"Published" are those' in caption
    assert "in brackets" not in caption and '"Given"' not in caption
    cells, caption = table(ROWS, tried={"skd_srl": 12, "supervised": 1})
    assert cells["skd_srl"]["hyper-parameters"] == "swept (12)"
    assert cells["supervised"]["hyper-parameters"] == "none"
    assert "from as many settings as stand in brackets" in caption and '"Published"' not in caption
    both = row("skd_srl", 4, 0.1, settings_from="swept for skd_srl, published for the past teacher")
    _, caption = table([*ROWS, both], tried={"skd_srl": 12})
    assert caption.count("in brackets") == 1
    assert "chose on the validation videos, from as many settings as stand in brackets." in caption


def test_settings_tried_are_counted_once():
    def swept(method, seed=100, **settings):
        settings = {f"method.{key}": value for key, value in settings.items()}
        everything = settings | {"train.seed": seed, "train.duration": f"{seed} steps"}
        return {"method": method, "variant": method, "setting": {}, "settings": everything}

    rows = [
        swept("skd_srl", seed, lambda_sim=value)
        for value in (0.2, 0.5, 0.2)  # the default may come twice
        for seed in (100, 101)
    ]
    rows.append(swept("skd_srl", lambda_sim=0.2, ramp_up=0.0))  # an option that came later
    rows.append(swept("ddgsd"))
    assert accuracy_table.settings_tried(rows) == {"skd_srl": 2, "ddgsd": 1}
    assert accuracy_table.settings_tried([]) == {}
    # One that no row has at its default.
    later = {"settings": {"method.lambda_sim": 0.2, "method.ramp_up": 0.0}}
    rows[-2] |= later | {"setting": {"method.ramp_up": 0.0}}
    assert accuracy_table.settings_tried(rows)["skd_srl"] == 3
    defaults = {"skd_srl": {"method.ramp_up": 0.0}}
    assert accuracy_table.settings_tried(rows, defaults) == {"skd_srl": 2, "ddgsd": 1}


def test_the_table_says_what_teachers_cost_and_who_shares_one():
    shared = {"teacher": ["teacher", 0], "settings_from": "published"}
    rows = [
        *ROWS,
        row("teacher", 0, 0.8, clips_seen=3200, parameters=3_500_000),
        *(row(name, seed, 0.3, **shared) for name in ("kd", "at") for seed in (0, 1)),
        *(row("tf_kd_self", seed, 0.2, teacher=["supervised_2v", seed]) for seed in (0, 1)),
        row("srm", 0, 0.1, teacher=["teacher", 7]),
    ]
    cells, caption = table(rows)
    assert {name: each["clips seen"] for name, each in cells.items()} == {
        "teacher": "3,200",
        **dict.fromkeys(("skd_srl", "supervised_2v", "supervised"), "1,600"),
        **dict.fromkeys(("kd", "at"), "1,600 + 3,200"),
        "tf_kd_self": "1,600 + 1,600",
        "srm": "1,600 + ?",  # its teacher's row is not there
    }
    assert "teacher of seed 0 (3,500,000 parameters), taught all runs of kd, at:" in caption
    assert "teacher of seed 7, taught all runs of srm:" in caption
    assert "Every run of tf_kd_self has a teacher of its own, the run of supervised_2v" in caption
    assert "taught" not in table(ROWS)[1]


def test_the_table_says_how_good_dictionaries_were():
    ended = [{"reconstruction_error": e, "atoms_in_use": a} for e, a in ((0.514, 0.25), (0.6, 0.4))]
    rows = [row("srm", i, 0.1, stages={"dictionary": each}) for i, each in enumerate(ended)]
    said = "srm ended, from seed to seed, at a relative reconstruction error of 0.51 to 0.60"
    caption = table([*ROWS, *rows])[1]
    assert said in caption and "with 25% to 40% of their atoms in use" in caption
    assert "dictionaries" not in table(ROWS)[1]


def test_the_table_says_which_clips_are_seen_without_labels():
    dictionary = {"step": 10, "reconstruction_error": 0.5, "atoms_in_use": 0.5}
    stages = {"dictionary": dictionary, "student": {"step": 30}}
    rows = [
        row("srm", 0, 0.1, stages=stages, steps=100),
        row("cs_kd", 0, 0.1),
        row("kd", 0, 0.1, stages={}),
    ]
    caption = table([*ROWS, *rows])[1]
    assert "srm uses no labels in the first 40% of its steps." in caption
    assert "Half of the clips of cs_kd are partners" in caption
    assert caption.count("labels") == 2


def test_the_table_says_at_which_commits_it_was_made():
    def said(*commits):
        rows = [row("supervised", seed, 0.4, commits=each) for seed, each in enumerate(commits)]
        return table(rows)[1].rpartition("2 cores, ")[2]

    other, dirty = {"commit": "fedcba9876", "uncommitted": False}, COMMIT | {"uncommitted": True}
    assert said([COMMIT], [COMMIT]) == "at 0123456."
    assert said([COMMIT], [other]) == "at mixed commits (0123456, fedcba9)."
    assert said([COMMIT, other], [other]).endswith("1 of 2 with more than one commit, resumed.")
    assert said([dirty], [COMMIT]) == "at 0123456; runs: 1 of 2 with code changed since the commit."
    unknown = {"commit": "", "uncommitted": None}
    assert said([COMMIT], [unknown]) == "at 0123456; runs: 1 of 2 with a commit not known."
    assert said([unknown], [unknown]) == "at a commit that is not known."


def test_every_source_of_settings_is_a_variants():
    from skd_jax import methods

    assert set(accuracy.SETTINGS_FROM) <= {*methods.names(), *accuracy.VARIANTS}


def test_plots_are_written(tmp_path):
    accuracy_table.plot_points(ROWS, tmp_path / "points.png", "supervised_2v")
    accuracy_table.plot_validation(ROWS, tmp_path / "curves.png", ["supervised", "skd_srl"])
    for path in tmp_path.iterdir():
        assert path.read_bytes().startswith(b"\x89PNG")


def test_a_run_that_is_there_twice_is_told():
    with pytest.raises(ValueError, match="supervised with seed 0 is there twice"):
        accuracy_table.summarise([ROWS[-1], ROWS[-1]], [])


def test_sweep_table_is_ordered_by_what_no_choice_has_favoured():
    """With all that differs, asked for or not, and apart by the commits."""

    def swept(setting, seed, late, commit="0123456789", **settings):
        return {
            "variant": "skd_srl",
            "setting": setting,
            "settings": {"method.a": 0, "method.b": 0, **settings, **setting, "train.seed": seed},
            "seed": seed,
            "validation_top1": 0.9,
            "validation_late": late,
            "commits": [{"commit": commit, "uncommitted": False}],
        }

    rows = [
        *(swept({"method.a": 1}, seed, 0.5 + seed / 10) for seed in range(2)),
        swept({}, 0, 0.7),
        swept({"method.a": 1}, 0, 0.8, commit="abcdef0123"),
        swept({"method.a": 1}, 0, 0.2, **{"method.b": 3}),  # a default that was another then
    ]
    del rows[3]["settings"]["method.b"]  # not there yet
    del rows[0]["commits"]
    text = accuracy_table.sweep_markdown(rows)
    assert "late, seeds" not in text  # no seed that all have
    assert text.splitlines()[2:] == [
        "| skd_srl: a=1, b=0 | abcdef0 | 0 | 0.800 | 0.900 |",
        "| skd_srl: a=0, b=0 | 0123456 | 0 | 0.700 | 0.900 |",
        "| skd_srl: a=1, b=0 | 0123456 | 1 | 0.600 | 0.900 |",
        "| skd_srl: a=1, b=0 | unknown | 0 | 0.500 | 0.900 |",
        "| skd_srl: a=1, b=3 | 0123456 | 0 | 0.200 | 0.900 |",
    ]
    rows[0]["commits"] = rows[1]["commits"]
    rows[4]["validation_late"] = 0.52  # below the mean of the two seeds, above the one it has too
    head, _, *lines = accuracy_table.sweep_markdown(rows).splitlines()
    assert "| commit | late, seeds 0 | seeds | late validation top-1 |" in head
    assert lines[-2:] == [
        "| skd_srl: a=1, b=3 | 0123456 | 0.520 | 0 | 0.520 | 0.900 |",
        "| skd_srl: a=1, b=0 | 0123456 | 0.500 | 0, 1 | 0.550 ± 0.071 | 0.900 |",
    ]
    alone = [{**rows[2], "variant": "supervised_2v"}]
    assert "| supervised_2v | 0123456 | 0 |" in accuracy_table.sweep_markdown(alone)


def test_the_table_of_a_sweeps_file_is_the_sweeps(tmp_path):
    row = {"variant": "a", "setting": {}, "settings": {}, "seed": 0}
    row |= {"validation_top1": 0.5, "validation_late": 0.4}
    accuracy.append_row(tmp_path / "s.jsonl", row)
    accuracy.main(["table", "--results", str(tmp_path / "s.jsonl")])
    assert "| a | unknown | 0 | 0.400 | 0.500 |" in (tmp_path / "s.md").read_text()


# --- budgets and plans ---

RECIPE = {
    "train": {
        "batch_size": 8,
        "duration": "50 epochs",
        "eval_every": "2 epochs",
        "checkpoint_every": "1 epochs",
    },
    "optim": {"warmup": "2 epochs", "boundaries": ("30 epochs",)},
}


@pytest.mark.parametrize("views,batch", [(1, 16), (2, 8), (4, 4)])
def test_every_method_takes_as_many_steps_of_as_many_clips(views, batch):
    got = accuracy.budget(RECIPE, videos=100, views=views)
    assert got["train.batch_size"] == batch
    assert got["train.duration"] == "625 steps"  # 50 x 100 / 8
    assert got["optim.warmup"] == got["train.eval_every"] == "25 steps"
    assert got["optim.boundaries"] == ["375 steps"]
    assert 625 * batch * views == 2 * 50 * 100


def test_one_view_may_take_twice_the_steps_instead():
    got = accuracy.budget(RECIPE, videos=100, views=1, longer=True)
    assert (got["train.batch_size"], got["train.duration"]) == (8, "1250 steps")
    assert got["optim.warmup"] == "50 steps"


def test_clips_that_cannot_be_shared_out_are_refused():
    with pytest.raises(UserError, match="16 clips .* cannot be made of 3 clips of a video"):
        accuracy.budget(RECIPE, videos=100, views=3)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """An info.json is all that planning reads."""
    folder = tmp_path_factory.mktemp("data")
    info = {
        "name": "ucf101",
        "fingerprint": "f" * 8,
        "class_names": list("abcdef"),
        "splits": {
            name: {"videos": n} for name, n in (("train", 80), ("validation", 8), ("test", 9))
        },
    }
    (folder / "info.json").write_text(json.dumps(info))
    return str(folder)


def planned(data, tmp_path, names, seeds=(0, 1), **options):
    return accuracy.plan(accuracy.CONFIG, names, seeds, data, tmp_path / "runs", **options)


def test_plan(data, tmp_path):
    runs = planned(
        data,
        tmp_path,
        ["supervised", "supervised_2v", "skd_srl_labels"],
        common={"train.duration": "50 epochs"},
        tuned={"skd_srl_labels": {"method.temperature": 4.0}},
    )
    assert [(r.variant, r.seed) for r in runs[::2]] == [
        ("supervised", 0),
        ("supervised_2v", 0),
        ("skd_srl_labels", 0),
    ]
    assert {r.facts["clips_seen"] for r in runs} == {2 * 50 * 80}
    assert {r.facts["steps"] for r in runs} == {500}
    one, two, labels = runs[0], runs[2], runs[5]
    assert (one.facts["batch"], two.facts["batch"]) == (16, 8)
    assert labels.facts["differences"]["method.lambda_sim"] == 0.0
    assert labels.facts["differences"]["method.temperature"] == 4.0
    assert labels.facts["differences"]["train.seed"] == 1
    assert labels.facts["settings_from"] == "given" and one.facts["settings_from"] == "none"
    assert "data.prepared" not in one.facts["settings"]
    assert "--config=configs/ucf101_tiny.py:supervised" in two.facts["command"]
    assert "--config.method.views=2" in two.facts["command"]
    assert "--config.method.lambda_kd=" in labels.facts["command"]  # defaults too


def test_where_the_hyper_parameters_of_a_variant_come_from():
    assert accuracy.settings_from("skd_srl") == "swept"
    assert accuracy.settings_from("skd_srl_t4") == "tried in skd_srl's sweep"
    assert accuracy.settings_from("supervised_2v") == "none"
    assert accuracy.settings_from("frskd_sla") == accuracy.settings_from("byot") == "published"


def test_a_value_that_is_empty_on_purpose_is_in_the_command(data, tmp_path):
    (run,) = planned(data, tmp_path, ["fitnet"], [0], common={"method.stages": ""})
    assert "--config.method.stages= " in run.facts["command"]
    assert "data.root=" not in run.facts["command"]  # empty in the file too


def test_a_test_without_views_is_refused_before_the_training(data, tmp_path):
    common = {"eval.clips": 1}
    with pytest.raises(UserError, match="one clip and one crop has no views that could agree"):
        planned(data, tmp_path, ["supervised"], [0], common=common)
    assert planned(data, tmp_path, ["supervised"], [0], common=common, test=False)


def test_hyper_parameters_of_all_runs_are_given_too(data, tmp_path):
    (run,) = planned(data, tmp_path, ["byot"], [0], common={"method.temperature": 2.0})
    assert run.facts["settings_from"] == "given"
    (run,) = planned(data, tmp_path, ["byot"], [0], common={"train.ema_decay": 0.9})
    assert run.facts["settings_from"] == "published"


def test_methods_with_a_teacher_wait_for_it(data, tmp_path):
    rounds = accuracy.with_teachers(["kd", "tf_kd_self", "supervised_2v"], [0, 1])
    assert rounds[0] == [("teacher", 0), ("supervised_2v", 0), ("supervised_2v", 1)]
    assert rounds[1] == [("kd", 0), ("tf_kd_self", 0), ("kd", 1), ("tf_kd_self", 1)]
    (run,) = planned(data, tmp_path, ["kd"], [1])
    teacher = run.spec["overrides"]["method.teacher"]
    assert teacher == planned(data, tmp_path, ["teacher"], [0])[0].spec["workdir"]


def test_a_sweep_trains_teachers_first_and_none_uses_the_test_videos(data, tmp_path, monkeypatch):
    begun = []

    def start(run, slot, jobs):
        begun.append((accuracy._label(run.variant, run.seed, run.facts["setting"]), run.spec))
        return {"validation_top1": 0.5, "validation_late": 0.5}

    monkeypatch.setattr(accuracy, "start_process", start)
    results = tmp_path / "sweep.jsonl"
    names = ["--methods", "kd", "tf_kd_self", "--seeds", "100", "--vary", "method.temperature=2"]
    places = ["--prepared", data, "--runs", str(tmp_path / "runs"), "--results", str(results)]
    accuracy.main(["sweep", *names, *places])
    assert [label for label, _ in begun] == [
        "teacher-seed0",
        "supervised_2v-seed100",
        "kd-seed100",
        "tf_kd_self-seed100",
        "kd-method.temperature=2-seed100",
        "tf_kd_self-method.temperature=2-seed100",
    ]
    assert not any(spec["test"] for _, spec in begun)
    teachers = [spec["workdir"] for _, spec in begun[:2]]
    assert [spec["overrides"]["method.teacher"] for _, spec in begun[2:]] == 2 * teachers
    assert begun[0][1]["settings"]["model.width"] == 0.5
    assert "| kd: temperature=2.0 | unknown | 100 | 0.500" in results.with_suffix(".md").read_text()
    rows = accuracy.read_rows(results)
    assert len(rows) == 6 and rows[2]["teacher"] == ["teacher", 0]
    # The count goes to the table of the results that the sweep's lie beside.
    assert accuracy_table.settings_tried(rows)["kd"] == 2


def test_unknown_names_are_told(data, tmp_path):
    with pytest.raises(UserError, match="did you mean 'supervised_2v'"):
        accuracy.variant("supervised_2w")
    with pytest.raises(UserError, match="configs/ucf101_tiny.py:skd_srl"):
        planned(data, tmp_path, ["skd_srl"], common={"method.lambda_simm": 1.0})


def test_tuned_values_are_those_of_variants(tmp_path):
    path = tmp_path / "tuned.json"
    path.write_text('{"skd_srl": {"method.lambda_sim": 0.5}}')
    assert accuracy.read_tuned(path) == {"skd_srl": {"method.lambda_sim": 0.5}}
    for text, said in (
        ('{"skd_sr": {}}', "did you mean 'skd_srl'"),
        ('{"skd_srl": 1}', "must hold"),
        ("[]", "must hold"),
        ("{", "tuned.json cannot be read as JSON"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=said):
            accuracy.read_tuned(path)
    with pytest.raises(UserError, match="none.json cannot be read"):
        accuracy.read_tuned(tmp_path / "none.json")


@pytest.mark.parametrize("root", [["--root", "/home/me/my videos"], ["--root=/home/me"]])
def test_rows_name_no_folder_of_videos(root):
    told = accuracy.harness_command(["run", "--prepared", "p", *root, "--jobs", "2"])
    assert told == "python -m benchmarks.accuracy run --prepared p --jobs 2"


def test_settings_of_a_sweep():
    vary = ["method.lambda_sim=0,0.5", "clips.mode=same_clip"]
    assert accuracy.settings_of(vary, product=False) == [
        {},
        {"method.lambda_sim": 0},
        {"method.lambda_sim": 0.5},
        {"clips.mode": "same_clip"},
    ]
    assert accuracy.settings_of(vary, product=True) == [
        {"method.lambda_sim": 0, "clips.mode": "same_clip"},
        {"method.lambda_sim": 0.5, "clips.mode": "same_clip"},
    ]
    with pytest.raises(UserError, match="write KEY=VALUE,VALUE"):
        accuracy.settings_of(["method.lambda_sim"], product=False)
    assert not set(accuracy.SEEDS) & set(accuracy.SWEEP_SEEDS)


# --- running ---


def measured(run, slot):
    return {"validation_top1": 0.5, "test_top1": 0.25, "slot": slot}


def test_finished_runs_are_not_run_again(data, tmp_path):
    runs, results = planned(data, tmp_path, ["supervised", "skd_srl"]), tmp_path / "r.jsonl"
    begun = []

    def start(run, slot):
        begun.append((run.variant, run.seed))
        if run.variant == "skd_srl" and len(begun) == 3:
            raise UserError("the machine went away")
        return measured(run, slot)

    failed = accuracy.execute(runs, results, start, log=lambda _: None, extra={"commit": "abc"})
    assert len(failed) == 1 and "skd_srl-seed0: the machine went away" in failed[0]
    with results.open("a") as file:
        file.write('{"variant": "skd_srl", "se')  # cut by a kill
    assert not accuracy.execute(runs, results, start, log=lambda _: None)
    rows = accuracy.read_rows(results)
    assert [(r["variant"], r["seed"]) for r in rows] == [
        ("supervised", 0),
        ("supervised", 1),
        ("skd_srl", 1),
        ("skd_srl", 0),
    ]
    assert begun[4:] == [("skd_srl", 0)] and rows[0]["commit"] == "abc"
    assert all(r["test_top1"] == 0.25 for r in rows)
    other = planned(data, tmp_path, ["skd_srl"], common={"optim.learning_rate": 0.5})
    with pytest.raises(UserError, match=r"skd_srl with seed 0 .* \(optim.learning_rate\)"):
        accuracy.left_to_do(other, rows)


def test_jobs_share_the_slots(data, tmp_path):
    together = threading.Barrier(2, timeout=20)

    def start(run, slot):
        together.wait()  # two are under way at once, or this breaks
        return measured(run, slot)

    runs = planned(data, tmp_path, ["supervised", "skd_srl"])
    results = tmp_path / "r.jsonl"
    assert not accuracy.execute(runs, results, start, jobs=2, log=lambda _: None)
    rows = accuracy.read_rows(results)
    assert len(rows) == 4 and {r["slot"] for r in rows} == {0, 1}


def test_what_another_command_has_run_meanwhile_is_left(data, tmp_path):
    runs, results = planned(data, tmp_path, ["supervised"]), tmp_path / "r.jsonl"

    def start(run, slot):
        for other in runs:
            accuracy.append_row(results, {**other.facts, **measured(other, slot)})
        raise UserError("another process is training in it")

    assert len(accuracy.execute(runs, results, start, log=lambda _: None)) == 1
    assert len(accuracy.read_rows(results)) == 2


def test_validation_and_speed(tmp_path):
    rows = [{"step": s, "split": "validation", "top1": s / 10} for s in range(1, 8)]
    got = accuracy_run.validation_of([*rows, {"step": 1, "split": "train", "top1": 1.0}])
    assert got["validation_top1"] == 0.7
    np.testing.assert_allclose(got["validation_late"], 0.5)  # of 0.3 to 0.7
    assert got["validation_curve"][0] == [1, 0.1]
    averaged = accuracy_run.validation_of([rows[0] | {"ema_top1": 0.9}])
    assert averaged["validation_top1"] == 0.9
    losses = [{"step": s, "split": "train", "top1": 1.0, "loss": s, "loss_kd": 2.5} for s in (1, 2)]
    assert accuracy_run.losses_of([*losses, {**rows[0], "loss": 9}]) == {"loss": 2, "loss_kd": 2.5}
    assert accuracy_run.losses_of(rows) == {}
    for name, rates in (("a", [1, 2, 8]), ("b", [4])):
        (tmp_path / name).mkdir()
        lines = [
            json.dumps({"step": 10 * (i + 1), "split": "train", "steps_per_second": rate})
            for i, rate in enumerate(rates)
        ]
        (tmp_path / name / "metrics.jsonl").write_text("\n".join(lines))
    # 30 steps at the median 2, 10 steps at 4 a second: 17.5 s for 40.
    got = accuracy_run.speed([tmp_path / "a", tmp_path / "b"])
    np.testing.assert_allclose(got["step_seconds"], 17.5 / 40)


def git(folder, *arguments):
    who = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    done = subprocess.run(
        ["git", *who, *arguments], cwd=folder, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A small checkout in place of the one that the harness runs from."""
    folder = tmp_path / "checkout"
    for name in ("skd_jax/losses.py", "benchmarks/a.py", "configs/c.py", "main.py", "README.md"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("1\n")
    (folder / ".gitignore").write_text("/runs/\n__pycache__/\n")
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "first")
    monkeypatch.setattr(accuracy_run, "_REPOSITORY", folder)
    return folder


def test_code_that_differs_from_its_commit_is_told(checkout, tmp_path, monkeypatch):
    head = git(checkout, "rev-parse", "HEAD")
    for name in (
        "docs/results/r.jsonl",
        "runs/x/log.txt",
        "skd_jax/__pycache__/a.pyc",
        "README.md",
    ):
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_text("2\n")
    assert accuracy_run.commit() == {"commit": head, "uncommitted": False}
    for name in ("skd_jax/new.py", "benchmarks/a.py", "configs/c.py", "main.py"):
        path = checkout / name
        before = path.read_text() if path.exists() else None
        path.write_text("2\n")
        assert accuracy_run.commit() == {"commit": head, "uncommitted": True}, name
        path.unlink() if before is None else path.write_text(before)
    assert not accuracy_run.commit()["uncommitted"]
    monkeypatch.setattr(accuracy_run, "_REPOSITORY", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert accuracy_run.commit() == {"commit": "", "uncommitted": None}
    monkeypatch.setenv("PATH", "")
    assert accuracy_run.commit() == {"commit": "", "uncommitted": None}


def test_a_run_keeps_every_commit_that_it_used(checkout, tmp_path):
    def now():
        return {"commit": git(checkout, "rev-parse", "HEAD"), "uncommitted": False}

    folder, first = tmp_path / "run", now()
    assert accuracy_run.note_commit(folder, resumed=False) == [first]
    assert accuracy_run.note_commit(folder, resumed=True) == [first]
    git(checkout, "commit", "-qm", "second", "--allow-empty")
    assert accuracy_run.note_commit(folder, resumed=True) == [first, now()]
    # Begun anew, what an attempt without a checkpoint used is of no account.
    assert accuracy_run.note_commit(folder, resumed=False) == [now()]
    # Resumed where no commits were noted: the run began at one that nobody knows.
    unknown = {"commit": "", "uncommitted": None}
    assert accuracy_run.note_commit(tmp_path / "older", resumed=True) == [unknown, now()]


def test_trains_and_tests_where_tensorflow_is_not_installed(tmp_path):
    """A process that cannot import it, as on a machine with a GPU and little else, gets clips as arrays."""
    from skd_jax import datasets

    config = tiny.config(tmp_path)
    folder = datasets.ensure_prepared(config, lambda _: None)
    common = {**_tiny_values(), "data.in_memory": True, "train.duration": "2 steps"}
    (run,) = accuracy.plan(
        "configs/demo.py", ["supervised"], [3], folder, tmp_path / "runs", common=common
    )
    spec = tmp_path / "spec.json"
    spec.write_text(json.dumps(run.spec))
    code = f"""
import sys
sys.modules["tensorflow"] = sys.modules["tensorflow_datasets"] = None
sys.argv = ["accuracy_run", {str(spec)!r}]
from benchmarks import accuracy_run
accuracy_run.main()
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tiny.REPOSITORY,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    measured = json.loads((tmp_path / "runs/supervised-seed3" / accuracy_run.MEASURED).read_text())
    assert sum(map(len, measured["test_correct"].values())) == 16


def _tiny_values():
    return {
        key: value
        for key, value in tiny._VALUES.items()
        if not key.startswith(("method.", "data.synthetic", "train.checkpoint", "data.workers"))
    }


def test_a_default_that_changed_since_the_planning_is_refused(data, tmp_path):
    (run,) = planned(data, tmp_path, ["skd_srl"], [0])
    run.spec["settings"]["method.temperature"] = 3.0
    with pytest.raises(UserError, match=r"code has changed .* \(method.temperature would differ\)"):
        accuracy_run.run(run.spec, lambda _: None)
    assert not (tmp_path / "runs").exists()


def test_a_tiny_run_for_real(tmp_path, monkeypatch):
    """Training, resuming after the fact, and the same test accuracy as --mode=evaluate has."""
    from skd_jax import datasets, modes

    config = tiny.config(tmp_path)
    folder = datasets.ensure_prepared(config, lambda _: None)
    common = _tiny_values() | {"train.duration": "4 steps", "train.eval_every": "2 steps"}
    (run,) = accuracy.plan(
        "configs/demo.py",
        ["supervised"],
        [3],
        folder,
        tmp_path / "runs",
        common=common,
    )
    results = tmp_path / "results.jsonl"
    used = [{"commit": "ab", "uncommitted": False}]
    monkeypatch.setattr(accuracy_run, "commit", lambda: used[-1])

    def start(run, slot):
        return accuracy_run.run(run.spec, lambda _: None)

    # A sweep's run, for one: the test videos are used once they may be.
    untested = accuracy_run.run(run.spec | {"test": False}, lambda _: None)
    assert "test_top1" not in untested and untested["commits"] == used
    used.append({"commit": "cd", "uncommitted": True})
    assert not accuracy.execute([run], results, start, log=lambda _: None)
    (row,) = accuracy.read_rows(results)
    assert row["commits"] == used and row["validation_top1"] == untested["validation_top1"]
    assert row["device"] == accuracy_run.machine.processor()
    assert row["steps"] == 4 and row["clips_seen"] == 4 * 16 == 4 * row["batch"]
    assert sum(map(len, row["test_correct"].values())) == row["data"]["test"] == 16
    hits = sum(flags.count("1") for flags in row["test_correct"].values())
    assert row["test_top1"] == hits / 16
    for name, values in row["test_views"].items():
        assert {g: len(v) for g, v in values.items()} == {
            g: len(v) for g, v in row["test_correct"].items()
        }
        np.testing.assert_allclose(
            np.mean(np.concatenate(list(values.values()))), row[name], atol=1e-4
        )
    assert [step for step, _ in row["validation_curve"]] == [2, 4]
    workdir = tmp_path / "runs" / "supervised-seed3"
    assert modes.run_evaluate(workdir, "test", lambda _: None)["top1"] == row["test_top1"]
    # With its results file lost, the run is measured no second time.
    results.unlink()
    monkeypatch.setattr(accuracy_run, "test_of", None)
    used.append({"commit": "ef", "uncommitted": False})
    assert not accuracy.execute([run], results, start, log=lambda _: None)
    assert accuracy.read_rows(results) == [row]
    other = run.spec | {"settings": row["settings"] | {"optim.momentum": 0.5}}
    with pytest.raises(UserError, match=r"is of another config \(optim.momentum\)"):
        accuracy_run.run(other, lambda _: None)
    assert "supervised" in accuracy_table.markdown([row], accuracy.BASELINES)
