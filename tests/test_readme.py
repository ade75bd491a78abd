"""What the README shows runs, and what it and docs/ name is there."""

import re
import statistics

import pytest

from benchmarks import accuracy, accuracy_table
from skd_jax import methods
from tests import tiny


def test_the_library_example():
    readme = (tiny.REPOSITORY / "README.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    names: dict = {}
    exec(example, names)  # noqa: S102  the text is our own
    assert names["logits"].shape == (2, 101)
    assert names["embedding"].shape == (2, 128)
    assert len(names["maps"]) == 4


def test_every_file_and_config_it_names_is_there():
    readme = (tiny.REPOSITORY / "README.md").read_text()
    named = set(re.findall(r"\b(?:configs|skd_jax|docs|benchmarks)/[\w/]+\.(?:py|png|md)", readme))
    assert "configs/demo.py" in named
    assert [name for name in sorted(named) if not (tiny.REPOSITORY / name).is_file()] == []


def test_the_accuracies_are_those_of_the_runs():
    rows = accuracy.read_rows(tiny.REPOSITORY / "docs/results/ucf101_tiny.jsonl")
    of_seeds = [
        seeds for name, seeds in accuracy_table.by_variant(rows).items() if name != "teacher"
    ]
    assert [sorted(seeds) for seeds in of_seeds] == [list(accuracy.SEEDS)] * 17
    readme = (tiny.REPOSITORY / "README.md").read_text()
    assert accuracy_table.short_markdown(rows, accuracy.BASELINES) in readme


def test_what_it_says_of_the_comparison_is_so():
    rows = accuracy.read_rows(tiny.REPOSITORY / "docs/results/ucf101_tiny.jsonl")
    runs = accuracy_table.by_variant(rows)
    readme = " ".join((tiny.REPOSITORY / "README.md").read_text().split())
    entries = accuracy_table.summarise(rows, accuracy.BASELINES)
    of = {entry["variant"]: entry for entry in entries}
    compared = [entry for entry in entries if entry["variant"] != "teacher"]

    for entry in compared:
        for against in entry["against"].values():
            assert against is None or against["low"] < 0 < against["high"]
    assert "the 95 % interval of every difference in test top-1 includes 0" in readme
    tops = sorted((entry["test"] for entry in compared), reverse=True)
    assert tops.index(of["skd_srl"]["test"]) == 11 and "twelfth of seventeen" in readme
    for key, said in (
        ("view_agreement", "Its views agree in {:.3f} more of their pairs"),
        ("view_cosine", "embeddings' cosine is {:.3f} higher"),
    ):
        more = of["skd_srl"][key] - of["supervised_2v"][key]
        assert said.format(more) in readme
    students = [of[name]["test"] for name in ("kd", "at", "srm")]
    assert of["teacher"]["test"] < min(students)
    assert f"ended below its students' means ({of['teacher']['test']:.3f})" in readme

    pairs = [(runs["skd_srl_labels"][i], runs["supervised_2v"][i]) for i in accuracy.SEEDS]
    furthest = max(abs(a["test_top1"] - b["test_top1"]) for a, b in pairs)
    assert f"the two end up to {furthest:.3f} apart" in readme
    weights = [
        row["settings"]["method.lambda_kd"] * row["losses"]["loss_kd"] / row["losses"]["loss_ce"]
        for row, _ in pairs
    ]
    assert f"weigh {min(weights):.3f} to {max(weights):.3f} of its cross-entropy" in readme
    both = [(entry["validation"], entry["test"]) for entry in compared]
    correlation = statistics.correlation(*zip(*both, strict=True))
    assert f"correlate at {correlation:.2f}" in readme
    srm = runs["srm"][0]
    unlabelled = sum(stage["step"] for stage in srm["stages"].values()) / srm["steps"]
    assert f"SRM the first {100 * unlabelled:.0f} % without any" in readme


def test_what_it_says_of_the_demo_s_embeddings_is_so():
    rows = accuracy.read_rows(tiny.REPOSITORY / "docs/results/demo_seeds.jsonl")
    of = {e["variant"]: e for e in accuracy_table.summarise(rows, accuracy.BASELINES)}
    more = of["skd_srl"]["views_against"]["view_cosine"]
    readme = " ".join((tiny.REPOSITORY / "README.md").read_text().split())
    interval = f"({more['difference']:+.3f} [{more['low']:+.3f}, {more['high']:+.3f}])"
    cosines = f"({of['skd_srl']['view_cosine']:.3f} against {of['supervised']['view_cosine']:.3f})"
    assert f"supervision on two views {interval}, but not than on one {cosines}" in readme
    once = [
        row["test_top1"] for row in accuracy.read_rows(tiny.REPOSITORY / "docs/results/demo.jsonl")
    ]
    assert f"{min(once):.3f} to {max(once):.3f}, when its batches were half as large" in readme


def test_the_demo_s_accuracies_are_those_of_the_runs():
    rows = accuracy.read_rows(tiny.REPOSITORY / "docs/results/demo_seeds.jsonl")
    said = {}
    for name, runs in accuracy_table.by_variant(rows).items():
        assert sorted(runs) == list(accuracy.SEEDS)
        tops = [row["test_top1"] for row in runs.values()]
        said[name] = f"{statistics.fmean(tops):.3f} ± {statistics.stdev(tops):.3f}"
    readme = " ".join((tiny.REPOSITORY / "README.md").read_text().split())
    assert (
        f"SKD-SRL ended at {said['skd_srl']}, supervision on two views at {said['supervised_2v']} and on "
        f"one at {said['supervised']}"
    ) in readme


def test_every_method_beats_chance_on_the_demo():
    rows = accuracy.read_rows(tiny.REPOSITORY / "docs/results/demo.jsonl")
    assert {row["method"] for row in rows} == set(methods.names())
    data = rows[0]["data"]
    bound = accuracy_table.chance_bound(data["test"], data["classes"])
    lowest = min(row["test_top1"] for row in rows)
    assert lowest > 2 * bound
    said = (tiny.REPOSITORY / "docs/methods.md").read_text()
    assert f"right in {lowest:.3f} of the test videos; guessing reaches {bound:.3f}" in said


@pytest.mark.parametrize("name", methods.names())
def test_every_method_is_described_and_its_cost_given(name):
    said = (tiny.REPOSITORY / "docs/methods.md").read_text()
    assert re.findall(rf"^### {name}$", said, re.MULTILINE) == [f"### {name}"]
    assert len(re.findall(rf"^\| `{name}` \|(?: [\d.,]+ \|){{3}}", said, re.MULTILINE)) == 1
    assert f"`{name}`" in (tiny.REPOSITORY / "README.md").read_text()
