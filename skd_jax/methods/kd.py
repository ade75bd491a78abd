"""Knowledge distillation from another network."""

import dataclasses

from skd_jax.errors import UserError
from skd_jax.methods.teacher_student import TeacherStudent


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
