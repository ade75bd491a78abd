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
    named = set(re.findall(r"\b(?:configs|skd_jax|docs)/[\w/]+\.(?:py|png|md)", readme))
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
