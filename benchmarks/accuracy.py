"""What the methods give: test accuracy of method x seed under one recipe and one budget.

    python -m benchmarks.accuracy run --root /data/ucf101 --prepared prepared/ucf101_tiny --runs runs/accuracy \\
      --results docs/results/ucf101_tiny.jsonl --methods supervised supervised_2v skd_srl
    python -m benchmarks.accuracy table --results docs/results/ucf101_tiny.jsonl
    python -m benchmarks.accuracy sweep --prepared prepared/ucf101_tiny --runs runs/sweep \\
      --results docs/results/sweep.jsonl --methods skd_srl --vary method.lambda_sim=0,0.05,0.1,0.2,0.5,1

Recipe: that of the config file. Budget: clips seen = training steps x videos of a batch x clips of each. The
config's batch and duration are those of two clips of a video; every method takes as many steps with as
many clips in each, so one that sees a single clip of a video takes twice the videos at a time, and has them in a
step of its BatchNorm. Warm-up, evaluations and all else that the config counts in epochs happen at the same
steps; the stages of a method share the one budget, and each has its share of these. Clips of a video's partner of the same
class count, though CS-KD learns nothing from their labels; turned or mixed copies of a clip do not, nor does
what a frozen teacher costs beyond its forward pass. "supervised_long" spends the budget on
twice the steps instead, with the config's own number of videos. The table has what a step costs in time,
and the clips that a teacher has seen before.

Hyper-parameters are those of `configs` and the methods' defaults; `SETTINGS_FROM` says where those come
from. `--tuned FILE` names others: {"skd_srl": {"method.lambda_sim": 0.5}}; they should come from `sweep`,
which trains with seeds of its own, looks at the validation videos alone and leaves the test split where it
is. Validation videos are groups held out of the training list. A run's checkpoint is the best on them, and
the test videos are used once, for that checkpoint. The results of sweeps that lie beside those of the runs,
FILE_sweep.jsonl and FILE_..._sweep.jsonl beside FILE.jsonl, tell the table how many settings were tried.

`--set data.in_memory=True` holds the frames of a small data set in memory, decoded once; it needs no
TensorFlow, once the data set is prepared.

A results file is of one split and one choice of classes; others, `--set data.split=2`, have a --prepared,
--runs and --results of their own.

Every run has a workdir below --runs and goes on from its last checkpoint when the same command is given
again; finished ones are in the results file, a JSON object a line, and are not run again. A row names the
commits of the code that its run has used, from its start to its end. Runs of a method that learns from a
teacher wait for the teacher's: "teacher", a network twice as wide trained on two views, of the first seed, and for
tf_kd_self the supervised run of its own seed. A sweep trains teachers first too, at their defaults and
without the test videos.
"""

import argparse
import concurrent.futures
import dataclasses
import itertools
import json
import os
import queue
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import accuracy_run, accuracy_table
from skd_jax import durations, methods, settings, workdir
from skd_jax.data import prepared
from skd_jax.errors import UserError
from skd_jax.names import unknown

SEEDS = (0, 1, 2, 3, 4)
SWEEP_SEEDS = (100, 101)  # none of those that are reported
BASELINES = ("supervised_2v", "supervised")
CONFIG = "configs/ucf101_tiny.py"

# Where the hyper-parameters of a variant, else those of a method, come from. "published", in the paper, its authors' code or a public
# re-implementation as docs/methods.md says, if it is not named here.
SETTINGS_FROM = {
    "supervised": "none",
    "skd_srl": "swept",  # lambda_sim on validation; T and lambda_kd are those of its authors' earlier method
    "skd_srl_labels": "swept for skd_srl",
    "skd_srl_similarity": "swept for skd_srl",
    "skd_srl_past": "swept for skd_srl, published for the past teacher",
    "skd_srl_t4": "tried in skd_srl's sweep",
    "ddgsd": "published in part",  # the weight of its third term is recalled
    "icsd": "published in part",  # the weight of its own term is this project's
    "nfd": "published in part",  # likewise
    "srm": "published in part",  # the middle of the grid that its authors searched
    "tf_kd_self": "published for kd",  # its authors tuned them for each network
}

# Where things lie and how they are run; a row does not depend on it.
_PLACES = ("data.prepared", "data.root", "method.teacher", "train.threads", "train.log_every")


