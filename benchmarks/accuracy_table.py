"""What `benchmarks.accuracy` says of its results: pure functions of rows and arrays, NumPy alone.

A row is what one finished run left in the results file, see `benchmarks.accuracy`. Runs of two methods are
paired by their seed, and by the test videos, which all runs share.
"""

import io
import json
import math
import os
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Row = Mapping[str, Any]
LEVEL = 0.95
RESAMPLES = 20_000
_VIEWS = ("view_agreement", "view_cosine", "between_cosine")
_MARGIN = "margin"  # of the cosine within a video over that between videos


def view_values(logits: np.ndarray, embedding: np.ndarray) -> dict[str, np.ndarray]:
    """How far the views of each video agree.

    Args:
      logits: (N, V, K), N and V at least 2.
      embedding: (N, V, D).

    Returns:
      {name: (N,) float64}:
      view_agreement: share of the pairs of the video's views with the same top-1 class.
      view_cosine: mean cosine of the embeddings of such a pair.
      between_cosine: mean cosine of an embedding of the video and one of another; what a view_cosine
        must be seen against, since a collapsed network has 1 in both.
    """
    videos, views = logits.shape[:2]
    if videos < 2 or views < 2:
        raise ValueError(f"two videos of two views are needed, got {videos} of {views}")
    classes = logits.argmax(-1)
    same = (classes[:, :, None] == classes[:, None, :]).mean((1, 2))
    pairs = views / (views - 1)  # the mean over all V^2 pairs counts each view with itself
    unit = embedding.astype(np.float64)
    unit = unit / np.maximum(np.linalg.norm(unit, axis=-1, keepdims=True), 1e-12)
    of_video = unit.sum(1)
    inside = (of_video**2).sum(-1)  # of the V^2 pairs of each video
    own = (unit**2).sum((1, 2))  # V, but where an embedding is zero
    return {
        "view_agreement": 1 - (1 - same) * pairs,
        "view_cosine": (inside - own) / (views * (views - 1)),
        "between_cosine": (of_video @ of_video.sum(0) - inside) / (views**2 * (videos - 1)),
    }


def correctness(row: Row) -> dict[str, np.ndarray]:
    """{test group: 0 or 1 for each of its videos} of a run."""
    return {
        group: np.array([int(character) for character in flags], np.float64)
        for group, flags in row["test_correct"].items()
    }


def views_of(row: Row, name: str) -> dict[str, np.ndarray]:
    """{test group: value for each of its videos} of a run, of a name of `view_values` or of the margin."""
    if name == _MARGIN:
        within, between = views_of(row, "view_cosine"), views_of(row, "between_cosine")
        return {group: within[group] - between[group] for group in within}
    return {group: np.array(each) for group, each in row["test_views"][name].items()}


