"""What `main.py --mode=...` does, one function a mode."""

import contextlib
import dataclasses
import functools
import importlib.metadata
import platform
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from skd_jax import (
    checkpoint,
    classifier,
    datasets,
    evaluate,
    initial,
    methods,
    metrics,
    models,
    optim,
    parallel,
    report,
    settings,
    stages,
    step,
    teacher,
    train,
    workdir,
)
from skd_jax.data import prepared
from skd_jax.errors import UserError
from skd_jax.models.cost import cost

Config = Mapping[str, Any]
Log = Callable[[str], None]

_PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "numpy",
    "tensorflow",
    "av",
    "pillow",
)


def run_prepare(config: Config, log: Log) -> None:
    """Prepares the data set of a config.

    Raises:
      UserError: as `datasets.ensure_prepared`.
    """
    folder = datasets.ensure_prepared(config, log)
    if folder is not None:
        log(f"prepared data: {folder}")


def run_models(log: Log) -> None:
    """Lists every model: parameters at 400 classes, multiply-accumulates of one usual clip."""
    names = models.names()
    entries = {name: models.describe(name) for name in names}
    clips = {name: "x".join(map(str, entry.clip)) for name, entry in entries.items()}
    longest, clip_longest = max(map(len, names)), max(map(len, clips.values()))

    def line(name, parameters, macs, clip, source):
        log(f"{name:{longest}}  {parameters:>12}  {macs:>7}  {clip:{clip_longest}}  {source}")

    line("model", "parameters", "GMACs", "at", "source")
    for name in names:
        total = cost(models.create(name, num_classes=400), entries[name].clip)
        macs = f"{total.macs / 1e9:.3f}"
        line(name, f"{total.parameters:,}", macs, clips[name], entries[name].source)


def run_train(
    config: Config,
    folder: Path,
    log: Log,
    overridden: Collection[str] = (),
    test: bool = True,
) -> bool:
    """Trains, then evaluates the chosen checkpoint on the test split.

    Args:
      config: all of it.
      folder: the workdir.
      log: takes one line of text.
      overridden: dotted keys of the config that were set on the command line, see `initial`.
      test: False leaves the test split alone.

    Returns:
      Whether training has ended, rather than been stopped by a SIGTERM.

    Raises:
      UserError: whatever the user can mend; see `train.train`, `prepare`, `workdir.claim`,
        `workdir.locked`.
    """
    _refuse_imported(folder)
    config = initial.resolve(config, overridden, folder, log)
    config = teacher.resolve(config, folder, log)
    settings.check(config)
    parallel.check_batch_size(config["train"]["batch_size"], config["train"]["accumulate"])
    with contextlib.ExitStack() as lock:
        parallel.on_first(lambda: lock.enter_context(workdir.locked(folder)))
        parallel.on_first(lambda: _claim(folder, config))
        return _train_and_test(config, folder, log, test)


def _train_and_test(config: Config, folder: Path, log: Log, test: bool) -> bool:
    batch_size = config["train"]["batch_size"]
    data_folder = datasets.ensure_prepared(config, log)
    if data_folder is None:
        raise UserError(
            "other machines have yet to prepare their shards; train once they are done, "
            "without config.data.shards"
        )
    data = datasets.describe(data_folder)
    for path in (*stages.folders(folder), folder):
        parallel.on_first(functools.partial(_record, path, data))

    videos = data["splits"]["train"]["videos"]
    method = settings.method(config, len(data["class_names"]), videos)
    parallel.check_compared(
        config["method"]["name"], batch_size, config["train"]["accumulate"], method.least_batch
    )
    steps_per_epoch = videos / batch_size
    loop = settings.loop(config, steps_per_epoch)
    optim_settings = settings.optimiser(config, steps_per_epoch)
    log(
        f"{config['method']['name']} on {data['name']}: {len(data['class_names'])} classes, "
        f"{videos} training videos, {loop.total_steps} steps of {batch_size} videos x "
        f"{method.num_views} views, {jax.device_count()} {jax.default_backend()} device(s)"
    )
    trainings = stages.plan(method, loop.total_steps, folder)
    finished = True
    for training in stages.to_do(trainings):
        parallel.on_first(functools.partial(workdir.claim, training.folder, config))
        parallel.on_first(functools.partial(_record, training.folder, data))
        finished = _train(config, training, trainings, loop, optim_settings, data, log)
        if not finished:
            break
    if not finished or not test:
        return finished
    if _default_split(data) is None:
        log(f"trained: {folder}; there is no test or validation split to evaluate on")
    else:
        run_evaluate(folder, "", log)
    return True