@dataclasses.dataclass(frozen=True)
class Variant:
    """What a row of the table is.

    Attributes:
      method: a name of `methods.names()`.
      overrides: values of the config that make the variant what it is.
      longer: spends the budget on more steps with the config's own number of videos.
      teacher: variant that teaches; "" for the default of methods that take a teacher.
      teacher_seed: of its run; None takes that of the student.
    """

    method: str
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    longer: bool = False
    teacher: str = "teacher"
    teacher_seed: int | None = SEEDS[0]


# Every method is a variant under its own name too.
VARIANTS = {
    "supervised_2v": Variant("supervised", {"method.views": 2}),
    "supervised_long": Variant("supervised", longer=True),
    "skd_srl_labels": Variant("skd_srl", {"method.lambda_sim": 0.0}),
    "skd_srl_similarity": Variant("skd_srl", {"method.lambda_kd": 0.0}),
    # Soft labels about as strong as DDGSD's; chosen for that, before any of its test results.
    "skd_srl_t4": Variant(
        "skd_srl", {"method.lambda_kd": 1.0, "method.temperature": 4.0, "method.scale_by_t2": True}
    ),
    # Teaching Yourself on top, with that method's own weight.
    "skd_srl_past": Variant("skd_srl", {"method.past_teacher": 0.1}),
    "frskd_sla": Variant("frskd", {"method.sla": True}),
    "frskd_mixup": Variant("frskd", {"method.mix": "mixup"}),
    "frskd_cutmix": Variant("frskd", {"method.mix": "cutmix"}),
    "teacher": Variant("supervised", {"method.views": 2, "model.width": 0.5}),
    "tf_kd_self": Variant("tf_kd_self", teacher="supervised_2v", teacher_seed=None),
}


@dataclasses.dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
      variant: its name.
      seed: of the run.
      spec: for `accuracy_run`.
      facts: of the row, known before it is trained.
    """

    variant: str
    seed: int
    spec: dict[str, Any]
    facts: dict[str, Any]


def variant(name: str) -> Variant:
    """A variant by name.

    Raises:
      UserError: there is none; the message gives the nearest.
    """
    if name in VARIANTS:
        return VARIANTS[name]
    if name in methods.names():
        return Variant(name)
    raise unknown("method", name, {*VARIANTS, *methods.names()})


def teacher_of(name: str, seed: int) -> tuple[str, int] | None:
    """(variant, seed) of the run that teaches a variant's run; None for those without a teacher."""
    chosen = variant(name)
    if not methods.takes_teacher(chosen.method):
        return None
    return chosen.teacher, seed if chosen.teacher_seed is None else chosen.teacher_seed


def origin(name: str, seed: int, given: bool) -> dict[str, Any]:
    """What a row says of a run's hyper-parameters and teacher.

    Args:
      name: of the variant.
      seed: of the run.
      given: whether the command set some of the hyper-parameters.

    Returns:
      "settings_from", "given" or see `SETTINGS_FROM`, and for methods that take one "teacher"
      [variant, seed].
    """
    teacher = teacher_of(name, seed)
    return {
        "settings_from": "given" if given else settings_from(name),
        **({"teacher": list(teacher)} if teacher else {}),
    }


def settings_from(name: str) -> str:
    """Where the hyper-parameters of a variant come from, see `SETTINGS_FROM`."""
    return SETTINGS_FROM.get(name) or SETTINGS_FROM.get(variant(name).method, "published")


def budget(
    config: Mapping[str, Any], videos: int, views: int, longer: bool = False
) -> dict[str, Any]:
    """The values of the config by which a method sees as many clips as two-view supervision would.

    Args:
      config: the recipe; its batch and durations are those of two clips of a video.
      videos: in the training split.
      views: clips of each video in the method's batches.
      longer: see `Variant`.

    Returns:
      {dotted key: value}.

    Raises:
      UserError: the clips of a step are no multiple of the views.
    """
    size = config["train"]["batch_size"]
    clips = 2 * size
    if clips % views:
        raise UserError(
            f"a step of {clips} clips (config.train.batch_size={size}, two of each video) cannot be "
            f"made of {views} clips of a video; take a batch_size that makes {clips} a multiple of "
            f"{views}"
        )
    batch = size if longer else clips // views
    if longer and clips % (batch * views):
        raise UserError(f"{views} clips of each of {batch} videos are more than {clips} clips")
    factor = clips // (batch * views)

    def steps(duration: str | int, key: str) -> str:
        return f"{factor * durations.steps(duration, videos / size, key)} steps"

    values: dict[str, Any] = {"train.batch_size": batch}
    for key in ("train.duration", "train.eval_every", "train.checkpoint_every", "optim.warmup"):
        section, name = key.split(".")
        values[key] = steps(config[section][name], key)
    boundaries = config["optim"]["boundaries"]
    values["optim.boundaries"] = [steps(b, "optim.boundaries") for b in boundaries]
    return values