def paired_interval(
    first: Mapping[int, Mapping[str, np.ndarray]],
    second: Mapping[int, Mapping[str, np.ndarray]],
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, float]:
    """Difference of two methods on the test videos, with a bootstrap interval over seeds and test groups.

    Each resample draws seeds with replacement from those that both methods have, and, independently,
    groups of test videos, which are videos of one source and no independent examples. The
    statistic is the mean difference over the drawn seeds and the videos of the drawn groups; the
    interval holds the middle `level` of the resamples (percentile bootstrap over two crossed
    factors: Owen, "The pigeonhole bootstrap", Annals of Applied Statistics 2007).

    It errs to both sides. What seed and group make together, such as a video that one run happens to
    get right, counts about three times in its variance (Owen): too long. Of n seeds their own
    variance is taken for (n - 1) / n of what it is, and the tails are those of many seeds: too
    short. In simulations of 5 seeds and 42 groups of 5 videos, 600 experiments each, a 95 % interval
    held the true difference in 98 to 100 % of them for right and wrong answers of a logistic model
    whose seeds differ by up to a fifth of the noise's scale. For normal differences it did so in 100 %
    where noise made all of the mean's variance, in 95 to 98 % where seeds, groups and noise shared
    it (seeds with up to 60 %), in 95 % where groups made all of it, and in 83 % where seeds did. So
    it is mostly conservative, and too short where hardly anything but the seeds makes runs differ.

    Args:
      first, second: {seed: {group: (videos,) values, such as correctness}}; the groups are the same in
        all.
      level: of the interval.
      resamples: number of them.
      seed: of the resampling.

    Returns:
      difference, low, high (of first - second, of a video on average), seeds, and wins, the seeds at
      which the first is ahead (a tie is half).

    Raises:
      ValueError: no seed in common, or other test videos.
    """
    seeds = sorted(first.keys() & second.keys())
    if not seeds:
        raise ValueError("the two methods have no seed in common")
    groups = sorted(first[seeds[0]])
    sizes = np.array([len(first[seeds[0]][group]) for group in groups], np.float64)
    totals = np.zeros((len(seeds), len(groups)))
    for i, number in enumerate(seeds):
        for run in (first[number], second[number]):
            if {g: len(v) for g, v in run.items()} != dict(zip(groups, sizes, strict=True)):
                raise ValueError(f"seed {number} was tested on other videos")
        totals[i] = [(first[number][g] - second[number][g]).sum() for g in groups]
    rng = np.random.default_rng(seed)
    of_seed = rng.multinomial(len(seeds), np.full(len(seeds), 1 / len(seeds)), resamples)
    of_group = rng.multinomial(len(groups), np.full(len(groups), 1 / len(groups)), resamples)
    drawn = np.einsum("rs,sg,rg->r", of_seed / len(seeds), totals, of_group)
    drawn = drawn / (of_group @ sizes)
    tail = (1 - level) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    ahead = totals.sum(1)
    return {
        "difference": float(totals.mean(0).sum() / sizes.sum()),
        "low": float(low),
        "high": float(high),
        "seeds": len(seeds),
        "wins": float(((ahead > 0) + 0.5 * (ahead == 0)).sum()),
    }


def by_variant(rows: Sequence[Row]) -> dict[str, dict[int, Row]]:
    """{variant: {seed: row}}, in the order in which variants first come.

    Raises:
      ValueError: a run is there twice.
    """
    found: dict[str, dict[int, Row]] = {}
    for row in rows:
        runs = found.setdefault(row["variant"], {})
        if row["seed"] in runs:
            raise ValueError(f"{row['variant']} with seed {row['seed']} is there twice")
        runs[row["seed"]] = row
    return found


def summarise(rows: Sequence[Row], baselines: Sequence[str], **options: Any) -> list[dict]:
    """One entry for each variant: means over its seeds, and the paired differences.

    Args:
      rows: of finished runs.
      baselines: variants to subtract; those without runs are passed over.
      **options: of `paired_interval`.

    Returns:
      [{"variant", "method", "seeds", "test", "test_sd", "validation", "step_seconds", "clips_seen",
      "step_range", "teachers", "teacher_clips", "settings_from", the means of `view_values` with "_sd",
      "against": {baseline: paired_interval or None}, "views_against": {name: likewise against the first
      baseline}}, ...], best first. "step_range" is the largest over the smallest; "teachers" are the (variant, seed) of the runs that
      taught, "teacher_clips" the clips that such a run has seen, None where its row is absent.
    """
    variants = by_variant(rows)
    right = {
        name: {seed: correctness(row) for seed, row in runs.items()}
        for name, runs in variants.items()
    }
    views = {
        key: {
            name: {seed: views_of(row, key) for seed, row in runs.items() if "test_views" in row}
            for name, runs in variants.items()
        }
        for key in (*_VIEWS, _MARGIN)
    }
    entries, first = [], next(iter(baselines), "")
    for name, runs in variants.items():

        def mean(key, runs=runs):
            return statistics.fmean(row[key] for row in runs.values())

        def deviation(key, runs=runs):
            values = [row[key] for row in runs.values()]
            return statistics.stdev(values) if len(values) > 1 else None

        teachers = sorted({tuple(row["teacher"]) for row in runs.values() if row.get("teacher")})
        taught = [variants.get(teacher, {}).get(seed) for teacher, seed in teachers]
        entries.append(
            {
                "variant": name,
                "method": next(iter(runs.values()))["method"],
                "seeds": sorted(runs),
                "test": mean("test_top1"),
                "test_sd": deviation("test_top1"),
                "validation": mean("validation_top1"),
                "step_seconds": mean("step_seconds"),
                "step_range": max(row["step_seconds"] for row in runs.values())
                / min(row["step_seconds"] for row in runs.values()),
                "clips_seen": mean("clips_seen"),
                "teachers": teachers,
                "teacher_clips": statistics.fmean(row["clips_seen"] for row in taught)
                if taught and None not in taught
                else None,
                **{k: mean(k) for k in _VIEWS},
                **{f"{k}_sd": deviation(k) for k in _VIEWS},
                "settings_from": " and ".join(sorted({r["settings_from"] for r in runs.values()})),
                "against": {
                    baseline: _paired(right, name, baseline, options)
                    for baseline in baselines
                    if baseline in right
                },
                "views_against": {
                    key: _paired(values, name, first, options) for key, values in views.items()
                },
            }
        )
    return sorted(entries, key=lambda entry: -entry["test"])


