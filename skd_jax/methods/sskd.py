"""SSKD: the teacher's answers to a contrastive task on turned clips are labels too."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from skd_jax import losses
from skd_jax.errors import UserError
from skd_jax.methods.crd import Projection
from skd_jax.methods.teacher_student import TeacherStudent


@dataclasses.dataclass(frozen=True)
class SSKD(TeacherStudent):
    """Knowledge distillation meets self-supervision, by rotations of the clip.

        every clip x also as x_1, x_2, x_3, turned by 90, 180, 270 degrees in the image plane
        A_(i,r),j = cos(z(x_i,r), z(x_j)):  which upright clip is the turned one made of?
        L = lambda_ce CE(s(x), y) + lambda_kd KD_T(s(x), t(x))
            + lambda_turned KD_T(s(x_r), t(x_r))                    over the kept turned clips
            + lambda_contrast tau^2 KL(softmax(A^t / tau) || softmax(A^s / tau))      likewise
            + CE(A^t, i)                                             trains the teacher's z alone

    Xu et al., "Knowledge Distillation Meets Self-Supervision", ECCV 2020, by its code. z is a
    two-layer perceptron on the embedding, one for each network; KD_T includes T^2. Of the turned clips
    all are kept that the teacher gets right, and of the wrong ones the given share, the best ranked by
    the place of the right answer. The contrast and the ranking see the batch of all replicas. All
    four turns pass through BatchNorm as one batch; the cost is four times that of a clip.

    Chosen here: the authors train the teacher's z first, for 60 of 300 epochs, everything else frozen.
    Here it learns in the same run, on stopped embeddings, and the student begins to learn from it
    after `head_share` of the steps; its own z begins to move then. The method takes a turned clip to be of its class still. For classes
    that a turn changes into one another ("up" and "left") that is false: then the teacher is rightly
    "wrong" about turned clips, and only keep_turned = 1, which keeps all its answers, does no harm.

    Attributes:
      lambda_ce, lambda_kd: of the upright clips.
      lambda_turned: weight of the soft labels of turned clips.
      lambda_contrast: weight of the contrast.
      contrast_temperature: tau.
      keep_turned: share of the teacher's wrong answers that are kept, of the classes.
      keep_contrast: the same, of the contrast.
      head_share: share of training after which the contrast begins to teach.
    """

    lambda_ce: float = 0.1
    lambda_kd: float = 0.9
    lambda_turned: float = 2.7
    lambda_contrast: float = 10.0
    contrast_temperature: float = 0.5
    keep_turned: float = 1.0
    keep_contrast: float = 0.75
    head_share: float = 0.2

    def __post_init__(self):
        super().__post_init__()
        for name in ("keep_turned", "keep_contrast", "head_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"method.{name} must be in [0, 1], got {getattr(self, name)}")

    @property
    def num_turns(self):
        return 4

    @property
    def compares_classes(self):
        return True

    def networks(self, student, teacher, bn_axis):
        return {
            "projector": (Perceptron(), student.embedding),
            "teacher_projector": (Perceptron(), teacher.embedding),
        }

    @property
    def least_batch(self):
        return 1, 2

    def waits(self, network, progress):
        return network == "projector" and progress < self.head_share

    def terms(self, seen):
        own, theirs = (
            _all(seen.made[name].reshape(-1, 4, seen.made[name].shape[-1]), seen.axis_name)
            for name in ("projector", "teacher_projector")
        )
        labels = _all(seen.batch["label"], seen.axis_name)
        logits, soft = (
            _all(x.logits.reshape(-1, 4, x.logits.shape[-1])[:, 1:], seen.axis_name)
            for x in (seen.student, seen.teacher)
        )
        contrast, knowledge = losses.turned_similarity(own), losses.turned_similarity(theirs)
        source = jnp.repeat(jnp.arange(len(labels)), 3)
        head = losses.cross_entropy(knowledge, source).mean()
        # The teacher's projector learns from its own task alone.
        knowledge = jax.lax.stop_gradient(knowledge)

        def distilled(student, teacher, right, share, temperature):
            each = losses.soft_label_distillation(student, teacher, temperature, scale_by_t2=True)
            kept = losses.best_ranked(teacher, right, share)
            return jnp.sum(each * kept) / jnp.maximum(kept.sum(), 1)

        flat = [x.reshape(-1, x.shape[-1]) for x in (logits, soft)]
        turned = distilled(*flat, jnp.repeat(labels, 3), self.keep_turned, self.temperature)
        alike = distilled(
            contrast, knowledge, source, self.keep_contrast, self.contrast_temperature
        )
        begun = seen.progress >= self.head_share
        return {
            "turned": (self.lambda_turned, turned),
            "contrast": (jnp.where(begun, self.lambda_contrast, 0.0), alike),
            "head": (1.0, head),
        }, seen.state


class Perceptron(nn.Module):
    """Linear, ReLU, linear, all as wide as the input; float32."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        width = x.shape[-1]
        return Projection(width, name="fc2")(nn.relu(Projection(width, name="fc1")(x)))


def _all(x: jax.Array, axis_name: str | None) -> jax.Array:
    return x if axis_name is None else jax.lax.all_gather(x, axis_name, tiled=True)
