"""Weights that a run begins with: a PyTorch checkpoint, or the workdir of an earlier run.

`resolve` brings what belongs to them into the config before anything else reads it: a hash, so that
a run never goes on with other weights than it began with, the preprocessing they were trained
behind, and how many clips of a video they are judged by. `variables` reads them, once, when a run
begins; from then on the workdir needs them no more.
"""

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from skd_jax import checkpoint, classifier, models, settings, workdir
from skd_jax.errors import UserError
from skd_jax.models import pretrained

PyTree = Any
Config = Mapping[str, Any]
Log = Callable[[str], None]

DIGEST = "init_from_sha256"

# What belongs to weights: how a video becomes a clip.
_PREPROCESSING = (
    "data.frame_size",
    "data.frame_width",
    "data.antialias",
    "data.max_fps",
    "clips.frames",
    "clips.stride",
    "augment.crop",
    "augment.mean",
    "augment.std",
)

# What belongs to the accuracy that is reported of them: how a video is judged.
_EVALUATION = ("eval.clips", "eval.crops")


def resolve(config: Config, overridden: Collection[str], folder: Path, log: Log) -> dict[str, Any]:
    """The config with what its weights bring along; unchanged without config.init_from.

    Of preprocessing and evaluation, a value set on the command line comes first, then that of the
    weights, then that of the config file. A run that goes on takes its own, from its workdir.

    Args:
      config: all of it.
      overridden: dotted keys set on the command line.
      folder: the workdir of the run.
      log: takes one line of text.

    Raises:
      UserError: there are no weights, or they do not fit the model.
    """
    source = config.get("init_from", "")
    if not source:
        return dict(config)
    begun = workdir.read_config(folder) if workdir.has_checkpoint(folder) else {}
    same_place = begun.get("init_from") == source and DIGEST in begun
    if same_place and not Path(source).is_file():  # gone since, or a workdir that trains on
        digest = begun[DIGEST]
    else:
        digest = digest_of(source, "config.init_from")
    if begun.get(DIGEST) == digest:
        brought, origin = _pick(begun, _PREPROCESSING + _EVALUATION), ""
    else:
        if not begun:  # what does not fit shall be told before hours of preparation
            variables(config, ("any",), lambda _: None)
        brought, origin = _brought(source, config)
    resolved = json.loads(json.dumps(config))
    for key in brought.keys() - set(overridden):
        section, name = key.split(".")
        resolved[section][name] = brought[key]
    resolved[DIGEST] = digest
    if origin:
        values = _pick(resolved, brought)
        kept = sorted(values.keys() & set(overridden))
        log(
            f"weights of {source}, with the preprocessing of {origin}: "
            + ", ".join(f"{key}={_short(values[key])}" for key in values if key not in kept)
            + (f"; as on the command line: {', '.join(kept)}" if kept else "")
        )
    return resolved


def variables(config: Config, class_names: tuple[str, ...], log: Log) -> PyTree:
    """The classifier's variables to begin with.

    The linear classifier `fc` is kept if the weights have the same classes: by name and in the same
    order for a workdir, by number for a checkpoint, which does not hold the names.

    Args:
      config: all of it, `init_from` set.
      class_names: of the run that begins.
      log: takes one line of text, such as that the linear classifier is new.

    Returns:
      {"params": tree, "batch_stats": tree}; without "fc" where a workdir has other classes.

    Raises:
      UserError: they cannot be read, or do not fit the model; the keys are listed.
    """
    name, options = _model(config)
    source = Path(config["init_from"])
    if source.is_dir():
        return _of_workdir(source, name, options, config, class_names, log)
    return pretrained.from_torch(
        name,
        pretrained.load_state_dict(source),
        len(class_names),
        rng=jax.random.key(config["train"]["seed"]),
        log=log,
        **options,
    )


def class_names(config: Config, class_list: Path | None = None) -> tuple[str, ...]:
    """Names of the weights' own classes, in the order of the logits.

    Args:
      config: all of it, `init_from` set.
      class_list: a text file with a name a line; None takes those of a workdir, or "class 0",
        "class 1", ... for a checkpoint, which holds no names.

    Raises:
      UserError: the list cannot be read, or has not as many names as the weights have classes.
    """
    source = Path(config["init_from"])
    if source.is_dir():
        names = tuple(workdir.read_data(source)["class_names"])
    else:
        name, options = _model(config)
        loaded = pretrained.from_torch(name, pretrained.load_state_dict(source), **options)
        names = tuple(f"class {k}" for k in range(loaded["params"]["fc"]["bias"].shape[0]))
    if class_list is None:
        return names
    try:
        lines = class_list.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--class_names={class_list}: cannot be read ({error})") from None
    given = tuple(line.strip() for line in lines if line.strip())
    if len(given) != len(names) or len(set(given)) != len(given):
        twice = "" if len(set(given)) == len(given) else ", some of them twice"
        raise UserError(
            f"--class_names={class_list} holds {len(given)} names{twice}; {source} has "
            f"{len(names)} classes. Write each name once, a line each, in the order of the logits"
        )
    return given