def _paired(values: Mapping, name: str, baseline: str, options: Mapping) -> dict | None:
    """`paired_interval` of two variants; None if they are one, or have no seed in common."""
    first, second = values[name], values.get(baseline, {})
    if name == baseline or not first.keys() & second.keys():
        return None
    return paired_interval(first, second, **options)


def markdown(
    rows: Sequence[Row],
    baselines: Sequence[str],
    tried: Mapping[str, int] | None = None,
    **options: Any,
) -> str:
    """The table of `summarise` as Markdown, with what one must know to read it below.

    Args:
      rows: of finished runs.
      baselines: variants to subtract.
      tried: {method: settings} of its sweep on validation, see `settings_tried`.
      **options: of `paired_interval`.
    """
    entries = summarise(rows, baselines, **options)
    shown = [name for name in baselines if any(name in e["against"] for e in entries)]
    reference = next((e for e in entries if e["variant"] in shown[:1]), None)
    columns: dict[str, Callable[[Mapping], str]] = {
        "method": lambda e: e["variant"],
        "hyper-parameters": lambda e: _settings(e, tried or {}),
        "seeds": lambda e: str(len(e["seeds"])),
        "test top-1": lambda e: _spread(e, "test"),
    }
    columns |= _columns_against(shown)
    columns |= {
        "validation": lambda e: f"{e['validation']:.3f}",
        "clips seen": lambda e: f"{e['clips_seen']:,.0f}" + _teacher_clips(e),
        "time of a step": lambda e: (
            f"{e['step_seconds'] / reference['step_seconds']:.2f}"
            if reference
            else f"{1000 * e['step_seconds']:.0f} ms"
        ),
    }
    parts = [
        *_table(entries, columns, words=2),
        "",
        _caption(rows, entries, reference, tried or {}),
    ]
    return "\n".join([*parts, "", *_table_of_views(entries, next(iter(baselines), "")), ""])


def short_markdown(rows: Sequence[Row], baselines: Sequence[str], **options: Any) -> str:
    """What the README shows of `markdown`: fewer columns.

    Args:
      rows: of finished runs, some of the first baseline among them.
      baselines: variants to subtract; the time of a step of the first is 1.
      **options: of `paired_interval`.

    Raises:
      ValueError: no run of the first baseline.
    """
    entries = summarise(rows, baselines, **options)
    reference = next((e for e in entries if e["variant"] == baselines[0]), None)
    if reference is None:
        raise ValueError(f"no run of {baselines[0]}")
    columns: dict[str, Callable[[Mapping], str]] = {
        "method": lambda e: f"`{e['variant']}`",
        "seeds": lambda e: str(len(e["seeds"])),
        "test top-1": lambda e: _spread(e, "test"),
    }
    columns |= _columns_against(reference["against"], quote="`")
    columns |= {
        "views agree": lambda e: f"{e['view_agreement']:.3f}",
        "cosine within a video": lambda e: f"{e['view_cosine']:.3f}",
        "time of a step": lambda e: f"{e['step_seconds'] / reference['step_seconds']:.2f}",
    }
    return "\n".join([*_table(entries, columns), ""])


def _columns_against(
    baselines: Iterable[str], quote: str = ""
) -> dict[str, Callable[[Mapping], str]]:
    return {
        f"against {quote}{name}{quote} [95 %]": lambda e, name=name: _difference(e["against"][name])
        for name in baselines
    }


