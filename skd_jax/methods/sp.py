"""SP: the student keeps the teacher's Gram matrices of the batch."""

import dataclasses

from skd_jax import losses
from skd_jax.methods import teacher_student
from skd_jax.methods.teacher_student import TeacherStudent, examples_compared


@dataclasses.dataclass(frozen=True)
class SP(TeacherStudent):
    """Similarity-preserving distillation: Gram matrices of the batch.

        L = CE + beta B sum_l SP(f_l, g_l),   `losses.similarity_preserving` of B flattened maps

    Tung and Mori, ICCV 2019; B SP is the mean squared difference of an example's row. RepDistiller
    weighs SP by 3000, and takes the last stage; at its batches of 64 that is 46.875 B SP. The maps'
    sizes may differ, for each network is compared with itself.

    Attributes:
      beta: weight of the difference.
      stages: which stages, see `teacher_student.parse_stages`; "" is all.
    """

    beta: float = 46.875
    stages: str = "-1"

    def __post_init__(self):
        super().__post_init__()
        teacher_student.parse_stages(self.stages)

    @property
    def least_batch(self):
        return 1, 2

    def terms(self, seen):
        pairs = teacher_student.stage_maps(self.stages, seen.student, seen.teacher)
        each = [losses.similarity_preserving(*pair, seen.axis_name) for pair in pairs]
        return {"sp": (self.beta, examples_compared(seen) * sum(each))}, seen.state
