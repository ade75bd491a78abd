"""Training methods, made by name.

    method = skd_jax.methods.create("skd_srl", model, temperature=4.0)

Adding one: a file here with a dataclass derived from `base.Method`, a line in `_METHODS`, tests.
"""

import dataclasses
from typing import Any

import flax.linen as nn

from skd_jax import names as _names
from skd_jax.methods.base import Method
from skd_jax.methods.byot import BYOT
from skd_jax.methods.dks import DKS
from skd_jax.methods.frskd import FRSKD
from skd_jax.methods.mixskd import MixSKD
from skd_jax.methods.sad import SAD
from skd_jax.methods.skd_srl import SKDSRL
from skd_jax.methods.supervised import Supervised

_METHODS: dict[str, type[Method]] = {
    "byot": BYOT,
    "dks": DKS,
    "frskd": FRSKD,
    "mixskd": MixSKD,
    "sad": SAD,
    "skd_srl": SKDSRL,
    "supervised": Supervised,
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
    return {field.name: field.default for field in fields if field.name != "model"}


def create(name: str, model: nn.Module, **hyper_parameters: Any) -> Method:
    """A method by name.

    Args:
      name: one of `names()`.
      model: the classifier, from `skd_jax.models.create`.
      **hyper_parameters: fields of the method's dataclass, see its docstring.

    Raises:
      UserError: unknown method or hyper-parameter; the message gives the nearest known name.
    """
    known = defaults(name)
    for key in hyper_parameters:
        if key not in known:
            raise _names.unknown(f"hyper-parameter of method {name!r}:", key, known)
    return _METHODS[name](model=model, **hyper_parameters)


__all__ = ["Method", "create", "defaults", "names"]
