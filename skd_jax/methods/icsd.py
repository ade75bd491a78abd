"""ICSD: how alike the classes' places in the clip are."""

import dataclasses

from skd_jax import losses
from skd_jax.methods.srd import check_pools_last_map, linear_logits
from skd_jax.methods.teacher_student import TeacherStudent


@dataclasses.dataclass(frozen=True)
class ICSD(TeacherStudent):
    """The inter-class similarity matrix of AICSD on video maps, beside the soft labels.

        M_ij = KL(p_j || p_i),  p_k = softmax over T, H, W of class k's map / tau
        L = lambda_ce CE + lambda_kd L_kd + beta mean_ij (M^s_ij - M^t_ij)^2

    Mansurian et al., "Adaptive Inter-Class Similarity Distillation for Semantic Segmentation", arXiv
    2308.04243, a method for segmentation, where the network's output is a map for each class. A video
    classifier has such maps too: its linear classifier applied at each position of the last map,
    before the pooling (class activation maps). Chosen here: these maps; the softmax over all
    positions (the authors' early code takes it over image rows alone, the paper over the whole
    map); a matrix for each clip, its divergences summed over the positions (their code averages over batch
    and positions: one matrix for the batch, and beta is not their lo_lambda); beta. Their adaptive weights of the terms are left out.

    Attributes:
      beta: weight of the matrices' difference.
      map_temperature: tau.
    """

    lambda_ce: float = 0.1
    lambda_kd: float = 0.9
    beta: float = 1.0
    map_temperature: float = 1.0

    @property
    def compares_classes(self):
        return True

    def networks(self, student, teacher, bn_axis):
        for outputs, whose in ((student, "student"), (teacher, "teacher")):
            check_pools_last_map(outputs, whose)
        return {}

    def terms(self, seen):
        own = linear_logits(seen.student.maps[-1], seen.variables["params"]["model"]["fc"])
        theirs = linear_logits(seen.teacher.maps[-1], seen.state["teacher"]["params"]["fc"])
        pair = losses.pool_to_common(own, theirs)
        matrices = [losses.class_similarity(maps, self.map_temperature) for maps in pair]
        return {"icsd": (self.beta, losses.hint(*matrices).mean())}, seen.state