def plan(
    config_file: str,
    names: Sequence[str],
    seeds: Sequence[int],
    data: str,
    runs: Path,
    *,
    common: Mapping[str, Any] | None = None,
    tuned: Mapping[str, Mapping[str, Any]] | None = None,
    setting: Mapping[str, Any] | None = None,
    test: bool = True,
    threads: int = 0,
) -> list[Run]:
    """The runs of some variants and seeds.

    Args:
      config_file: the recipe.
      names: of variants.
      seeds: of each.
      data: prepared data set.
      runs: folder of the workdirs.
      common: values of the config that differ from the file, for all runs.
      tuned: {variant: values}, beyond the defaults.
      setting: values of a sweep's run, beyond those.
      test: whether they may use the test split.
      threads: of the input pipeline; 0 is one for each core.

    Raises:
      UserError: an unknown variant or config key, or data of another recipe.
    """
    info = prepared.load_info(data)
    videos = {name: split["videos"] for name, split in info["splits"].items()}
    for needed in ("train", "validation", *(("test",) if test else ())):
        if needed not in videos:
            raise UserError(f"{data} has no {needed} split")
    if test and videos["test"] < 2:
        raise UserError(f"{data} has {videos['test']} test video; its agreement needs two or more")
    planned = []
    for name, seed in itertools.product(names, seeds):
        chosen = variant(name)
        changes = {
            **(common or {}),
            **chosen.overrides,
            **(tuned or {}).get(name, {}),
            **(setting or {}),
        }
        given = bool((tuned or {}).get(name)) or any(k.startswith("method.") for k in common or {})
        recipe = accuracy_run.load_config(config_file, chosen.method, changes)
        evaluation = settings.evaluation(recipe)
        if test and evaluation.clips * evaluation.crops < 2:
            raise UserError(
                f"{config_file}: a test video of one clip and one crop has no views that could agree; "
                "--set eval.clips=2 or more"
            )
        views = settings.method(recipe, len(info["class_names"]), videos["train"]).num_views
        changes |= budget(recipe, videos["train"], views, chosen.longer)
        changes["train.seed"] = seed
        places: dict[str, Any] = {"data.root": "", "data.prepared": os.path.abspath(data)}
        if threads:
            places["train.threads"] = threads
        if teacher := teacher_of(name, seed):
            places["method.teacher"] = str(runs / _label(*teacher))
        config = accuracy_run.load_config(config_file, chosen.method, changes | places)
        default = workdir.flat(accuracy_run.load_config(config_file, chosen.method, {}))
        flat = workdir.flat(config)
        values = json.loads(json.dumps({k: v for k, v in flat.items() if k not in _PLACES}))
        default = json.loads(json.dumps(default))
        folder = runs / _label(name, seed, setting)
        spec = {
            "config_file": config_file,
            "method": chosen.method,
            "overrides": changes | places,
            "workdir": str(folder),
            "test": test,
            "settings": values,
        }
        steps = int(changes["train.duration"].split()[0])
        planned.append(
            Run(
                name,
                seed,
                spec,
                {
                    "variant": name,
                    "method": chosen.method,
                    "seed": seed,
                    **({"setting": dict(setting)} if setting is not None else {}),
                    **origin(name, seed, given),
                    "config": config_file,
                    "differences": {k: v for k, v in values.items() if v != default.get(k)},
                    "settings": values,
                    "command": _command(spec, default),
                    "data": {
                        "name": info["name"],
                        "fingerprint": info["fingerprint"],
                        "classes": len(info["class_names"]),
                        **videos,
                    },
                    "views": views,
                    "batch": config["train"]["batch_size"],
                    "steps": steps,
                    "clips_seen": steps * config["train"]["batch_size"] * views,
                },
            )
        )
    return planned


