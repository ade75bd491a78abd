"""Training methods, made by name.

    method = skd_jax.methods.create("skd_srl", model, temperature=4.0)

Adding one: a file here with a dataclass derived from `base.Method`, a line in `_METHODS`, tests.
"""

import dataclasses
from typing import Any

import flax.linen as nn

from skd_jax import names as _names
from skd_jax.methods.bake import BAKE
from skd_jax.methods.base import Method
from skd_jax.methods.cs_kd import CSKD
from skd_jax.methods.ddgsd import DDGSD
from skd_jax.methods.label_smoothing import LabelSmoothing
from skd_jax.methods.ps_kd import PSKD
from skd_jax.methods.skd_srl import SKDSRL
from skd_jax.methods.supervised import Supervised
from skd_jax.methods.teaching_yourself import TeachingYourself
from skd_jax.methods.tf_kd_reg import TfKDReg

_FILLED_IN = ("model", "num_videos")  # by the program, from the model's config and the data

_METHODS: dict[str, type[Method]] = {
    "bake": BAKE,
    "cs_kd": CSKD,
    "ddgsd": DDGSD,
    "label_smoothing": LabelSmoothing,
    "ps_kd": PSKD,
    "skd_srl": SKDSRL,
    "supervised": Supervised,
    "teaching_yourself": TeachingYourself,
    "tf_kd_reg": TfKDReg,
}


def names() -> tuple[str, ...]:
    """Names that `create` knows, sorted."""
    return tuple(sorted(_METHODS))


def defaults(name: str) -> dict[str, Any]:
    """Hyper-parameters of a method with their default values.

    Raises:
      UserError: unknown method.
    """
    fields = dataclasses.fields(_names.look_up("method", name, _METHODS))
    return {field.name: field.default for field in fields if field.name not in _FILLED_IN}


def create(name: str, model: nn.Module, *, num_videos: int = 0, **hyper_parameters: Any) -> Method:
    """A method by name.

    Args:
      name: one of `names()`.
      model: the classifier, from `skd_jax.models.create`.
      num_videos: videos of the training split; some methods remember each.
      **hyper_parameters: fields of the method's dataclass, see its docstring.

    Raises:
      UserError: unknown method or hyper-parameter; the message gives the nearest known name.
    """
    known = defaults(name)
    for key in hyper_parameters:
        if key not in known:
            raise _names.unknown(f"hyper-parameter of method {name!r}:", key, known)
    return _METHODS[name](model=model, num_videos=num_videos, **hyper_parameters)


__all__ = ["Method", "create", "defaults", "names"]