def _table(
    entries: Sequence[Mapping], columns: Mapping[str, Callable[[Mapping], str]], words: int = 1
) -> list[str]:
    """Lines of a Markdown table, an entry a row; the first columns hold words, the others numbers."""
    lines = [_line(list(columns)), _line(["---"] * words + ["---:"] * (len(columns) - words))]
    return lines + [_line([cell(entry) for cell in columns.values()]) for entry in entries]


def _table_of_views(entries: Sequence[Mapping], first: str) -> list[str]:
    """How far the clips of a video agree; differences where any run has the videos' values."""
    columns: dict[str, Callable[[Mapping], str]] = {"method": lambda e: e["variant"]}
    paired = any(any(entry["views_against"].values()) for entry in entries)

    def against(title: str, key: str) -> None:
        if paired:
            columns[f"{title}, against {first} [95 %]"] = lambda e: _difference(
                e["views_against"][key]
            )

    columns["views agree"] = lambda e: _spread(e, "view_agreement")
    against("views agree", "view_agreement")
    columns["cosine within a video"] = lambda e: _spread(e, "view_cosine")
    against("cosine within a video", "view_cosine")
    columns["cosine between videos"] = lambda e: _spread(e, "between_cosine")
    against("within less between", _MARGIN)
    said = (
        "Views are the clips that a test video is evaluated by: the share of their pairs with the same "
        "top-1 class, and the mean cosine of their embeddings, of one video and of different ones. "
        "Within less between is 0 for a network that gives all videos one embedding."
    )
    return [*_table(entries, columns), "", said]


def chance_bound(videos: int, classes: int, probability: float = 0.001) -> float:
    """The top-1 that guessing reaches or exceeds with less than a probability.

    The smallest k / videos with P(X >= k) < probability for X of Binomial(videos, 1 / classes), exactly.
    """
    p, tail = 1 / classes, 0.0
    for k in range(videos, -1, -1):
        tail += math.comb(videos, k) * p**k * (1 - p) ** (videos - k)
        if tail >= probability:
            return (k + 1) / videos
    raise ValueError(f"a probability of {probability} is above 1")


def settings_tried(
    rows: Sequence[Row], defaults: Mapping[str, Mapping[str, Any]] | None = None
) -> dict[str, int]:
    """{method: how many different settings} among the rows of sweeps; the same at two lengths is one.

    Args:
      rows: of sweeps.
      defaults: {method: {key of its settings: value}}, for a key that came later and that no row has at
        its default.
    """
    found: dict[str, set[str]] = {}
    for row, values in zip(rows, _filled(rows), strict=True):
        values = {**(defaults or {}).get(row["method"], {}), **values}
        values = {k: v for k, v in values.items() if not k.startswith(("train.", "optim."))}
        found.setdefault(row["method"], set()).add(json.dumps(values, sort_keys=True))
    return {method: len(settings) for method, settings in found.items()}