def with_teachers(names: Sequence[str], seeds: Sequence[int]) -> list[list[tuple[str, int]]]:
    """(variant, seed) of what is to be run, in rounds: teachers first, then seed by seed.

    Stopped early, what is there compares all the variants on the seeds so far.
    """
    wanted = [(name, seed) for seed in seeds for name in names]
    first = list(dict.fromkeys(filter(None, (teacher_of(*run) for run in wanted))))
    return [first, [run for run in wanted if run not in first]]


def read_rows(path: Path) -> list[dict]:
    """Rows of a results file; none where it is absent. A line cut by a kill is left out."""
    rows = []
    if path.is_file():
        for line in path.read_text().splitlines():
            try:
                rows.append(json.loads(line))
            except ValueError:
                continue
    return rows


def read_tuned(path: Path) -> dict[str, dict[str, Any]]:
    """{variant: {config key: value}} of a file.

    Raises:
      UserError: it cannot be read, is no such object, or names an unknown variant.
    """
    try:
        tuned = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(tuned, dict) or not all(isinstance(v, dict) for v in tuned.values()):
        raise UserError(f'{path} must hold {{"METHOD": {{"config key": value}}}}')
    for name in tuned:
        variant(name)
    return tuned


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """Adds a row at the end, on a line of its own even after one that a kill has cut.

    In one write, so that several runs and commands may share a file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b", buffering=0) as file:
        file.seek(max(file.seek(0, os.SEEK_END) - 1, 0))
        cut = file.read() not in (b"", b"\n")
        file.write((b"\n" if cut else b"") + json.dumps(row).encode() + b"\n")


def left_to_do(runs: Iterable[Run], rows: Sequence[Mapping[str, Any]]) -> list[Run]:
    """The runs that have no row yet.

    Raises:
      UserError: a row is of a run with the same name and another config.
    """
    done = {_key(row): row for row in rows}
    left = []
    for run in runs:
        row = done.get(_key(run.facts))
        if row is None:
            left.append(run)
            continue
        then, now = ({**r["settings"], "data": r["data"]["fingerprint"]} for r in (row, run.facts))
        # A key that came later was at its default.
        changed = sorted(key for key in then.keys() & now.keys() if then[key] != now[key])
        if changed:
            raise UserError(
                f"the results hold {run.variant} with seed {run.seed} of another config "
                f"({', '.join(changed)}); take another --results and --runs"
            )
    return left


def execute(
    runs: Sequence[Run],
    results: Path,
    start: Callable[[Run, int], Mapping[str, Any]],
    jobs: int = 1,
    log: Callable[[str], None] = print,
    extra: Mapping[str, Any] | None = None,
) -> list[str]:
    """Runs what is left and appends its rows.

    Args:
      runs: in the order in which they are started.
      results: the file.
      start: trains a run in the slot 0 to jobs - 1 and returns what it measured.
      jobs: runs at once.
      log: takes one line of text.
      extra: what every row gets besides.

    Returns:
      Messages of the runs that failed; the others went on.
    """
    left = left_to_do(runs, read_rows(results))
    log(f"{len(runs) - len(left)} of {len(runs)} runs are there, {len(left)} to do")
    slots: queue.SimpleQueue = queue.SimpleQueue()
    for slot in range(jobs):
        slots.put(slot)
    failed: list[str] = []

    def one(run: Run) -> None:
        slot = slots.get()
        label = _label(run.variant, run.seed, run.facts.get("setting"))
        try:
            if not left_to_do([run], read_rows(results)):
                log(f"there   {label}, by another command meanwhile")
                return
            log(f"start   {label}")
            row = {**run.facts, **(extra or {}), **start(run, slot)}
            append_row(results, row)
            # What it reached on the test videos stands in the table: nobody is to judge by the first runs.
            log(f"finish  {label}: validation {row['validation_top1']:.3f}")
        except Exception as error:  # noqa: BLE001  one run's fault stops no other
            failed.append(f"{label}: {error}")
            log(f"failed  {label}: {error}")
        finally:
            slots.put(slot)

    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        list(pool.map(one, left))
    return failed


def start_process(run: Run, slot: int, jobs: int) -> Mapping[str, Any]:
    """Trains a run in a process of its own; with several jobs, on core `slot` alone.

    Raises:
      UserError: it failed; the message names its log.
    """
    folder = Path(run.spec["workdir"])
    folder.mkdir(parents=True, exist_ok=True)
    workdir.write_json(folder / "spec.json", run.spec)
    cores = sorted(os.sched_getaffinity(0)) if jobs > 1 else [0]
    own = {cores[slot % len(cores)]}
    # A method's seeds differ in data alone: one compilation serves them all, where it can be stored
    # (not with oneDNN's calls, on CPU: `skd_jax.models.onednn`).
    compiled = {
        "JAX_COMPILATION_CACHE_DIR": str(folder.parent / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "1",
    }
    with (folder / "log.txt").open("a") as log:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.accuracy_run", str(folder / "spec.json")],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=compiled | os.environ,
            # XLA, TensorFlow and the JPEG decoders take as many threads as they see cores.
            preexec_fn=(lambda: os.sched_setaffinity(0, own)) if jobs > 1 else None,
            check=False,
        )
    if done.returncode:
        last = (folder / "log.txt").read_text().strip().splitlines()[-1:]
        raise UserError(f"{' '.join(last)} ({folder / 'log.txt'})")
    return json.loads((folder / accuracy_run.MEASURED).read_text())


def settings_of(vary: Sequence[str], product: bool) -> list[dict[str, Any]]:
    """The settings of a sweep: the defaults, and each value on its own, or all combinations.

    Args:
      vary: "key=value,value,..." each.
      product: all combinations.
    """
    axes = {}
    for text in vary:
        key, sign, values = text.partition("=")
        if not sign or not values:
            raise UserError(
                f"--vary {text}: write KEY=VALUE,VALUE, such as method.lambda_sim=0,0.2"
            )
        axes[key] = [_value(value) for value in values.split(",")]
    if product:
        return [dict(zip(axes, each, strict=True)) for each in itertools.product(*axes.values())]
    return [{}, *({key: value} for key, values in axes.items() for value in values)]


def _value(text: str) -> Any:
    try:
        return json.loads(text.lower() if text in ("True", "False") else text)
    except ValueError:
        return text


def _label(name: str, seed: int, setting: Mapping[str, Any] | None = None) -> str:
    parts = [f"{key}={value}" for key, value in sorted((setting or {}).items())]
    return "-".join([name, *(part.replace("/", "_") for part in parts), f"seed{seed}"])


def _key(row: Mapping[str, Any]) -> str:
    return _label(row["variant"], row["seed"], row.get("setting"))


def _command(spec: Mapping[str, Any], default: Mapping[str, Any]) -> str:
    """What trains the same with main.py; on as many cores it ends with the same test accuracy.

    Empty values are left out where the config file has them too, by `default`.
    """
    hyper_parameters = {
        k: v for k, v in spec["settings"].items() if k.startswith("method.") and k != "method.name"
    }
    values = hyper_parameters | spec["overrides"]
    values.pop("train.threads", None)
    values["data.prepared"] = os.path.relpath(values["data.prepared"])
    return shlex.join(
        [
            "python",
            "main.py",
            f"--config={spec['config_file']}:{spec['method']}",
            f"--workdir={spec['workdir']}",
            *(
                f"--config.{k}={v}"
                for k, v in values.items()
                if v not in ("", []) or v != default.get(k)
            ),
        ]
    )


def harness_command(arguments: Sequence[str]) -> str:
    """The command as rows have it: without where one machine keeps its videos, see `--prepared`."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--root")
    _, told = parser.parse_known_args(arguments)
    return shlex.join(["python", "-m", "benchmarks.accuracy", *told])


