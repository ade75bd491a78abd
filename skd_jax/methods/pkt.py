"""PKT: the student's similarities within the batch follow the teacher's, as probabilities."""

import dataclasses

from skd_jax import losses
from skd_jax.methods.teacher_student import TeacherStudent, examples_compared


@dataclasses.dataclass(frozen=True)
class PKT(TeacherStudent):
    """Probabilistic knowledge transfer: similarities within the batch as probabilities.

        L = CE + beta B PKT(e, e'),   `losses.probabilistic_transfer` of B embeddings

    Passalis and Tefas, ECCV 2018; B PKT is the mean divergence of an example's similarities.
    RepDistiller and SRM's comparison weigh PKT by 30000; at the former's batches of 64 that is
    468.75 B PKT.

    Attributes:
      beta: weight of the divergence.
    """

    beta: float = 468.75

    @property
    def least_batch(self):
        return 1, 2

    def terms(self, seen):
        value = losses.probabilistic_transfer(
            seen.student.embedding, seen.teacher.embedding, seen.axis_name
        )
        return {"pkt": (self.beta, examples_compared(seen) * value)}, seen.state
