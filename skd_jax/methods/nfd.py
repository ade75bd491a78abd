"""NFD: the student's maps regress the teacher's, both normalised."""

import dataclasses

from skd_jax import losses
from skd_jax.errors import UserError
from skd_jax.methods import teacher_student
from skd_jax.methods.fitnet import FitNet


@dataclasses.dataclass(frozen=True)
class NFD(FitNet):
    """Normalised feature distillation: hints of maps without their magnitude.

        L = CE + beta sum_l mean (n(r_l(f_l)) - n(g_l))^2

    where n gives every channel of every example mean 0 and variance 1 over time, height and width.
    Liu, Yang and Chen, "Normalized Feature Distillation for Semantic Segmentation", arXiv 2207.05256,
    of which the abstract was at hand: the axes of n, the stage and beta are this project's reading.
    r_l is a 1x1x1 convolution with BatchNorm, which n undoes in training, and no ReLU.

    Attributes:
      beta: weight of the hints.
      stages: as for FitNet; the last by default, the original distils the last features too.
      relu: as for FitNet.
    """

    beta: float = 1.0
    stages: str = "-1"
    relu: bool = False

    def compared(self, own, theirs):
        return losses.normalised_hint(own, theirs)

    def networks(self, student, teacher, bn_axis):
        for own, theirs in teacher_student.stage_maps(self.stages, student, teacher):
            shape = losses.pool_to_common(own, theirs)[0].shape[1:4]
            if shape == (1, 1, 1):
                raise UserError(
                    "method.stages: a map of a single position has nothing left once it is normalised "
                    f"(student {own.shape[1:4]}, teacher {theirs.shape[1:4]}); take an earlier stage"
                )
        return super().networks(student, teacher, bn_axis)