def _model(config: Config) -> tuple[str, dict[str, Any]]:
    name, options = settings.model_options(config)
    return name, {option: value for option, value in options.items() if option != "dtype"}


def _of_workdir(source, name, options, config, class_names, log) -> PyTree:
    trained = classifier.load(source, log)
    found = {c: trees["model"] for c, trees in trained.variables.items()}
    same = trained.class_names == class_names
    model = models.create(name, len(class_names), **options)
    shape = (1, config["clips"]["frames"], *2 * (config["augment"]["crop"],), 3)
    wanted = jax.eval_shape(
        lambda: model.init(jax.random.key(0), np.zeros(shape, np.float32), train=False)
    )
    if not same:
        log(
            f"{name}: {source} has {_other(trained.class_names, class_names)}; "
            f"a new classifier for {len(class_names)} is made"
        )
        found, wanted = ({c: _without_head(t) for c, t in tree.items()} for tree in (found, wanted))
    _check(_shapes(wanted), _shapes(found), source, name)
    return found


def _other(there: tuple[str, ...], now: tuple[str, ...]) -> str:
    if len(there) != len(now):
        return f"{len(there)} classes"
    return "the same classes in another order" if sorted(there) == sorted(now) else "other classes"


def _without_head(tree: PyTree) -> PyTree:
    return {name: part for name, part in tree.items() if name != "fc"}


def _shapes(tree: PyTree) -> dict[str, tuple[int, ...]]:
    flat = traverse_util.flatten_dict(dict(tree), sep="/")
    return {path: tuple(leaf.shape) for path, leaf in flat.items()}


def _check(wanted: dict, found: dict, source: Path, name: str) -> None:
    lines = [f"  missing: {path} {wanted[path]}" for path in wanted if path not in found]
    lines += [f"  unknown: {path} {found[path]}" for path in found if path not in wanted]
    lines += [
        f"  of another shape: {path} is {found[path]}, expected {wanted[path]}"
        for path in wanted
        if path in found and found[path] != wanted[path]
    ]
    if lines:
        theirs = workdir.read_config(source)["model"]
        head = (
            f"the weights of {source}, a {theirs['name']} of width {theirs['width']:g}, do not fit "
            f"{name}; set config.model to theirs:"
        )
        raise UserError("\n".join([head, *lines]))


def digest_of(source: str, key: str) -> str:
    """SHA-256 of weights: of a file's bytes, or of the arrays of a workdir's classifier.

    Args:
      source: a PyTorch checkpoint or a workdir.
      key: of the config that names it, for the error.

    Raises:
      UserError: there is no such file or workdir, or nothing was trained there.
    """
    path = Path(source)
    digest = hashlib.sha256()
    if path.is_dir():
        trained = classifier.load(path, lambda _: None)
        flat = checkpoint.flatten({c: trees["model"] for c, trees in trained.variables.items()})
        for name in sorted(flat):
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(flat[name]).tobytes())
        return digest.hexdigest()
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise UserError(f"{key}={source}: there is no such file or workdir") from None


def _brought(source: str, config: Config) -> tuple[dict[str, Any], str]:
    """What belongs to weights by config key, and whose it is.

    How an earlier run was judged is its own affair, unless it holds nothing but imported weights.
    """
    if Path(source).is_dir():
        imported = "imported" in workdir.read_data(Path(source))
        keys = _PREPROCESSING + (_EVALUATION if imported else ())
        return _pick(workdir.read_config(Path(source)), keys), "that run"
    name, options = _model(config)
    recipe = pretrained.preprocessing(name, **options)
    fixed = isinstance(recipe.resize, tuple)
    height, width = recipe.resize if fixed else (recipe.resize, 0)
    brought = {
        "data.frame_size": height,
        "data.frame_width": width,
        "data.antialias": recipe.antialias,
        "data.max_fps": recipe.frame_rate or 0.0,
        "clips.frames": recipe.frames,
        "clips.stride": recipe.stride,
        "augment.crop": recipe.crop,
        "augment.mean": list(recipe.mean),
        "augment.std": list(recipe.std),
        "eval.clips": recipe.clips,
        "eval.crops": recipe.crops,
    }
    said = {key: value for key, value in brought.items() if value is not None}
    return said, f"{name} ({recipe.source})"


def _pick(config: Config, keys: Iterable[str]) -> dict[str, Any]:
    flat = workdir.flat(config)
    return {key: flat[key] for key in keys if key in flat}


def _short(value: Any) -> str:
    return f"({', '.join(f'{v:g}' for v in value)})" if isinstance(value, list) else f"{value}"
