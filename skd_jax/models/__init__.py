"""Video classifiers by name.

model = models.create("r3d_18", num_classes=101, width=0.5)
variables = model.init(jax.random.key(0), clips)
logits, embedding, maps = model.apply(variables, clips, train=False)
"""

import dataclasses
import functools

import jax.numpy as jnp
from flax import linen as nn

from skd_jax.errors import UserError
from skd_jax.models.outputs import Outputs
from skd_jax.models.resnet3d import ResNet3D
from skd_jax.names import look_up, unknown

__all__ = ["Outputs", "create", "names", "options"]

# Each entry takes `num_classes` and the family's options; what it binds here is fixed by the name.
_MODELS: dict[str, functools.partial] = {
    "r3d_10": functools.partial(ResNet3D, stage_sizes=(1, 1, 1, 1)),
    "r3d_18": functools.partial(ResNet3D, stage_sizes=(2, 2, 2, 2)),
    "r3d_34": functools.partial(ResNet3D, stage_sizes=(3, 4, 6, 3)),
}


def names() -> tuple[str, ...]:
    """Names of all models, sorted."""
    return tuple(sorted(_MODELS))


def options(name: str) -> tuple[str, ...]:
    """Names of the options that `create(name, num_classes, ...)` takes, sorted.

    Raises:
      UserError: no model has this name.
    """
    entry = look_up("model", name, _MODELS)
    fixed = {"parent", "name", "num_classes", *entry.keywords}
    return tuple(sorted({field.name for field in dataclasses.fields(entry.func)} - fixed))


def create(name: str, num_classes: int, **model_options) -> nn.Module:
    """Builds a classifier.

    Args:
      name: one of `names()`.
      num_classes: length of the logits, at least 1.
      **model_options: any of `options(name)`, described on the model's class: `width`, `dtype`,
        `axis_name`, `dropout`, `zero_init_residual`.

    Returns:
      A Flax module with collections "params" and "batch_stats";
      `apply(variables, clips, train=...)` gives `Outputs`.

    Raises:
      UserError: an unknown name or option, or a value out of range.
    """
    entry = look_up("model", name, _MODELS)
    known = options(name)
    for option in model_options:
        if option not in known:
            raise unknown(f"{name} option", option, known)
    if num_classes < 1:
        raise UserError(f"num_classes must be at least 1; got {num_classes}")
    if model_options.get("width", 1.0) <= 0:
        raise UserError(f"the option width of {name} must be above 0; got {model_options['width']}")
    if not 0.0 <= model_options.get("dropout", 0.0) < 1.0:
        raise UserError(
            f"the option dropout of {name} must lie in [0, 1); got {model_options['dropout']}"
        )
    dtype = model_options.get("dtype", jnp.float32)
    try:
        floating = jnp.issubdtype(jnp.dtype(dtype), jnp.floating)
    except TypeError:
        floating = False
    if not floating:
        raise UserError(
            f"the option dtype of {name} must be a float type such as 'bfloat16'; got {dtype!r}"
        )
    return entry(num_classes=num_classes, **model_options)