def _prepare(arguments: argparse.Namespace, common: Mapping[str, Any]) -> None:
    if not arguments.root:
        return
    values = {"data.root": arguments.root, "data.prepared": arguments.prepared}
    values |= {key: value for key, value in common.items() if key.startswith("data.")}
    subprocess.run(
        [
            sys.executable,
            "main.py",
            "--mode=prepare",
            f"--config={arguments.config}",
            *(f"--config.{key}={value}" for key, value in values.items()),
        ],
        check=True,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    modes = parser.add_subparsers(dest="mode", required=True)
    for name in ("run", "sweep"):
        mode = modes.add_parser(name)
        mode.add_argument("--config", default=CONFIG)
        mode.add_argument("--prepared", required=True, help="prepared data set, for all runs")
        mode.add_argument("--root", default="", help="the videos, to prepare them first")
        mode.add_argument("--runs", type=Path, required=True, help="folder of the workdirs")
        mode.add_argument("--results", type=Path, required=True, help="JSON lines")
        mode.add_argument("--methods", nargs="+", required=True)
        seeds = SEEDS if name == "run" else SWEEP_SEEDS
        mode.add_argument("--seeds", nargs="+", type=int, default=list(seeds))
        mode.add_argument("--tuned", type=Path, help="JSON: {method: {config key: value}}")
        mode.add_argument(
            "--set", nargs="+", default=[], metavar="KEY=VALUE", help="config values of all runs"
        )
        mode.add_argument("--jobs", type=int, default=1, help="runs at once, a core each")
    modes.choices["sweep"].add_argument("--vary", nargs="+", required=True, metavar="KEY=V,V,...")
    modes.choices["sweep"].add_argument("--product", action="store_true", help="all combinations")
    table = modes.add_parser("table")
    table.add_argument("--results", type=Path, required=True)
    table.add_argument("--baselines", nargs="+", default=list(BASELINES))
    table.add_argument("--short", action="store_true", help="only print the README's columns")
    return parser


def _run(arguments: argparse.Namespace) -> None:
    common = {}
    for text in arguments.set:
        key, sign, value = text.partition("=")
        if not sign:
            raise UserError(f"--set {text}: write KEY=VALUE")
        common[key] = _value(value)
    tuned = read_tuned(arguments.tuned) if arguments.tuned else {}
    _prepare(arguments, common)
    options = {
        "common": common,
        "tuned": tuned,
        "threads": 1 if arguments.jobs > 1 else 0,
    }

    def planned(names, seeds, **more) -> list[Run]:
        return plan(
            arguments.config, names, seeds, arguments.prepared, arguments.runs, **options, **more
        )

    rounds = with_teachers(arguments.methods, arguments.seeds)
    if arguments.mode == "sweep":
        teachers = [
            run
            for name, seed in rounds[0]
            for run in planned([name], [seed], setting={}, test=False)
        ]
        swept = [
            run
            for setting in settings_of(arguments.vary, arguments.product)
            for run in planned(arguments.methods, arguments.seeds, setting=setting, test=False)
        ]
        rounds = [teachers, swept]
    else:
        rounds = [
            [run for name, seed in part for run in planned([name], [seed])] for part in rounds
        ]
    extra = {"harness": harness_command(sys.argv[1:])}
    failed = []
    for part in filter(None, rounds):
        failed += execute(
            part,
            arguments.results,
            lambda run, slot: start_process(run, slot, arguments.jobs),
            arguments.jobs,
            lambda line: print(line, flush=True),
            extra,
        )
    if failed:
        raise UserError(
            f"{len(failed)} runs failed; where the cause is gone, the same command goes on with them"
        )
    _table(arguments.results, BASELINES)


def _table(results: Path, baselines: Sequence[str], short: bool = False) -> None:
    rows = read_rows(results)
    if not rows:
        raise UserError(f"{results} holds no finished run")
    if short:
        print(accuracy_table.short_markdown(rows, baselines), end="")
        return
    if all("setting" in row for row in rows):  # of a sweep
        _write(results.with_suffix(".md"), accuracy_table.sweep_markdown(rows))
        return
    # As it is known today: the rows of 61a558c call all variants of a method what its defaults are.
    rows = [
        row
        if row["settings_from"] == "given"
        else row | {"settings_from": settings_from(row["variant"])}
        for row in rows
    ]
    sweeps = sorted(results.parent.glob(f"{results.stem}*_sweep.jsonl"))
    swept = [row for path in sweeps for row in read_rows(path)]
    defaults = {
        row["method"]: {f"method.{k}": v for k, v in methods.defaults(row["method"]).items()}
        for row in swept
    }
    tried = accuracy_table.settings_tried(swept, defaults)
    text = accuracy_table.markdown(rows, baselines, tried)
    _write(results.with_suffix(".md"), text)
    accuracy_table.plot_points(rows, results.with_suffix(".png"), baselines[0])
    accuracy_table.plot_validation(
        rows, results.with_name(results.stem + "_validation.png"), [*baselines, "skd_srl"]
    )


def _write(path: Path, text: str) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(text)
    os.replace(part, path)
    print(text)
    print(f"written: {path}")


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    arguments = _parser().parse_args(argv)
    try:
        if arguments.mode == "table":
            try:
                _table(arguments.results, arguments.baselines, arguments.short)
            except ValueError as error:
                raise UserError(f"{arguments.results}: {error}") from None
        else:
            _run(arguments)
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
