"""What all methods with a frozen teacher share."""

import dataclasses
import re
from collections.abc import Mapping
from typing import NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from skd_jax import losses, mixing
from skd_jax.errors import UserError
from skd_jax.methods import base, diagnostics
from skd_jax.models import Outputs
from skd_jax.models.layers import BatchNorm, Conv3D

Terms = dict[str, tuple[float | chex.Array, chex.Array]]


class Seen(NamedTuple):
    """A batch and what the networks made of it.

    Attributes:
      student: outputs of the batch, leaves (B, ...), the turns of a clip in a row.
      teacher: the teacher's, stopped.
      made: outputs of `TeacherStudent.networks`, by name.
      variables, batch, state, rng, progress, axis_name: as in `Method.loss`.
    """

    student: Outputs
    teacher: Outputs
    made: Mapping[str, chex.Array]
    variables: base.PyTree
    batch: Mapping[str, chex.Array]
    state: base.PyTree
    rng: chex.PRNGKey
    progress: chex.Array
    axis_name: str | None


@dataclasses.dataclass(frozen=True)
class TeacherStudent(base.Method):
    """Base: cross-entropy, soft labels of a frozen teacher, and what a subclass adds.

        L = lambda_ce CE(s, y) + lambda_kd T^2 KL(softmax(t / T) || softmax(s / T)) + sum_i w_i L_i

    with s the student's logits and t the teacher's, means over the batch. The teacher sees the
    student's clip, in evaluation mode and in its own dtype. Its variables are state["teacher"]; no
    gradient reaches them, none is computed.

    Attributes:
      lambda_ce: weight of the cross-entropy.
      lambda_kd: weight of the soft labels; above 0 the teacher must know the same classes.
      temperature: T.
      label_smoothing: of the cross-entropy.
      teacher: the frozen classifier; without one the method can classify but not be trained.
    """

    lambda_ce: float = 1.0
    lambda_kd: float = 0.0
    temperature: float = 4.0
    label_smoothing: float = 0.0
    teacher: nn.Module | None = dataclasses.field(default=None, kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        if hasattr(self, "beta"):
            base.not_negative(self, "beta")

    @property
    def num_views(self) -> int:
        return 1

    @property
    def num_turns(self) -> int:
        """How often each clip is seen: 1, or 4 where it is also turned by 90, 180 and 270 degrees."""
        return 1

    @property
    def distils_turned(self) -> bool:
        """Whether L_kd is that of all turns of a clip, or of the upright one alone."""
        return False

    @property
    def compares_classes(self) -> bool:
        return self.lambda_kd > 0

    def networks(
        self, student: Outputs, teacher: Outputs, bn_axis: str | None
    ) -> dict[str, tuple[nn.Module, chex.Array]]:
        """The networks beside the classifier by name, each with its input; none here.

        Args:
          student: the student's outputs of a batch, or zeros of their shapes.
          teacher: the teacher's.
          bn_axis: mapped axis of BatchNorm.
        """
        del student, teacher, bn_axis
        return {}

    def terms(self, seen: Seen) -> tuple[Terms, base.PyTree]:
        """What a subclass adds to the loss: ({name: (weight, scalar)}, new state); nothing here."""
        return {}, seen.state

    def init(self, rng, clips):
        if self.teacher is None:
            raise UserError("this method learns from a teacher; give `teacher`, its network")
        trees = {"model": self.model.init({"params": rng}, clips, train=False)}
        apply = [
            lambda m=module: m.init_with_output({"params": rng}, clips, train=False)[0]
            for module in (self.model, self.teacher)
        ]
        zeros = [
            jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(f)) for f in apply
        ]
        networks = self.networks(*zeros, None)
        for i, (name, (module, inputs)) in enumerate(networks.items()):
            trees[name] = module.init(jax.random.fold_in(rng, i), inputs, train=False)
        return base.nest(trees)

    def taught(self, state: base.PyTree, clips: chex.Array) -> Outputs:
        """The teacher's outputs for clips (B, T, H, W, 3), constants."""
        outputs = self.teacher.apply(state["teacher"], clips, train=False)
        return jax.lax.stop_gradient(outputs)

    def loss(self, variables, batch, state, rng, progress, axis_name):
        clips = batch["clips"]
        if self.num_turns > 1:
            clips = mixing.rotate(clips[:, 0]).reshape(-1, self.num_turns, *clips.shape[2:])
        outputs, model_stats = base.classifier_views(
            self, variables, clips, together=True, rng=rng, axis_name=axis_name, maps=True
        )
        student, clips = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), (outputs, clips))
        teacher = self.taught(state, clips)
        made, stats = {}, {"model": model_stats}
        bn_axis = axis_name if self.sync_batch_norm else None
        for name, (module, inputs) in self.networks(student, teacher, bn_axis).items():
            trees = base.network(variables, name)
            made[name], updated = module.apply(trees, inputs, train=True, mutable=["batch_stats"])
            stats[name] = updated.get("batch_stats", trees.get("batch_stats", {}))

        upright = student.logits[:: self.num_turns]
        smoothed = losses.cross_entropy(upright, batch["label"], self.label_smoothing)
        terms = {"ce": (self.lambda_ce, smoothed.mean())}
        if self.lambda_kd > 0:
            step = 1 if self.distils_turned else self.num_turns
            pair = student.logits[::step], teacher.logits[::step]
            soft = losses.soft_label_distillation(*pair, self.temperature, scale_by_t2=True)
            terms["kd"] = (self.lambda_kd, soft.mean())
        seen = Seen(
            student, teacher, made, variables, batch, state, jax.random.fold_in(rng, 1), progress,
            axis_name,
        )  # fmt: skip
        added, state = self.terms(seen)
        terms |= added
        loss = sum(weight * value for weight, value in terms.values())
        metrics = {"loss": loss, **{f"loss_{name}": value for name, (_, value) in terms.items()}}
        metrics["top1"] = diagnostics.accuracy(upright[:, None], batch["label"])
        if self.compares_classes:
            right = diagnostics.accuracy(teacher.logits[:: self.num_turns, None], batch["label"])
            metrics["teacher_top1"] = right
        return loss, (metrics, stats, state)


