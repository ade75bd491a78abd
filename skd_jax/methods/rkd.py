"""RKD: the student keeps the teacher's distances and angles between examples."""

import dataclasses

from skd_jax import losses
from skd_jax.errors import UserError
from skd_jax.methods.teacher_student import TeacherStudent


@dataclasses.dataclass(frozen=True)
class RKD(TeacherStudent):
    """Relational knowledge distillation: distances and angles between the examples' embeddings.

        L = CE + distance RKD-D(e, e') + angle RKD-A(e, e')

    Park et al., CVPR 2019, see `losses.relational_distances` and `losses.relational_angles`; weights
    25 and 50 as in RepDistiller. Angles take time and memory of B^2 D + B^3.

    Attributes:
      distance: weight of the distances.
      angle: weight of the angles.
    """

    distance: float = 25.0
    angle: float = 50.0

    def __post_init__(self):
        super().__post_init__()
        if self.distance < 0 or self.angle < 0:
            raise UserError("method.distance and method.angle must be 0 or more")

    @property
    def least_batch(self):
        return 1, 3

    def terms(self, seen):
        pair = (seen.student.embedding, seen.teacher.embedding, seen.axis_name)
        return {
            "distance": (self.distance, losses.relational_distances(*pair)),
            "angle": (self.angle, losses.relational_angles(*pair)),
        }, seen.state
