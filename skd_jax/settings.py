"""Plain config dictionaries to the typed settings of each part.

The command line and the configs speak ConfigDict, a workdir stores JSON; everything behind this file
takes frozen dataclasses.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

import jax.numpy as jnp

from skd_jax import durations, methods, models, names
from skd_jax.augment import AugmentSettings
from skd_jax.errors import UserError
from skd_jax.optim import OptimSettings
from skd_jax.train import LoopSettings

T = TypeVar("T")
Config = Mapping[str, Any]


def dataclass_from(kind: type[T], values: Config, section: str, **fixed: Any) -> T:
    """A dataclass from a config section.

    Args:
      kind: the dataclass.
      values: its fields by name; lists become tuples, as JSON has none.
      section: name of the config section, for errors.
      **fixed: further fields, which the section does not hold.

    Raises:
      UserError: a key is no field; the message gives the nearest one.
    """
    fields = {field.name for field in dataclasses.fields(kind)} - set(fixed)
    for key in values:
        if key not in fields:
            raise names.unknown(
                "config key", f"{section}.{key}", [f"{section}.{f}" for f in fields]
            )
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    return kind(**values, **fixed)


def method(config: Config, num_classes: int) -> methods.Method:
    """The training method with its classifier.

    Raises:
      UserError: unknown model, method or option.
    """
    model_options = dict(config["model"])
    name = model_options.pop("name")
    dtype = model_options.pop("dtype")
    if dtype not in ("float32", "bfloat16"):
        raise UserError(f"config.model.dtype={dtype!r}: take 'float32' or 'bfloat16'")
    model = models.create(name, num_classes, dtype=jnp.dtype(dtype), **model_options)
    hyper_parameters = dict(config["method"])
    return methods.create(hyper_parameters.pop("name"), model, **hyper_parameters)


def augmentation(config: Config) -> AugmentSettings:
    """Crop, normalisation and photometric augmentation."""
    return dataclass_from(AugmentSettings, config["augment"], "augment")


def optimiser(config: Config, steps_per_epoch: float) -> OptimSettings:
    """The optimiser, its durations in steps.

    Args:
      config: all of it.
      steps_per_epoch: training videos over batch size.
    """
    values = dict(config["optim"])
    return dataclass_from(
        OptimSettings,
        {k: v for k, v in values.items() if k not in ("warmup", "boundaries")},
        "optim",
        warmup_steps=durations.steps(values["warmup"], steps_per_epoch, "optim.warmup"),
        boundaries=tuple(
            durations.steps(b, steps_per_epoch, "optim.boundaries") for b in values["boundaries"]
        ),
    )


def loop(config: Config, steps_per_epoch: float) -> LoopSettings:
    """Lengths and intervals of training, in steps.

    Args:
      config: all of it.
      steps_per_epoch: training videos over batch size.

    Raises:
      UserError: an interval that is no duration, or no step at all.
    """
    values = config["train"]

    def steps(key: str) -> int:
        return durations.steps(values[key], steps_per_epoch, f"train.{key}")

    total = steps("duration")
    if total < 1:
        raise UserError(f"config.train.duration={values['duration']!r} is less than one step")
    crop = config["augment"]["crop"]
    return LoopSettings(
        total_steps=total,
        clip_shape=(config["clips"]["frames"], crop, crop, 3),
        eval_every=max(steps("eval_every"), 1),
        checkpoint_every=max(steps("checkpoint_every"), 1),
        **{
            key: values[key]
            for key in ("seed", "log_every", "keep", "accumulate", "ema_decay", "replicas")
        },
    )
