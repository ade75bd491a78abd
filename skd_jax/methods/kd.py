"""Knowledge distillation, from another network or from an earlier run of the same one."""

import dataclasses

import flax.linen as nn

from skd_jax.errors import UserError
from skd_jax.methods.teacher_student import TeacherStudent
from skd_jax.models.renormalised import Renormalised


@dataclasses.dataclass(frozen=True)
class KD(TeacherStudent):
    """Soft labels of a teacher beside the labels.

    Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015:

        L = (1 - a) CE(s, y) + a T^2 KL(softmax(t / T) || softmax(s / T))

    with a = 0.9 and T = 4 as RepDistiller runs it (Tian et al., ICLR 2020); SRM's authors chose a of
    0.25 to 0.75 and T of 2 to 8 on validation.

    Attributes:
      lambda_ce: 1 - a.
      lambda_kd: a.
    """

    lambda_ce: float = 0.1
    lambda_kd: float = 0.9

    def __post_init__(self):
        super().__post_init__()
        if self.lambda_kd == 0:
            raise UserError("method.lambda_kd is 0: nothing is learnt from the teacher")


@dataclasses.dataclass(frozen=True)
class TfKDSelf(KD):
    """Tf-KD_self: distillation from a copy of the same network trained before.

    Yuan et al., "Revisiting Knowledge Distillation via Label Smoothing Regularization", CVPR 2020:
    L = (1 - a) CE(s, y) + a T^2 KL(t || s). The teacher is the workdir of a run of the same model,
    such as a supervised one. They tuned a and T per network; the defaults are those of `KD`, so that
    the two differ in the teacher alone.
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
    module = module.network if isinstance(module, Renormalised) else module
    fields = {field.name for field in dataclasses.fields(module)} - _OF_A_RUN - {"parent", "name"}
    return type(module), {name: getattr(module, name) for name in fields}
