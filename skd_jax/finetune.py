"""Fine-tuning: which parameters stay as they are, and how fast the others move.

A pattern is a shell glob over the path of a parameter in the classifier, its names joined by "/", as
in layer1_0/conv1/kernel. "*" crosses the "/", and a pattern that matches a module speaks for all
within it: "stem" and "layer1*" are whole modules, "*/bn2" those of every block. Two names stand for
parts of every model: "head" is the linear classifier `fc`, "backbone" everything else. The networks
that a training method adds are left alone, unless the pattern begins with their name: "projector",
"predictor/*bn*".

What is frozen is not differentiated: it costs no gradient, no state of the optimiser and no weight
decay, is left out of the gradient's norm, and stays bit for bit.
"""

import dataclasses
import difflib
import fnmatch
from collections.abc import Callable, Sequence
from typing import Any

import jax
import optax

from skd_jax.errors import UserError

PyTree = Any

_CLASSIFIER = "model"
_HEAD = "fc"


@dataclasses.dataclass(frozen=True)
class FinetuneSettings:
    """What of a network is trained, and how fast.

    Attributes:
      freeze: patterns of the parameters that stay as they are. The running statistics of BatchNorm
        layers among them go on moving, and training normalises with those of the batch, unless
        `freeze_batch_norm` says otherwise.
      freeze_batch_norm: whether the classifier's BatchNorm layers are fixed affine maps: training
        too normalises with the running statistics, and neither these nor scale and bias move. That
        is the frozen BatchNorm of object detection (torchvision.ops.FrozenBatchNorm2d; the frozen
        layers of Faster R-CNN on ResNets, He et al., CVPR 2016), more than the evaluation mode that
        mmaction2 calls norm_eval, where scale and bias are trained. Batches of few videos give poor
        statistics, so it suits small data and small batches.
      lr_groups: (pattern, factor) of the learning rate; the last pattern that matches counts.
    """

    freeze: tuple[str, ...] = ()
    freeze_batch_norm: bool = False
    lr_groups: tuple[tuple[str, float], ...] = ()


def select(params: PyTree, pattern: str) -> PyTree:
    """True for the parameters a pattern speaks for, in a tree like `params`.

    Args:
      params: {network: tree}.
      pattern: see above.
    """
    network, _, inner = pattern.partition("/")
    if network not in params:
        network, inner = _CLASSIFIER, pattern

    def chosen(name: str) -> bool:
        own, _, name = name.partition("/")
        if own != network or not inner:
            return own == network
        if network == _CLASSIFIER and inner in ("head", "backbone"):
            return (name.partition("/")[0] == _HEAD) == (inner == "head")
        return fnmatch.fnmatchcase(name, inner) or fnmatch.fnmatchcase(name, f"{inner}/*")

    return jax.tree_util.tree_map_with_path(lambda path, _: chosen(_name(path)), params)


def check(params: PyTree, patterns: Sequence[str], key: str) -> None:
    """Raises a UserError for a pattern that no parameter matches; it gives the nearest names.

    Args:
      params: {network: tree}.
      patterns: see above.
      key: the config key they stand in, for the message.
    """
    for pattern in patterns:
        if any(jax.tree.leaves(select(params, pattern))):
            continue
        names = _modules(params)
        near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.4)
        top = [name for name in names if "/" not in name]
        raise UserError(
            f"config.{key}: no parameter matches {pattern!r}"
            + (f"; nearest: {', '.join(near)}" if near else "")
            + f". A pattern is a glob such as 'layer1*'; the outermost names: {', '.join(top)}, and "
            "'head' or 'backbone'"
        )