def _train(
    config: Config,
    training: stages.Training,
    trainings: tuple[stages.Training, ...],
    loop: train.LoopSettings,
    optim_settings: optim.OptimSettings,
    data: dict[str, Any],
    log: Log,
) -> bool:
    log = training.log(log)
    method, optim_settings = training.method, training.optimiser(optim_settings)
    batches = datasets.loop_data(config, data["prepared"], method, log)
    if training.title:
        log(f"{training.steps} of {training.total_steps} steps, in {training.folder}")
    if training.name:
        batches = dataclasses.replace(batches, validation=None)
    return train.train(
        method,
        optim.optimiser(
            optim_settings,
            training.steps,
            method.constant_lr,
            settings.finetuning(config).lr_groups,
        ),
        optim.schedule(optim_settings, training.steps),
        settings.augmentation(config),
        training.loop(loop),
        batches,
        training.folder,
        log,
        _initial_variables(config, data, log),
        stages.teacher(
            training,
            trainings,
            _teacher_variables(config, trainings[-1].method, data, log),
            log,
        ),
        begin=stages.begin(training, trainings, log),
        label=f"training, {training.title}" if training.title else "training",
    )


def _initial_variables(config: Config, data: dict[str, Any], log: Log) -> Callable | None:
    if not config.get("init_from"):
        return None
    return functools.partial(initial.variables, config, tuple(data["class_names"]), log)


def _teacher_variables(
    config: Config, method: methods.Method, data: dict[str, Any], log: Log
) -> Callable | None:
    if method.teacher is None:
        return None
    return functools.partial(teacher.variables, config, method, tuple(data["class_names"]), log)


def run_import(
    config: Config,
    folder: Path,
    class_list: Path | None,
    log: Log,
    overridden: Collection[str] = (),
) -> None:
    """Makes a workdir of weights as they are, for predicting with them and exporting them.

    Args:
      config: all of it; the model and `init_from` count.
      folder: the workdir, to be.
      class_list: a text file with a class name a line, in the order of the logits; None takes
        those of the weights, or "class 0", "class 1", ... where they have none.
      log: takes one line of text.
      overridden: dotted keys of the config that were set on the command line, see `initial`.

    Raises:
      UserError: no weights are named, they do not fit, or the workdir holds a run already.
    """
    if not config["init_from"]:
        raise UserError("--mode=import needs --config.init_from=FILE, the weights")
    if workdir.has_checkpoint(folder):
        raise UserError(f"{folder} holds weights already; take another --workdir")
    config = initial.resolve(config, overridden, folder, log)
    settings.check(config)
    names = initial.class_names(config, class_list)
    loaded = initial.variables(config, names, log)
    folder.mkdir(parents=True, exist_ok=True)
    workdir.write_json(folder / workdir.CONFIG, config)
    workdir.write_json(
        folder / workdir.DATA,
        {
            "imported": config["init_from"],
            "name": "none",
            "prepared": None,
            "fingerprint": config[initial.DIGEST],
            "class_names": list(names),
            "splits": {},
        },
    )
    checkpoints = checkpoint.Checkpoints(folder / workdir.CHECKPOINTS)
    state = {c: {"model": tree} for c, tree in loaded.items()}
    checkpoints.save(0, {"step": np.int32(0), **state})
    checkpoints.close()
    log(f"{config['model']['name']} for {len(names)} classes in {folder}")
    log(f"Use it:  python main.py --mode=predict --workdir={folder} VIDEO_OR_FOLDER")


def _refuse_imported(folder: Path) -> None:
    if (folder / workdir.DATA).is_file() and "imported" in workdir.read_data(folder):
        raise UserError(
            f"{folder} holds imported weights and no training run; to train from them, take another "
            f"--workdir and --config.init_from={folder}"
        )


