"""CRD: contrast with what the other network remembers of every training video."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from skd_jax import losses
from skd_jax.errors import UserError
from skd_jax.methods.teacher_student import TeacherStudent
from skd_jax.models.heads import torch_linear_init


@dataclasses.dataclass(frozen=True)
class CRD(TeacherStudent):
    """Contrastive representation distillation with a memory of both networks' embeddings.

        u = W e / |W e|,  v = W' e' / |W' e'|        student's and teacher's embedding, projected
        L = CE + lambda_kd L_kd + beta [NCE(u; memory of v) + NCE(v; memory of u)]

    Tian, Krishnan and Isola, "Contrastive Representation Distillation", ICLR 2020; see
    `losses.contrastive_representation`. The scores are exp(<u, v_n> / T) / Z, the positive v_n that of
    the same video, Z set once, by the first batch of all replicas. The memories hold a unit vector for
    each training video, by its row in the split; after a step the rows of the batch move towards their
    new vectors, m old + (1 - m) new, made unit again; before, they are the same random vectors in every
    run, whatever its seed. Defaults: T 0.07, 16384 negatives, 128 features, m 0.5, beta 0.8 and no
    L_kd, as the authors' code.

    Chosen here: the negatives are drawn anew in every step, uniformly and with replacement, one set
    for all anchors of a replica, as drawing and fetching them for each would cost B times as much;
    the anchor itself does not count among them, nor do those of its class once the memory knows their
    class (the authors draw from other classes). A video that is twice in a batch, at the end of an
    epoch, writes once.

    Attributes:
      beta: weight of the contrast.
      contrast_temperature: T of the contrast.
      negatives: M, drawn in every step.
      features: width of the projections.
      momentum: m, what stays of a memory's row.
    """

    beta: float = 0.8
    contrast_temperature: float = 0.07
    negatives: int = 16384
    features: int = 128
    momentum: float = 0.5

    def __post_init__(self):
        super().__post_init__()
        for name in ("negatives", "features"):
            if getattr(self, name) < 1:
                raise UserError(f"method.{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.momentum < 1:
            raise UserError(f"method.momentum must be in [0, 1), got {self.momentum}")

    def init_state(self, variables):
        if self.num_videos < 1:
            raise UserError(
                "crd remembers every training video; give num_videos, how many there are"
            )
        bound = (self.features / 3) ** -0.5
        keys = jax.random.split(jax.random.key(0), 2)
        shape = (self.num_videos, self.features)
        return {
            "memory": {
                name: jax.random.uniform(key, shape, minval=-bound, maxval=bound)
                for name, key in zip(("student", "teacher"), keys, strict=True)
            },
            "label": jnp.full(self.num_videos, -1, jnp.int32),  # -1: not seen yet
            "scale": {name: jnp.zeros(()) for name in ("student", "teacher")},  # Z; 0: not set yet
        }

    def networks(self, student, teacher, bn_axis):
        return {
            "embed_student": (Projection(self.features), student.embedding),
            "embed_teacher": (Projection(self.features), teacher.embedding),
        }

    def terms(self, seen):
        anchors = {
            name: losses.normalise(seen.made[f"embed_{name}"]) for name in ("student", "teacher")
        }
        index, label = seen.batch["index"], seen.batch["label"]
        drawn = jax.random.randint(seen.rng, (self.negatives,), 0, self.num_videos)
        counted = (seen.state["label"][drawn] != label[:, None]) & (drawn != index[:, None])
        scale, total = {}, 0.0
        for name, other in (("student", "teacher"), ("teacher", "student")):
            memory = seen.state["memory"][other]
            pairs = anchors[name], memory[index], memory[drawn]
            constants = self.num_videos, self.contrast_temperature
            first = losses.contrastive_scale(*pairs, *constants, seen.axis_name)
            kept = seen.state["scale"][name]
            scale[name] = jnp.where(kept > 0, kept, first)
            total += losses.contrastive_representation(*pairs, *constants, scale[name], counted)

        written = (index, label, jax.lax.stop_gradient(anchors))
        if seen.axis_name is not None:  # every replica writes what all have seen
            written = jax.lax.all_gather(written, seen.axis_name, tiled=True)
        new = self._remember(seen.state, *written) | {"scale": scale}
        return {"crd": (self.beta, total)}, {**seen.state, **new}

    def _remember(self, state, index, label, vectors):
        # Of a video that is there twice the first counts: the order of writes is not defined.
        twice = jnp.tril(index[:, None] == index, -1).any(axis=1)
        place = jnp.where(twice, self.num_videos, index)  # past the end: dropped

        def moved(memory, new):
            mixed = self.momentum * memory[index] + (1 - self.momentum) * new
            return memory.at[place].set(losses.normalise(mixed), mode="drop")

        return {
            "memory": {name: moved(state["memory"][name], vectors[name]) for name in vectors},
            "label": state["label"].at[place].set(label, mode="drop"),
        }


class Projection(nn.Module):
    """A linear layer in float32, started as PyTorch's.

    Attributes:
      features: width of the output.
    """

    features: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        bound = x.shape[-1] ** -0.5

        def bias_init(key, shape, dtype):
            return jax.random.uniform(key, shape, dtype, -bound, bound)

        return nn.Dense(
            self.features, kernel_init=torch_linear_init, bias_init=bias_init, name="fc"
        )(x.astype(jnp.float32))
