"""FitNet: the student's maps regress the teacher's."""

import dataclasses

from skd_jax import losses
from skd_jax.methods import teacher_student
from skd_jax.methods.teacher_student import Connector, TeacherStudent


@dataclasses.dataclass(frozen=True)
class FitNet(TeacherStudent):
    """Hints: squared difference between the teacher's maps and a regression of the student's.

        L = CE + beta sum_l mean (r_l(f_l) - g_l)^2

    Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015. r_l is a 1x1x1 convolution, BatchNorm
    and ReLU to the teacher's channels. The original trains the lower half on hints first; here they
    go beside the cross-entropy, with the middle one of four stages and beta = 100, as RepDistiller
    does. Where the two maps differ in size the larger is average-pooled.

    Attributes:
      beta: weight of the hints.
      stages: which stages, see `teacher_student.parse_stages`; "" is all.
      relu: whether the regressor ends in a ReLU, as the maps of residual networks do.
    """

    beta: float = 100.0
    stages: str = "2"
    relu: bool = True

    def __post_init__(self):
        super().__post_init__()
        teacher_student.parse_stages(self.stages)

    def networks(self, student, teacher, bn_axis):
        options = {"relu": self.relu, "dtype": self.model.dtype, "axis_name": bn_axis}
        made = {}
        for i, pair in enumerate(teacher_student.stage_maps(self.stages, student, teacher)):
            # Pooling before the convolution: it costs less, and both are linear.
            own, theirs = losses.pool_to_common(*pair)
            made[f"regressor{i}"] = (Connector(theirs.shape[-1], **options), own)
        return made

    def compared(self, own, theirs):
        """The loss of one regressed map, (B,)."""
        return losses.hint(own, theirs)

    def terms(self, seen):
        pairs = teacher_student.stage_maps(self.stages, seen.student, seen.teacher)
        targets = [losses.pool_to_common(*pair)[1] for pair in pairs]
        each = [self.compared(seen.made[f"regressor{i}"], g).mean() for i, g in enumerate(targets)]
        return {"hint": (self.beta, sum(each))}, seen.state
