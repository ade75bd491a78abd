"""Training methods, made by name.

    method = skd_jax.methods.create("skd_srl", model, temperature=4.0)

Adding one: a file here with a dataclass derived from `base.Method`, a line in `_METHODS`, tests.
"""

import dataclasses
from typing import Any

import flax.linen as nn

from skd_jax import names as _names
from skd_jax.errors import UserError
from skd_jax.methods.attention import AT
from skd_jax.methods.bake import BAKE
from skd_jax.methods.base import Method
from skd_jax.methods.byot import BYOT
from skd_jax.methods.crd import CRD
from skd_jax.methods.cs_kd import CSKD
from skd_jax.methods.ddgsd import DDGSD
from skd_jax.methods.dks import DKS
from skd_jax.methods.fitnet import FitNet
from skd_jax.methods.frskd import FRSKD
from skd_jax.methods.hsakd import HSAKD
from skd_jax.methods.icsd import ICSD
from skd_jax.methods.kd import KD
from skd_jax.methods.label_smoothing import LabelSmoothing
from skd_jax.methods.mixskd import MixSKD
from skd_jax.methods.nfd import NFD
from skd_jax.methods.pkt import PKT
from skd_jax.methods.ps_kd import PSKD
from skd_jax.methods.rkd import RKD
from skd_jax.methods.sad import SAD
from skd_jax.methods.skd_srl import SKDSRL
from skd_jax.methods.sp import SP
from skd_jax.methods.srd import SRD
from skd_jax.methods.srm import SRM
from skd_jax.methods.sskd import SSKD
from skd_jax.methods.supervised import Supervised
from skd_jax.methods.teaching_yourself import TeachingYourself
from skd_jax.methods.tf_kd_reg import TfKDReg
from skd_jax.methods.tf_kd_self import TfKDSelf

_METHODS: dict[str, type[Method]] = {
    "at": AT,
    "bake": BAKE,
    "byot": BYOT,
    "crd": CRD,
    "cs_kd": CSKD,
    "ddgsd": DDGSD,
    "dks": DKS,
    "fitnet": FitNet,
    "frskd": FRSKD,
    "hsakd": HSAKD,
    "icsd": ICSD,
    "kd": KD,
    "label_smoothing": LabelSmoothing,
    "mixskd": MixSKD,
    "nfd": NFD,
    "pkt": PKT,
    "ps_kd": PSKD,
    "rkd": RKD,
    "sad": SAD,
    "skd_srl": SKDSRL,
    "sp": SP,
    "srd": SRD,
    "srm": SRM,
    "sskd": SSKD,
    "supervised": Supervised,
    "teaching_yourself": TeachingYourself,
    "tf_kd_reg": TfKDReg,
    "tf_kd_self": TfKDSelf,
}

_FILLED_IN = ("model", "num_videos", "teacher")  # by the program, from configs and the data


def names() -> tuple[str, ...]:
    """Names that `create` knows, sorted."""
    return tuple(sorted(_METHODS))


def defaults(name: str) -> dict[str, Any]:
    """Hyper-parameters of a method with their default values.

    Networks and what the program knows from the data are no hyper-parameters.

    Raises:
      UserError: unknown method.
    """
    fields = dataclasses.fields(_names.look_up("method", name, _METHODS))
    return {field.name: field.default for field in fields if field.name not in _FILLED_IN}


def takes_teacher(name: str) -> bool:
    """Whether a method learns from a frozen classifier that is given to it.

    Raises:
      UserError: unknown method.
    """
    fields = dataclasses.fields(_names.look_up("method", name, _METHODS))
    return "teacher" in {field.name for field in fields}


def create(
    name: str,
    model: nn.Module,
    *,
    num_videos: int = 0,
    teacher: nn.Module | None = None,
    **hyper_parameters: Any,
) -> Method:
    """A method by name.

    Args:
      name: one of `names()`.
      model: the classifier, from `skd_jax.models.create`.
      num_videos: videos of the training split; some methods remember each.
      teacher: a frozen classifier, for the methods that take one; its variables are for
        `train.train`.
      **hyper_parameters: fields of the method's dataclass, see its docstring.

    Raises:
      UserError: unknown method or hyper-parameter; the message gives the nearest known name.
    """
    known = defaults(name)
    for key in hyper_parameters:
        if key not in known:
            raise _names.unknown(f"hyper-parameter of method {name!r}:", key, known)
    given = {"model": model, "num_videos": num_videos}
    if takes_teacher(name):
        given["teacher"] = teacher
    elif teacher is not None:
        raise UserError(f"method {name!r} takes no teacher; leave it out")
    return _METHODS[name](**given, **hyper_parameters)


__all__ = ["Method", "create", "defaults", "names", "takes_teacher"]