def _filled(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The settings of each row but the seed; a key that came later was at its default, as elsewhere."""
    defaults: dict[tuple[str, str], Any] = {}
    for row in rows:
        for key, value in row["settings"].items():
            if key not in row["setting"]:
                defaults.setdefault((row["variant"], key), value)
    filled = []
    for row in rows:
        missing = {
            key: value
            for (variant, key), value in defaults.items()
            if variant == row["variant"] and key not in row["settings"]
        }
        filled.append({**missing, **row["settings"]})
        filled[-1].pop("train.seed", None)
    return filled


def _spread(entry: Mapping[str, Any], key: str) -> str:
    deviation = entry[f"{key}_sd"]
    return f"{entry[key]:.3f}" + ("" if deviation is None else f" ± {deviation:.3f}")


def _settings(entry: Mapping[str, Any], tried: Mapping[str, int]) -> str:
    source, number = entry["settings_from"], tried.get(entry["method"])
    return f"{source} ({number})" if source.startswith("swept") and number else source


def _teacher_clips(entry: Mapping[str, Any]) -> str:
    if not entry["teachers"]:
        return ""
    clips = entry["teacher_clips"]
    return " + ?" if clips is None else f" + {clips:,.0f}"


def _difference(interval: Mapping[str, float] | None) -> str:
    if interval is None:
        return ""
    low, high, wins = (interval[key] for key in ("low", "high", "wins"))
    if interval["seeds"] < 2:  # an interval would leave out how seeds differ
        return f"{interval['difference']:+.3f}, one seed"
    return (
        f"{interval['difference']:+.3f} [{low:+.3f}, {high:+.3f}], "
        f"ahead at {wins:g} of {interval['seeds']}"
    )


def _caption(
    rows: Sequence[Row],
    entries: Sequence[Mapping],
    reference: Mapping | None,
    tried: Mapping[str, int],
) -> str:
    data = rows[0]["data"]
    groups = len(rows[0]["test_correct"])
    seen = sorted({row["clips_seen"] for row in rows})
    budget = " or ".join(f"{count:,}" for count in seen)
    repeated = any(len(entry["seeds"]) > 1 for entry in entries)
    parts = [
        (
            f"{data['name']}, {data['train']} training, {data['validation']} validation and "
            f"{data['test']} test videos; {budget} clips seen in a training run."
        ),
        *_said_of_chance(data),
        (
            "Mean and standard deviation over the seeds; the checkpoint is the best on the validation "
            "videos, the test videos were used once a run."
        ),
        (
            "Differences are paired by seed and video; intervals are percentile bootstraps over seeds "
            f"and the {groups} groups of test videos, mostly wider than they should be, narrower where hardly "
            "anything but the seed makes runs differ (`paired_interval`); a tie counts as half a seed ahead. "
            "They are not widened for the number of comparisons."
            if repeated
            else "Of one seed a method there are no intervals: what only the seed moves is not known."
        ),
        *_said_of_settings(entries, tried),
        *_said_of_teachers(rows, entries),
        *_said_of_dictionaries(rows),
        *_said_of_labels(rows),
    ]
    if reference:
        spread = max(e["step_range"] for e in entries)
        parts.append(
            f"The time of a step is that of {reference['variant']} "
            f"({1000 * reference['step_seconds']:.0f} ms) times the number, as it was in these runs"
            + (
                f": it differed by a factor of up to {spread:.1f} from one seed to another"
                if repeated
                else ""
            )
            + ". Costs measured in turn are in docs/methods.md."
        )
    devices = sorted({row["device"] for row in rows})
    return " ".join([*parts, f"Made on {', '.join(devices)}, {_said_of_commits(rows)}."])


def _said_of_chance(data: Mapping[str, Any]) -> list[str]:
    if "classes" not in data:  # of the oldest rows
        return []
    bound, classes = chance_bound(data["test"], data["classes"]), data["classes"]
    return [
        (
            f"Guessing among the {classes} classes is right in {1 / classes:.3f} of them, and in "
            f"{bound:.3f} or more with a probability below 0.001."
        )
    ]


def _said_of_settings(entries: Sequence[Mapping], tried: Mapping[str, int]) -> list[str]:
    sources = {
        "published": (
            '"Published" are those of the paper, of its authors\' code or of a public '
            "re-implementation, in part where docs/methods.md names a choice of this project, and were "
            "not tuned here"
        ),
        "swept": '"Swept" are defaults that this project chose on the validation videos',
        "tried": (
            '"Tried" is one of the settings of that sweep, not the one chosen there; it became a variant '
            "before its first test result"
        ),
        "given": '"Given" are those that the command set',
    }
    parts = ["All share one recipe; beyond it a method has its own hyper-parameters."]
    for word, said in sources.items():
        those = [entry for entry in entries if word in entry["settings_from"]]
        if those:
            counted = word == "swept" and any("(" in _settings(entry, tried) for entry in those)
            parts.append(
                said + (", from as many settings as stand in brackets." if counted else ".")
            )
    return parts


def _said_of_teachers(rows: Sequence[Row], entries: Sequence[Mapping]) -> list[str]:
    runs = by_variant(rows)
    shared: dict[tuple[str, int], list[str]] = {}
    own = []
    for entry in entries:
        if len(entry["teachers"]) == 1:
            shared.setdefault(entry["teachers"][0], []).append(entry["variant"])
        elif entry["teachers"]:
            own.append(entry)
    parts = []
    if shared or own:
        parts.append("Behind a plus stand the clips that the teacher had seen before.")
    for (name, seed), taught in shared.items():
        parameters = runs.get(name, {}).get(seed, {}).get("parameters")
        size = f" ({parameters:,} parameters)" if parameters else ""
        parts.append(
            f"One teacher, {name} of seed {seed}{size}, taught all runs of {', '.join(taught)}: "
            "their deviations and intervals hold for that teacher and leave out how teachers differ."
        )
    for entry in own:
        names = ", ".join(sorted({name for name, _ in entry["teachers"]}))
        parts.append(
            f"Every run of {entry['variant']} has a teacher of its own, the run of {names} with its "
            "seed, and so costs two trainings."
        )
    return parts


def _said_of_labels(rows: Sequence[Row]) -> list[str]:
    """Which variants learn from the labels of fewer clips than they see."""
    parts = []
    for name, runs in by_variant(rows).items():
        row = next(iter(runs.values()))
        before = sum(stage.get("step", 0) for stage in row.get("stages", {}).values())
        if before:
            parts.append(
                f"{name} uses no labels in the first {before / row['steps']:.0%} of its steps."
            )
        if row["method"] == "cs_kd":
            parts.append(f"Half of the clips of {name} are partners, whose labels it does not use.")
    return parts


def _said_of_dictionaries(rows: Sequence[Row]) -> list[str]:
    """How good the dictionaries of SRM's first stage were when it ended."""
    parts = []
    for name, runs in by_variant(rows).items():
        stages = [row.get("stages", {}) for row in runs.values()]
        ended = [each["dictionary"] for each in stages if "dictionary" in each]
        if ended:
            errors = [each["reconstruction_error"] for each in ended]
            atoms = [each["atoms_in_use"] for each in ended]
            parts.append(
                f"The dictionaries of {name} ended, from seed to seed, at a relative reconstruction error of "
                f"{min(errors):.2f} to {max(errors):.2f} (1 is that of zeros), with {min(atoms):.0%} to "
                f"{max(atoms):.0%} of their atoms in use."
            )
    return parts


def _said_of_commits(rows: Sequence[Row]) -> str:
    runs = [row["commits"] for row in rows]
    names = sorted({each["commit"][:7] for used in runs for each in used if each["commit"]})
    if not names:
        return "at a commit that is not known"
    text = f"at {names[0]}" if len(names) == 1 else f"at mixed commits ({', '.join(names)})"
    counts = (
        ("code changed since the commit", [any(c["uncommitted"] for c in used) for used in runs]),
        ("more than one commit, resumed", [len({c["commit"] for c in used}) > 1 for used in runs]),
        ("a commit not known", [not all(c["commit"] for c in used) for used in runs]),
    )
    told = [f"{sum(those)} of {len(rows)} with {what}" for what, those in counts if any(those)]
    return text + (f"; runs: {', '.join(told)}" if told else "")


def sweep_markdown(rows: Sequence[Row]) -> str:
    """Settings tried on validation, best first on the seeds that all have; those of two commits stand apart.

    Args:
      rows: with "variant", "setting" {dotted key: value}, "settings" (all values of the config), "commits",
        "seed", "validation_top1" (of the best checkpoint) and "validation_late" (mean of the last
        evaluations, which no choice has favoured).
    """
    filled = _filled(rows)
    values: dict[tuple[str, str], set[str]] = {}
    for row, settings in zip(rows, filled, strict=True):
        for key, value in settings.items():
            values.setdefault((row["variant"], key), set()).add(json.dumps(value))
    found: dict[tuple[str, str], list[Row]] = {}
    for row, settings in zip(rows, filled, strict=True):
        shown = (key for key in sorted(settings) if len(values[row["variant"], key]) > 1)
        name = ", ".join(f"{key.removeprefix('method.')}={settings[key]}" for key in shown)
        label = f"{row['variant']}: {name}" if name else row["variant"]
        commits = ", ".join(c["commit"][:7] or "unknown" for c in row.get("commits", []))
        found.setdefault((label, commits or "unknown"), []).append(row)
    shared = set.intersection(*({row["seed"] for row in runs} for runs in found.values()))
    apart = any({row["seed"] for row in runs} != shared for runs in found.values())
    same = (
        f"late, seeds {', '.join(str(seed) for seed in sorted(shared))}" if apart and shared else ""
    )

    def late(runs: Sequence[Row]) -> float:
        """Over the seeds that all settings have; means over different seeds do not compare."""
        return statistics.fmean(
            row["validation_late"] for row in runs if not shared or row["seed"] in shared
        )

    head = ["variant and setting", "commit", *([same] if same else []), "seeds"]
    lines = [_line([*head, "late validation top-1", "best validation top-1"])]
    lines.append(_line(["---", "---", *["---:"] * len(head)]))
    for (name, commits), runs in sorted(found.items(), key=lambda item: -late(item[1])):
        tops = [row["validation_late"] for row in runs]
        deviation = f" ± {statistics.stdev(tops):.3f}" if len(tops) > 1 else ""
        best = statistics.fmean(row["validation_top1"] for row in runs)
        seeds = ", ".join(str(seed) for seed in sorted(row["seed"] for row in runs))
        values_of = [*([f"{late(runs):.3f}"] if same else []), seeds]
        values_of += [f"{statistics.fmean(tops):.3f}{deviation}", f"{best:.3f}"]
        lines.append(_line([name, commits, *values_of]))
    return "\n".join([*lines, ""])


def plot_points(rows: Sequence[Row], path: str | os.PathLike, baseline: str | None = None) -> None:
    """Draws test top-1 of every seed as a point, a method a row, the mean as a bar."""
    variants = by_variant(rows)
    order = sorted(variants, key=lambda name: -_mean_top1(variants[name]))
    order.reverse()  # the table's order, but the axis begins below
    figure, axes = _figure(7.0, 1.2 + 0.34 * len(order))
    seeds = sorted({row["seed"] for row in rows})
    for y, name in enumerate(order):
        runs = variants[name]
        for seed, row in runs.items():
            # The same seed at the same height in every row.
            offset = 0.5 * (seeds.index(seed) / max(len(seeds) - 1, 1) - 0.5)
            axes.plot(row["test_top1"], y + offset, "o", color="#0072B2", alpha=0.65, markersize=5)
        mean = _mean_top1(runs)
        axes.plot([mean, mean], [y - 0.36, y + 0.36], color="#D55E00", linewidth=2.2)
    if baseline in variants:
        mean = _mean_top1(variants[baseline])
        axes.axvline(mean, color="0.6", linewidth=1, linestyle="--", zorder=0)
    axes.set_yticks(range(len(order)), order)
    dashed = f"\ndashed: the mean of {baseline}" if baseline in variants else ""
    axes.set_xlabel(f"test top-1; a point for each seed, a bar for their mean{dashed}")
    _save(figure, path)


def plot_validation(rows: Sequence[Row], path: str | os.PathLike, variants: Sequence[str]) -> None:
    """Draws the validation curves of some variants: every seed pale, their mean strong."""
    found = by_variant(rows)
    figure, axes = _figure(6.4, 4.0)
    colours = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
    for number, name in enumerate(name for name in variants if name in found):
        colour = colours[number % len(colours)]
        curves = [np.array(row["validation_curve"], np.float64) for row in found[name].values()]
        for curve in curves:
            axes.plot(*curve.T, color=colour, alpha=0.25, linewidth=0.8)
        if len({len(curve) for curve in curves}) == 1:
            axes.plot(*np.mean(curves, axis=0).T, color=colour, linewidth=2, label=name)
    axes.set(xlabel="step", ylabel="validation top-1")
    axes.grid(alpha=0.3, linewidth=0.6)
    axes.legend(frameon=False)
    _save(figure, path)


def _mean_top1(runs: Mapping[int, Row]) -> float:
    return statistics.fmean(row["test_top1"] for row in runs.values())


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _figure(width: float, height: float):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, math.ceil(height * 10) / 10), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure, path: str | os.PathLike) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    buffer = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(buffer, format="png", dpi=150)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_bytes(buffer.getvalue())
    part.replace(path)