def frozen(variables: PyTree, patterns: Sequence[str], batch_norm: bool) -> PyTree:
    """True for the parameters that stay as they are, in a tree like `variables["params"]`.

    Args:
      variables: {"params": {network: tree}, "batch_stats": {network: tree}}; shapes will do.
      patterns: see above; those that match nothing are passed over, `check` tells them.
      batch_norm: whether scale and bias of the classifier's BatchNorm layers are among them.

    Raises:
      UserError: nothing would be left to train.
    """
    params = variables["params"]
    chosen = [select(params, pattern) for pattern in patterns]
    if batch_norm:
        chosen.append(_batch_norm(variables))
    result = jax.tree.map(lambda _, *found: any(found), params, *chosen)
    if all(jax.tree.leaves(result)):
        raise UserError(
            f"config.finetune.freeze={','.join(patterns)} leaves no parameter to train; freeze less"
        )
    return result


def split(params: PyTree, frozen: PyTree) -> tuple[PyTree, PyTree]:
    """(trained, frozen) parts of `params`, each with None, a tree without leaves, for the other's."""
    return (
        jax.tree.map(lambda x, still: None if still else x, params, frozen),
        jax.tree.map(lambda x, still: x if still else None, params, frozen),
    )


def join(trained: PyTree, frozen: PyTree) -> PyTree:
    """The whole of what `split` took apart."""
    return jax.tree.map(
        lambda moving, still: still if moving is None else moving,
        trained,
        frozen,
        is_leaf=lambda x: x is None,
    )


def scale_by_group(groups: Sequence[tuple[str, float]]) -> optax.GradientTransformation:
    """Multiplies the updates of each group; behind an optimiser, that is its learning rate.

    Args:
      groups: (pattern, factor); of several patterns that match, the last one counts.
    """

    def scale(updates: PyTree, params: PyTree) -> PyTree:
        del params
        factors = jax.tree.map(lambda _: 1.0, updates)
        for pattern, factor in groups:
            chosen = select(updates, pattern)
            factors = jax.tree.map(lambda f, c, new=factor: new if c else f, factors, chosen)
        return jax.tree.map(lambda u, f: u if f == 1.0 else u * f, updates, factors)

    return optax.stateless(scale)


def parse_names(text: str) -> tuple[str, ...]:
    """ "stem, layer1*" -> ("stem", "layer1*")."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def parse_groups(text: str, key: str) -> tuple[tuple[str, float], ...]:
    """ "backbone=0.1, head=1" -> (("backbone", 0.1), ("head", 1.0)).

    Raises:
      UserError: a part that is no PATTERN=FACTOR, or a factor that is not above zero.
    """
    return tuple(_group(part, key) for part in parse_names(text))


def _group(part: str, key: str) -> tuple[str, float]:
    pattern, _, number = part.rpartition("=")
    try:
        factor = float(number)
    except ValueError:
        factor = float("nan")
    if not pattern.strip() or not 0 < factor < float("inf"):
        raise UserError(
            f"config.{key}: {part!r} is no PATTERN=FACTOR with a factor above 0; write e.g. "
            "backbone=0.1,head=1 (config.finetune.freeze holds a part still)"
        )
    return pattern.strip(), factor


def _batch_norm(variables: PyTree) -> PyTree:
    """True for the classifier's parameters that share their module with running statistics."""
    modules = _map_names(lambda name: name.rpartition("/")[0], variables["batch_stats"])
    of_classifier = {m for m in jax.tree.leaves(modules) if m.partition("/")[0] == _CLASSIFIER}
    return _map_names(lambda name: name.rpartition("/")[0] in of_classifier, variables["params"])


def _modules(params: PyTree) -> list[str]:
    """All that a pattern may name: modules and parameters, the classifier's without its name."""
    names = set()
    for name in jax.tree.leaves(_map_names(str, params)):
        parts = name.removeprefix(f"{_CLASSIFIER}/").split("/")
        names |= {"/".join(parts[:n]) for n in range(1, len(parts) + 1)}
    return sorted(names)


def _map_names(function: Callable[[str], Any], tree: PyTree) -> PyTree:
    return jax.tree_util.tree_map_with_path(lambda path, _: function(_name(path)), tree)


def _name(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