class Connector(nn.Module):
    """1x1x1 convolution, BatchNorm and, if asked for, ReLU: (B, T, H, W, C) -> (B, T, H, W, features).

    Attributes:
      features: channels of the teacher's map.
      relu: whether the output is rectified, as the maps of residual networks are.
      dtype: compute dtype; parameters and statistics are float32.
      axis_name: mapped axis over which BatchNorm averages its training statistics; None for none.
    """

    features: int
    relu: bool = True
    dtype: base.Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: chex.Array, train: bool = False) -> chex.Array:
        dtype = jnp.dtype(self.dtype)
        x = Conv3D(self.features, (1, 1, 1), dtype=dtype, name="conv")(x)
        x = BatchNorm(not train, dtype=dtype, axis_name=self.axis_name, name="bn")(x)
        return nn.relu(x) if self.relu else x


def examples_compared(seen: Seen) -> int:
    """How many examples a loss that compares examples sees: all replicas', of a micro-batch.

    PKT and SP are means over all B^2 pairs of them. What an example's row sums to does not grow with
    B, so these means shrink as 1 / B. Their published weights, for batches of 64, are divided by 64
    and multiplied by this number: the same at 64, and neither small nor micro-batches pull harder.
    """
    replicas = 1 if seen.axis_name is None else jax.lax.axis_size(seen.axis_name)
    return replicas * len(seen.student.logits)


def parse_stages(text: str) -> tuple[tuple[int, int], ...]:
    """ "2, 3:4, -1" -> ((2, 2), (3, 4), (-1, -1)): the student's stage and the teacher's.

    Raises:
      UserError: a part that is no number and no pair of them, or a stage 0.
    """
    pairs = []
    for part in (p.strip() for p in text.split(",") if p.strip()):
        match = re.fullmatch(r"(-?[1-9]\d*)(?::(-?[1-9]\d*))?", part)
        if match is None:
            raise UserError(
                f"method.stages: {part!r} is no stage; write numbers from 1, or from the end -1, -2, "
                "..., such as '2,3', or pairs STUDENT:TEACHER such as '2:3'; '' is all"
            )
        student, teacher = match.groups()
        pairs.append((int(student), int(teacher or student)))
    return tuple(pairs)


def stage_maps(
    text: str, student: Outputs, teacher: Outputs
) -> list[tuple[chex.Array, chex.Array]]:
    """The maps that `method.stages` pairs; all of them, in order, where it is empty.

    Raises:
      UserError: a network has no such stage, or, with all, not as many as the other.
    """
    count = [len(outputs.maps) for outputs in (student, teacher)]
    if not text and count[0] != count[1]:
        raise UserError(
            f"the student has {count[0]} stages and the teacher {count[1]}; set "
            "config.method.stages to pairs STUDENT:TEACHER, such as '1:2,2:3'"
        )
    pairs = parse_stages(text) or tuple((n, n) for n in range(1, count[0] + 1))
    for pair in pairs:
        for stage, stages, whose in zip(pair, count, ("student", "teacher"), strict=True):
            if abs(stage) > stages:
                raise UserError(f"method.stages: the {whose} has stages 1 to {stages}, no {stage}")

    def at(outputs, stage):
        return outputs.maps[stage - 1 if stage > 0 else stage]

    return [(at(student, s), at(teacher, t)) for s, t in pairs]
