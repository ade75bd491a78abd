"""SRD: the teacher's classifier judges the student's features."""

import dataclasses

import jax
import jax.numpy as jnp

from skd_jax import losses
from skd_jax.errors import UserError
from skd_jax.methods.teacher_student import Connector, TeacherStudent
from skd_jax.models.renormalised import unwrapped
from skd_jax.models.windows import average_windows
from skd_jax.precision import EXACT


def linear_logits(features, fc):
    """The linear classifier `fc` of features (..., C), such as a map's: logits (..., K), float32."""
    logits = jnp.matmul(features.astype(jnp.float32), fc["kernel"], precision=EXACT)
    return logits + fc.get("bias", 0.0)


def check_pools_last_map(outputs, whose: str) -> None:
    """Raises a UserError unless the embedding may be the last map's mean, by its width."""
    channels, width = outputs.maps[-1].shape[-1], outputs.embedding.shape[-1]
    if channels != width:
        raise UserError(
            f"the {whose}'s classifier does not sit on its last map: the map has {channels} channels, "
            f"the classifier takes {width}; take a network that pools its last map, such as a ResNet"
        )


def pool_as(network, maps):
    """A map (B, T, H, W, C) pooled as `network` pools its last one: the mean, or a mean over windows.

    Returns:
      (B, C) float32.
    """
    window = getattr(unwrapped(network), "window", None)
    return average_windows(maps, window).mean(axis=(1, 2, 3))


@dataclasses.dataclass(frozen=True)
class SRD(TeacherStudent):
    """Semantic representation distillation: match the teacher's logits through its own classifier.

        h = c(f),  c: 1x1x1 convolution, BatchNorm, ReLU to the teacher's channels; f, g last maps
        L = CE + beta [ mean_k (fc'(pool h) - t)_k^2 + lambda_feature mean_c (pool h - pool g)_c^2 ]

    with fc' the teacher's frozen classifier, t its logits and pool as the teacher pools. Yang et al.,
    "Knowledge Distillation Meets Open-Set Semi-Supervised Learning", IJCV 2024, by its code; the two
    terms are those of "softmax regression representation learning" (ICLR 2021). beta = 1; the code
    weighs the second term 1, and 10 for ShuffleNetV1. Its unlabelled videos from elsewhere are left
    out.

    Attributes:
      beta: weight of both terms.
      lambda_feature: weight of the second within.
    """

    beta: float = 1.0
    lambda_feature: float = 1.0

    def networks(self, student, teacher, bn_axis):
        check_pools_last_map(teacher, "teacher")
        options = {"dtype": self.model.dtype, "axis_name": bn_axis}
        return {"connector": (Connector(teacher.maps[-1].shape[-1], **options), student.maps[-1])}

    def terms(self, seen):
        connected = seen.made["connector"]
        judge = jax.lax.stop_gradient(seen.state["teacher"]["params"]["fc"])
        pooled = pool_as(self.teacher, connected)
        judged = linear_logits(pooled, judge)
        return {
            "srd": (self.beta, losses.hint(judged, seen.teacher.logits).mean()),
            "feature": (
                self.beta * self.lambda_feature,
                losses.hint(pooled, seen.teacher.embedding).mean(),
            ),
        }, seen.state
