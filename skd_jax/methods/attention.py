"""AT: the student attends where the teacher does."""

import dataclasses

from skd_jax import losses
from skd_jax.errors import UserError
from skd_jax.methods import teacher_student
from skd_jax.methods.teacher_student import TeacherStudent


@dataclasses.dataclass(frozen=True)
class AT(TeacherStudent):
    """Attention transfer: the maps' energy over time, height and width.

        L = CE + beta sum_l AT(f_l, g_l)

    Zagoruyko and Komodakis, "Paying More Attention to Attention", ICLR 2017, see
    `losses.attention_transfer`. beta = 1000 as in RepDistiller and SRM's comparison, on images of 32
    pixels: the mean over positions shrinks as there are more of them. Where the two maps differ in
    size the larger is average-pooled, before its energy is taken.

    Attributes:
      beta: weight of the sum over stages.
      stages: which stages, see `teacher_student.parse_stages`; "" is all.
    """

    beta: float = 1000.0
    stages: str = ""

    def __post_init__(self):
        super().__post_init__()
        teacher_student.parse_stages(self.stages)
        if self.beta < 0:
            raise UserError(f"method.beta must be 0 or more, got {self.beta}")

    def terms(self, seen):
        pairs = teacher_student.stage_maps(self.stages, seen.student, seen.teacher)
        each = [losses.attention_transfer(*losses.pool_to_common(*p)).mean() for p in pairs]
        return {"at": (self.beta, sum(each))}, seen.state
