"""What the README shows runs, and what it and docs/ name is there."""

import collections
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


def test_what_was_swept_behind_the_comparison_is_as_told():
    rows = accuracy.read_rows(tiny.REPOSITORY / "docs/results/ucf101_tiny_sweep_later.jsonl")
    found = collections.defaultdict(dict)
    for row in rows:
        assert "test_top1" not in row
        found[row["variant"], *sorted(row["setting"].items())][row["seed"]] = row["validation_late"]
    late = {key: [of_seed[s] for s in range(100, 105)] for key, of_seed in found.items()}
    said = {k: f"{statistics.fmean(x):.3f} ± {statistics.stdev(x):.3f}" for k, x in late.items()}
    together = "method.views_together"
    apart, both = (said["supervised_2v", (together, value)] for value in (False, True))
    readme, results = (
        " ".join((tiny.REPOSITORY / name).read_text().split())
        for name in ("README.md", "docs/results/README.md")
    )
    assert f"nothing on validation: {both} with 16, {apart} with 8" in readme
    assert len(said) == 8
    for told in said.values():
        assert told in results

    def interval(first, second):
        pairs = zip(late[first], late[second], strict=True)
        differences = [a - b for a, b in pairs]
        mean = statistics.fmean(differences)
        half = 2.7764 * statistics.stdev(differences) / 5**0.5  # t at 0.975, 4 degrees of freedom
        return mean, mean - half, mean + half

    ours = ("skd_srl",)
    changes = [key for key in said if key[0] == "skd_srl" and key != ours]
    intervals = {key: interval(key, ours) for key in changes}
    assert all(low < 0 < high for _, low, high in intervals.values())
    largest = max(intervals.values(), key=lambda x: abs(x[0]))
    normalised = interval(("supervised_2v", (together, True)), ("supervised_2v", (together, False)))
    same = intervals["skd_srl", ("clips.mode", "same_clip")]
    assert largest == same
    for start, (mean, low, high), end in (
        ("same clip's, is ", same, ":"),
        ("16 together (", normalised, ")"),
    ):
        between = " with a 95 % interval (t, four degrees of freedom) of " if end == ":" else " "
        assert f"{start}{mean:+.3f}{between}[{low:+.3f}, {high:+.3f}]{end}" in results


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
def test_every_key_of_a_method_is_named_where_it_is_described(name):
    said = (tiny.REPOSITORY / "docs/methods.md").read_text()
    own = re.search(rf"^### {name}\n(.*?)^##", said, re.MULTILINE | re.DOTALL)[1]
    of_all = said[: said.index("\n### ")]
    taught = said[said.index("## Teacher and student") : said.index("### kd")]
    text = own + of_all + (taught if methods.takes_teacher(name) else "")
    letters = {"temperature": r"\bT\b"}
    unnamed = [
        k for k in methods.defaults(name) if not re.search(letters.get(k, rf"\b{k}\b"), text)
    ]
    assert not unnamed


@pytest.mark.parametrize("name", methods.names())
def test_every_method_is_described_and_its_cost_given(name):
    said = (tiny.REPOSITORY / "docs/methods.md").read_text()
    assert re.findall(rf"^### {name}$", said, re.MULTILINE) == [f"### {name}"]
    assert len(re.findall(rf"^\| `{name}` \|(?: [\d.,]+ \|){{3}}", said, re.MULTILINE)) == 1
    assert f"`{name}`" in (tiny.REPOSITORY / "README.md").read_text()
