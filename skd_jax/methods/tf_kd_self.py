"""Tf-KD from itself: knowledge distillation from an earlier run of the same network."""

import dataclasses

import flax.linen as nn

from skd_jax.errors import UserError
from skd_jax.methods.kd import KD
from skd_jax.models.renormalised import unwrapped


@dataclasses.dataclass(frozen=True)
class TfKDSelf(KD):
    """Tf-KD_self: distillation from a copy of the same network trained before.

    Yuan et al., "Revisiting Knowledge Distillation via Label Smoothing Regularization", CVPR 2020:
    L = (1 - a) CE(s, y) + a T^2 KL(t || s). The teacher is the workdir of a run of the same model,
    such as a supervised one. They tuned a and T per network; the defaults are those of `KD`, so that
    the two differ in the teacher alone. Their code averages the divergence over the classes too, and multiplies
    it by a factor that is mostly 1; here it is summed over the classes.
    """

    def __post_init__(self):
        super().__post_init__()
        if self.teacher is not None and _built(self.teacher) != _built(self.model):
            raise UserError(
                "tf_kd_self: config.method.teacher must be a run of config.model itself, the same "
                "name, width and options; kd takes any other teacher"
            )


# What may differ between two runs of one network.
_OF_A_RUN = {"num_classes", "dtype", "axis_name", "dropout", "remat", "freeze_batch_norm"}


def _built(module: nn.Module) -> tuple:
    module = unwrapped(module)
    fields = {field.name for field in dataclasses.fields(module)} - _OF_A_RUN - {"parent", "name"}
    return type(module), {name: getattr(module, name) for name in fields}