def run_evaluate(folder: Path, split_name: str, log: Log) -> dict[str, Any]:
    """Evaluates a trained workdir and writes results.json and the plots.

    Args:
      folder: the workdir.
      split_name: "" takes "test", or "validation" where there is no test split.
      log: takes one line of text.

    Returns:
      What results.json holds.

    Raises:
      UserError: nothing was trained there, there is no such split, or the data has changed.
    """
    _refuse_imported(folder)
    trained = classifier.load(folder, log)
    config, data = trained.config, trained.data
    data_folder = data["prepared"]
    info = datasets.describe(data_folder)
    if info["fingerprint"] != data["fingerprint"]:
        raise UserError(
            f"{data_folder} now holds other data (fingerprint {info['fingerprint'][:12]}) than "
            f"{folder} was trained on ({data['fingerprint'][:12]})"
        )
    split_name = split_name or _default_split(data)
    if split_name is None:
        raise UserError(
            f"{data_folder} has neither a test nor a validation split to evaluate on; add a test/ "
            "or val/ folder, or set config.data.test_fraction"
        )
    split = prepared.load_split(data_folder, split_name)
    replicas = parallel.create(config["train"]["replicas"])
    run = replicas.evaluate(
        functools.partial(
            step.eval_step, method=trained.method, augmentation=settings.augmentation(config)
        )
    )
    evaluation = settings.evaluation(config)
    clips, crops = evaluation.clips, evaluation.crops

    def scores_of(variables):
        batches = datasets.eval_batches(config, split, clips=clips, crops=crops)
        return evaluate.score(run, replicas, replicas.put(variables), batches)

    scores = scores_of(trained.variables)
    summary = evaluate.summarise(scores, trained.class_names)
    averaged = trained.raw_variables is not None
    results = {
        "split": split_name,
        "split_source": data["splits"][split_name]["source"],
        **{name: summary[name] for name in ("top1", "top5", "loss", "videos") if name in summary},
        "clips_per_video": clips * crops,
        "clips": clips * crops * summary["videos"],
        "weights": "moving average" if averaged else "raw",
        **({"raw": evaluate.loss_and_top1(scores_of(trained.raw_variables))} if averaged else {}),
        "checkpoint_step": trained.step,
        "checkpoint_selection": trained.selection,
        "method": config["method"],
        "model": config["model"],
        "parameters": trained.num_parameters,
        "seed": config["train"]["seed"],
        "data": {"name": data["name"], "fingerprint": data["fingerprint"]},
        "per_class": summary["per_class"],
        "confusion": summary["confusion"],
        "versions": versions(),
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    }
    if earlier := stages.last_metrics(folder):
        results["stages"] = earlier
    if jax.process_index() == 0:
        _report(folder, results, trained.class_names, log)
    return results


def _default_split(data: dict[str, Any]) -> str | None:
    return next((name for name in ("test", "validation") if name in data["splits"]), None)


def _report(folder: Path, results: dict[str, Any], class_names: tuple[str, ...], log: Log) -> None:
    split = results["split"]
    # results.json is the run's result; another split's is kept beside it.
    default = split == _default_split(workdir.read_data(folder))
    stored = folder / ("results.json" if default else f"results_{split}.json")
    workdir.write_json(stored, results)
    report.plot_curves(metrics.read_rows(folder / "metrics.jsonl"), folder / "curves.png")
    report.plot_confusion(
        np.array(results["confusion"]),
        class_names,
        folder / f"confusion_{split}.png",
        f"{split}: {results['split_source']}",
    )
    log("")
    log(f"{split} split ({results['split_source']}):")
    worst = min(
        (entry["top1"], name)
        for name, entry in results["per_class"].items()
        if entry["top1"] is not None
    )
    top5 = f", top-5 {results['top5']:.4f}" if "top5" in results else ""
    log(
        f"  top-1 {results['top1']:.4f}{top5} over {results['videos']} videos, "
        f"{results['clips_per_video']} clips each; chance {1 / len(class_names):.4f}"
    )
    log(f"  weakest class: {worst[1]} ({worst[0]:.2f})")
    log(f"  checkpoint: step {results['checkpoint_step']}, {results['checkpoint_selection']}")
    log(f"Results: {stored}")
    log(f"Plots:   {folder / 'curves.png'}, {folder / f'confusion_{split}.png'}")
    log(f"Curves:  tensorboard --logdir {folder}")
    log(f"Use it:  python main.py --mode=predict --workdir={folder} VIDEO_OR_FOLDER")


def _claim(folder: Path, config: Config) -> None:
    # A stage binds the run to its config before the run's own folder has a checkpoint.
    for path in (*stages.folders(folder), folder):
        workdir.claim(path, config)


def _record(folder: Path, data: dict[str, Any]) -> None:
    path = folder / workdir.DATA
    # As with the config: what failed before its first checkpoint may be corrected.
    trained = path.is_file() and workdir.has_checkpoint(folder)
    if trained and (old := workdir.read_data(folder))["fingerprint"] != data["fingerprint"]:
        raise UserError(
            f"{folder} was trained on data with fingerprint {old['fingerprint'][:12]} "
            f"({old['prepared']}), this is {data['fingerprint'][:12]} ({data['prepared']}): the "
            "videos or lists have changed; take another --workdir"
        )
    workdir.write_json(path, data)


def versions() -> dict[str, str]:
    """Of Python and of the packages that results may depend on, where they are installed."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        # TensorFlow, for one, comes under several names.
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found
