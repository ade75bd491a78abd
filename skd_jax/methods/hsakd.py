"""HSAKD: soft labels of the joint task "which class, turned how far" at every stage."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from skd_jax import losses
from skd_jax.errors import UserError
from skd_jax.methods.teacher_student import TeacherStudent
from skd_jax.models.classifier import linear_classifier
from skd_jax.models.layers import BatchNorm, Conv3D, global_average_pool


@dataclasses.dataclass(frozen=True)
class HSAKD(TeacherStudent):
    """Hierarchical self-supervised augmented knowledge distillation, by rotations of the clip.

        every clip as x_0, ..., x_3, turned by 0, 90, 180, 270 degrees; joint label 4 y + r
        a_l(f_l): branch on stage l with 4 K logits, for the student; b_l(g_l) for the teacher
        L = CE(s(x_0), y) + T^2 [sum_l KL(b_l(x_r) || a_l(x_r)) + KL(t(x_r) || s(x_r))]
            + sum_l CE(b_l(x_r), 4 y + r)                               trains the b_l alone

    with softmax at T = 3 in every KL, the mean over all turned clips. Yang et al., "Hierarchical
    Self-supervised Augmented Knowledge Distillation", IJCAI 2021, by its code; the teacher's
    network stays frozen, as in its variant `--freezed`. All four turns pass through BatchNorm as one
    batch; the cost is more than four times that of a clip.

    Chosen here: a branch is a 3x3x3 convolution, BatchNorm and ReLU for each stage that follows, with
    its channels and its stride (one at stride 1 on the last), then pooling and a linear layer; the
    authors repeat all blocks of these stages. They train the b_l first; here they learn in the same
    run, on stopped maps, and teach after `head_share` of the steps, when the a_l begin to move, normalised by the batch as they
    learn (the authors' by running statistics). Both networks need as many stages. Of classes that a
    turn changes into one another ("up" and "left") two joint labels look alike, which only the
    surroundings tell apart: the branches can then teach little.

    Attributes:
      lambda_kd: weight of the last KL, of all turned clips.
      lambda_joint: weight of the sum over stages.
      temperature: T.
      head_share: share of training after which the teacher's branches begin to teach.
    """

    lambda_kd: float = 1.0
    lambda_joint: float = 1.0
    temperature: float = 3.0
    head_share: float = 0.2

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.head_share <= 1:
            raise UserError(f"method.head_share must be in [0, 1], got {self.head_share}")

    @property
    def num_turns(self):
        return 4

    @property
    def distils_turned(self):
        return True

    @property
    def compares_classes(self):
        return True

    def networks(self, student, teacher, bn_axis):
        if len(student.maps) != len(teacher.maps):
            raise UserError(
                f"hsakd compares stage with stage: the student has {len(student.maps)}, the teacher "
                f"{len(teacher.maps)}; take a teacher of a family with as many"
            )
        made = {}
        for prefix, outputs in (("branch", student), ("teacher_branch", teacher)):
            options = {"dtype": self.model.dtype, "axis_name": bn_axis}
            joint = 4 * student.logits.shape[-1]
            for i, maps in enumerate(outputs.maps):
                branch = Branch(joint, *_following(outputs.maps, i), **options)
                made[f"{prefix}{i}"] = (branch, maps)
        return made

    def waits(self, network, progress):
        return network.startswith("branch") and progress < self.head_share

    def terms(self, seen):
        joint = (4 * seen.batch["label"][:, None] + jnp.arange(4)).reshape(-1)
        head = taught = 0.0
        for i in range(len(seen.student.maps)):
            own, theirs = seen.made[f"branch{i}"], seen.made[f"teacher_branch{i}"]
            head += losses.cross_entropy(theirs, joint).mean()
            # The teacher's branches learn from the labels alone.
            taught += losses.soft_label_distillation(
                own, jax.lax.stop_gradient(theirs), self.temperature, scale_by_t2=True
            ).mean()
        begun = seen.progress >= self.head_share
        return {
            "joint": (jnp.where(begun, self.lambda_joint, 0.0), taught),
            "head": (1.0, head),
        }, seen.state


class Branch(nn.Module):
    """Strided 3x3x3 convolutions, pooling, a linear layer: (B, T, H, W, C) -> (B, num_classes).

    Attributes:
      num_classes: length of the logits.
      channels: of each convolution.
      strides: of each.
      dtype: compute dtype; parameters, statistics and logits are float32.
      axis_name: mapped axis over which BatchNorm averages its training statistics; None for none.
    """

    num_classes: int
    channels: tuple[int, ...]
    strides: tuple[tuple[int, int, int], ...]
    dtype: object = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        dtype = jnp.dtype(self.dtype)
        for i, (channels, strides) in enumerate(zip(self.channels, self.strides, strict=True)):
            conv = Conv3D(channels, (3, 3, 3), strides, (1, 1, 1), dtype=dtype, name=f"conv{i}")
            norm = BatchNorm(not train, dtype=dtype, axis_name=self.axis_name, name=f"bn{i}")
            x = nn.relu(norm(conv(x)))
        return linear_classifier(self.num_classes)(global_average_pool(x))


def _following(maps, stage: int):
    """Channels and strides of the stages after this one; of the last, itself at stride 1."""
    if stage == len(maps) - 1:
        return (maps[-1].shape[-1],), ((1, 1, 1),)
    pairs = [(maps[i].shape, maps[i + 1].shape) for i in range(stage, len(maps) - 1)]
    channels = tuple(after[-1] for _, after in pairs)
    return channels, tuple(tuple(-(-a // b) for a, b in zip(x[1:4], y[1:4], strict=True))
                           for x, y in pairs)  # fmt: skip
