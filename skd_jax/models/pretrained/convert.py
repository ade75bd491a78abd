"""State dict -> variables, variables -> state dict."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from skd_jax import models
from skd_jax.errors import UserError
from skd_jax.models.classifier import linear_classifier
from skd_jax.models.pretrained.layout import Shape, slots
from skd_jax.models.pretrained.state_dict import unwrap, without_prefix
from skd_jax.models.torch_names import TorchNames

_COUNT = "num_batches_tracked"


def from_torch(
    name: str,
    state_dict: Mapping[str, Any],
    num_classes: int | None = None,
    *,
    rng: jax.Array | None = None,
    log: Callable[[str], None] = print,
    **model_options,
) -> dict[str, Any]:
    """Variables of `models.create(name, num_classes, **model_options)` from a PyTorch checkpoint.

    The running variances are taken as they are. PyTorch runs along the unbiased variance of a
    batch of n positions (videos, frames, pixels), Flax the biased one, n / (n - 1) times smaller:
    evaluation is the same on both sides, and in further training here the statistics go on as
    Flax's, so that synchronised replicas and the method's own networks all follow one rule.

    Args:
      name: of the model.
      state_dict: {key: array} with the names of the PyTorch implementation; it may lie under
        "state_dict", "model_state" or "model", and all keys may begin with "module.". Entries
        `num_batches_tracked` are left aside.
      num_classes: of the model; None takes the checkpoint's. Where they differ, or where the
        checkpoint has no classifier at all, the classifier is initialised anew.
      rng: for a new classifier; None takes `jax.random.key(0)`.
      log: takes one line of text where the classifier is new.
      **model_options: as for `models.create`.

    Returns:
      {"params": tree, "batch_stats": tree} of float32 NumPy arrays.

    Raises:
      UserError: no checkpoint is known for the model, or keys are missing, left over or of another
        shape; all of them are listed.
    """
    entry, names = models.describe(name), _names(name)
    found = {
        key: value
        for key, value in without_prefix(unwrap(state_dict)).items()
        if not key.endswith(_COUNT)
    }
    head = names.layer("fc")
    has_head = any(key.startswith(f"{head}.") for key in found)
    stored = _rows(found.get(f"{head}.weight"))
    if num_classes is None:
        if stored is None:
            raise UserError(
                f"the state dict for {name} has no {head}.weight to tell the number of classes by; "
                f"give num_classes, or take another checkpoint ({_summary(found)})"
            )
        num_classes = stored
    model = models.create(name, stored or num_classes, **model_options)
    every = slots(model, entry.clip, names)
    wanted = [slot for slot in every if has_head or not slot.in_head]
    _check(
        {slot.key: slot.torch_shape for slot in wanted},
        {key: np.shape(value) for key, value in found.items()},
        f"the state dict does not fit {name} in the names of {names.source}",
        names.hint,
    )
    flat = {slot.path: slot.from_torch(_float32(slot.key, found[slot.key])) for slot in wanted}
    if not has_head or stored != num_classes:
        width = next(slot.shape[0] for slot in every if slot.in_head and len(slot.shape) == 2)
        was = f"for {stored} classes" if has_head else "absent"
        log(f"{name}: the checkpoint's classifier is {was}; a new one for {num_classes} is made")
        flat |= _new_head(rng, width, num_classes)
    return traverse_util.unflatten_dict(flat)


def to_torch(name: str, variables: Mapping[str, Any], **model_options) -> dict[str, np.ndarray]:
    """The state dict that the PyTorch implementation's own model loads with `strict=True`.

    Args:
      name: of the model.
      variables: "params" and "batch_stats" of `models.create(name, K, **model_options)`.
      **model_options: as for `models.create`.

    Returns:
      {key: float32 array}, in PyTorch's order for torchvision's models; for every BatchNorm also
      `num_batches_tracked`, an int64 zero: PyTorch reads it only where momentum is None.

    Raises:
      UserError: no PyTorch implementation is known for the model, or the variables are not its own.
    """
    entry, names = models.describe(name), _names(name)
    found = {
        (collection, *path): leaf
        for collection in ("params", "batch_stats")
        for path, leaf in traverse_util.flatten_dict(dict(variables.get(collection, {}))).items()
    }
    bias = found.get(("params", "fc", "bias"))
    if bias is None:
        raise UserError(f"the variables for {name} have no params/fc/bias; are they a model's own?")
    wanted = slots(models.create(name, _rows(bias), **model_options), entry.clip, names)
    _check(
        {"/".join(slot.path): slot.shape for slot in wanted},
        {"/".join(path): np.shape(leaf) for path, leaf in found.items()},
        f"the variables do not fit {name}",
        "",
    )
    state_dict = {}
    for slot in wanted:
        state_dict[slot.key] = slot.to_torch(_float32(slot.key, found[slot.path]))
        if slot.path[-1] == "var":
            layer = slot.key.rpartition(".")[0]
            state_dict[f"{layer}.{_COUNT}"] = np.zeros((), np.int64)
    return state_dict


def _names(name: str) -> TorchNames:
    names = models.describe(name).torch
    if names is None:
        having = [other for other in models.names() if models.describe(other).torch]
        raise UserError(
            f"no PyTorch implementation of {name} is known whose weights would fit; "
            f"those of other models do: {', '.join(having)}"
        )
    return names


def _rows(array: Any) -> int | None:
    shape = () if array is None else np.shape(array)
    return shape[0] if shape and shape[0] else None


def _new_head(rng: jax.Array | None, width: int, num_classes: int) -> dict[tuple, np.ndarray]:
    rng = jax.random.key(0) if rng is None else rng
    params = linear_classifier(num_classes).init(rng, jnp.zeros((1, width)))["params"]
    return {("params", "fc", leaf): np.asarray(array) for leaf, array in params.items()}


def _float32(key: str, value: Any) -> np.ndarray:
    try:
        return np.asarray(value).astype(np.float32)
    except (TypeError, ValueError, RuntimeError) as error:  # PyTorch's: it requires a gradient
        raise UserError(f"{key} cannot be read as numbers ({error})") from None


def _check(wanted: dict[str, Shape], found: dict[str, Shape], what: str, hint: str) -> None:
    """Every difference between two sets of keyed shapes, in one error."""
    lines = [f"  missing: {key} {shape}" for key, shape in wanted.items() if key not in found]
    lines += [f"  unknown: {key} {shape}" for key, shape in found.items() if key not in wanted]
    lines += [
        f"  of another shape: {key} is {found[key]}, expected {shape}"
        for key, shape in wanted.items()
        if key in found and found[key] != shape
    ]
    if lines:
        advice = f" ({hint})" if hint else ""
        raise UserError("\n".join([f"{what}{advice}; is it of this model?", *lines]))


def _summary(found: Mapping[str, Any]) -> str:
    keys = sorted(found)
    return f"its keys: {', '.join(keys[:5])}{', ...' if len(keys) > 5 else ''}" if keys else "empty"
