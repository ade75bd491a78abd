"""Video classifiers by name.

model = models.create("r3d_18", num_classes=101, width=0.5)
variables = model.init(jax.random.key(0), clips)
logits, embedding, maps = model.apply(variables, clips, train=False)
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from skd_jax.errors import UserError
from skd_jax.models import (
    csn,
    hara_resnet2p1d,
    hara_resnet3d,
    i3d,
    mc3,
    mobilenetv2,
    r2plus1d,
    resnet3d,
    s3d,
    shufflenet2p1d,
    shufflenetv2,
    slowfast,
    x3d,
)
from skd_jax.models.entry import Entry
from skd_jax.models.outputs import Outputs
from skd_jax.names import look_up, unknown

__all__ = ["Entry", "Outputs", "create", "defaults", "describe", "names", "options"]

# Each has its models in MODELS, by name.
FAMILIES = (
    csn,
    hara_resnet2p1d,
    hara_resnet3d,
    i3d,
    mc3,
    mobilenetv2,
    r2plus1d,
    resnet3d,
    s3d,
    shufflenet2p1d,
    shufflenetv2,
    slowfast,
    x3d,
)


def join(tables: Iterable[Mapping[str, Entry]]) -> dict[str, Entry]:
    """One table of all the families' models.

    Raises:
      ValueError: a name stands in two of them.
    """
    joined: dict[str, Entry] = {}
    for table in tables:
        if twice := joined.keys() & table.keys():
            raise ValueError(f"two model families have the name(s) {', '.join(sorted(twice))}")
        joined |= table
    return joined


_MODELS = join(family.MODELS for family in FAMILIES)


def names() -> tuple[str, ...]:
    """Names of all models, sorted."""
    return tuple(sorted(_MODELS))


def describe(name: str) -> Entry:
    """What is known of a model: how it is built, its usual clip, its source.

    Raises:
      UserError: no model has this name.
    """
    return look_up("model", name, _MODELS)


def options(name: str) -> tuple[str, ...]:
    """Names of the options that `create(name, num_classes, ...)` takes, sorted.

    Raises:
      UserError: no model has this name.
    """
    return tuple(sorted(defaults(name)))


def defaults(name: str) -> dict[str, Any]:
    """The same options, with the values that `create` takes where they are not given.

    Raises:
      UserError: no model has this name.
    """
    build = describe(name).build
    fixed = {"parent", "name", "num_classes", *build.keywords}
    fields = dataclasses.fields(build.func)
    return {field.name: field.default for field in fields if field.name not in fixed}


def create(name: str, num_classes: int, **model_options) -> nn.Module:
    """Builds a classifier.

    Args:
      name: one of `names()`.
      num_classes: length of the logits, at least 1.
      **model_options: any of `options(name)`, described on the model's class: `width`, `dtype`,
        `axis_name`, `dropout`, `remat`, and a family's own.

    Returns:
      A Flax module with collections "params" and "batch_stats";
      `apply(variables, clips, train=...)` gives `Outputs`.

    Raises:
      UserError: an unknown name or option, or a value out of range.
    """
    build = describe(name).build
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
    return build(num_classes=num_classes, **model_options)
