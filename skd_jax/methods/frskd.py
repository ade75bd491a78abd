"""FRSKD: a self-teacher refines the classifier's own feature maps and teaches it with them."""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from skd_jax import losses, mixing
from skd_jax.errors import UserError
from skd_jax.methods import auxiliary, base
from skd_jax.models import heads
from skd_jax.models.bifpn import BiFPN
from skd_jax.names import look_up

# mix(rng, clips, labels, num_classes, alpha), and the field that holds its alpha.
_MIXES = {"mixup": (mixing.mixup, "mixup_alpha"), "cutmix": (mixing.cutmix, "cutmix_alpha")}


@dataclasses.dataclass(frozen=True)
class FRSKD(auxiliary.AuxiliaryMethod):
    """Ji, Shin, Hwang, Park and Moon, "Refine Myself by Teaching Myself", CVPR 2021.

    The self-teacher, `models.bifpn.BiFPN`, reads the maps F_l of the classifier's n stages and gives
    refined maps T_l and logits t; with s the classifier's logits, as in the authors' code:

        L = CE(s, y) + CE(t, y) + alpha T^2 KL(sg softmax(t/T) || softmax(s/T))
            + beta N_n sum_l AT(F_l, sg T_l)

    AT is `losses.attention_transfer`, a mean over the positions of the map; N_n is the number of
    positions of the last map, so that beta does not depend on the size of the clips. The
    targets are stopped: the teacher must not move towards the student. The features that the
    self-teacher reads are not: CE(t, y) trains the classifier's stages too.

    With `sla`, self-supervised label augmentation (Lee et al., ICML 2020) in the same code's form: in a
    second pass all four rotations r of each clip go through both networks, two linear heads on
    their embeddings predict the joint label 4 y + r, and the mean over r of the joint logits of r,
    a K-class prediction, teaches each network's own logits:

        L = CE(s, y) + CE(t, y) + CE(joint_s, 4 y + r) + CE(joint_t, 4 y + r)
            + sla_lambda [KD(s, sg agg_s) + KD(t, sg agg_t)]
            + alpha KD([s; agg_s], sg [t; agg_t]) + beta N_n sum_l AT([F_l; F_l^rot], sg [T_l; T_l^rot])

    KD at T with T^2, [;] over the batch. The joint heads are networks of their own, "joint" and
    "joint_bifpn": the classifier keeps its K logits and its size.

    Where the defaults come from: alpha 2, T 4, width and depth 2, sla_lambda 1, mixup's alpha 0.2 and
    CutMix's 1 are those of the authors' commands for ResNet-18 on CIFAR-100. Their beta 100 belongs
    to means over maps of 32 x 32 to 4 x 4 positions: 100 AT = 6.25 * 16 AT, which is beta 6.25 here.

    Attributes:
      temperature: T.
      alpha: weight of the soft labels.
      beta: weight of the attention maps.
      width: of the self-teacher: channels over the classifier's.
      depth: of its blocks.
      temporal_kernel: taps over time of its depthwise convolutions; 1 is the original's, per frame.
      mix: "none", "mixup" or "cutmix": whether the clips of a replica's batch are mixed, see `mixing`.
      mixup_alpha, cutmix_alpha: of the Beta distributions of the shares.
      sla: whether to train with rotations and joint labels; not together with `mix`, as in
        the authors' code.
      sla_lambda: weight of what the joint predictions teach.
    """

    temperature: float = 4.0
    alpha: float = 2.0
    beta: float = 6.25
    width: float = 2.0
    depth: int = 2
    temporal_kernel: int = 3
    mix: str = "none"
    mixup_alpha: float = 0.2
    cutmix_alpha: float = 1.0
    sla: bool = False
    sla_lambda: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        base.not_negative(self, "alpha", "beta", "sla_lambda")
        if self.depth < 1:
            raise UserError(f"method.depth must be at least 1, got {self.depth}")
        if self.temporal_kernel < 1 or self.temporal_kernel % 2 == 0:
            raise UserError(f"method.temporal_kernel must be odd, got {self.temporal_kernel}")
        if self.mix != "none":
            _, field = look_up("method.mix", self.mix, {"none": None, **_MIXES})
            if getattr(self, field) <= 0:
                raise UserError(f"method.{field} must be positive, got {getattr(self, field)}")
            if self.sla:
                raise UserError(
                    "method.sla takes labels that are not mixed; set method.mix to 'none'"
                )

    def auxiliaries(self, bn_axis):
        classes = self.model.num_classes
        bifpn = BiFPN(
            classes,
            width=self.width,
            depth=self.depth,
            kernel_size=(self.temporal_kernel, 3, 3),
            dtype=self.model.dtype,
            axis_name=bn_axis,
        )
        networks = {"bifpn": auxiliary.Auxiliary(bifpn, lambda done: done["model"].maps)}
        if self.sla:
            for name, source in (("joint", "model"), ("joint_bifpn", "bifpn")):
                networks[name] = auxiliary.Auxiliary(
                    heads.LinearHead(4 * classes), lambda done, s=source: done[s].embedding
                )
        return networks

    @property
    def least_batch(self):
        return (2, 2) if self.mix != "none" else (1, 1)

    def loss(self, variables, batch, state, rng, progress, axis_name):
        del progress
        mix_rng, upright_rng, rotated_rng = jax.random.split(rng, 3)
        clips, labels = self._mixed(mix_rng, batch)
        done, stats = self.forward(variables, clips, upright_rng, axis_name)
        student, teacher = done["model"], done["bifpn"]
        terms = {
            "loss_ce": self.classify(student.logits, labels),
            "loss_ce_bifpn": self.classify(teacher.logits, labels),
        }
        students, teachers = [student], [teacher]
        weights = {"loss_kd": self.alpha, "loss_at": self.beta, "loss_sla": self.sla_lambda}
        if self.sla:
            variables = {**variables, "batch_stats": stats}
            rotated, stats = self.forward(variables, mixing.rotate(clips), rotated_rng, axis_name)
            for name, passes in (("joint", students), ("joint_bifpn", teachers)):
                joint = rotated[name]
                terms[f"loss_{name}"] = self.classify(joint, self._joint_labels(batch["label"]))
                source = rotated["model" if name == "joint" else "bifpn"]
                passes.append(source._replace(logits=self._aggregate(joint)))
            terms["loss_sla"] = sum(
                auxiliary.distil(own.logits, turned.logits, self.temperature)
                for own, turned in (students, teachers)
            )
        terms["loss_kd"] = auxiliary.distil(
            *(jnp.concatenate([x.logits for x in passes]) for passes in (students, teachers)),
            self.temperature,
        )
        terms["loss_at"] = self._attention(students, teachers)
        loss = sum(weights.get(name, 1.0) * value for name, value in terms.items())
        metrics = {
            "loss": loss,
            **terms,
            **self.metrics(student.logits, student.embedding, labels, axis_name),
            "top1_bifpn": auxiliary.top1(teacher.logits, labels),
        }
        return loss, (metrics, stats, state)

    def _mixed(self, rng, batch):
        """Clips (B, V, ...) and the labels of the merged batch, (B * V,) or (B * V, K)."""
        if self.mix == "none":
            return batch["clips"], self.labels(batch["label"])
        mix, field = _MIXES[self.mix]

        def of_view(key, clips):
            alpha = getattr(self, field)
            return mix(key, clips, batch["label"], self.model.num_classes, alpha)

        clips, labels = jax.vmap(of_view, (0, 1), 1)(
            jax.random.split(rng, self.views), batch["clips"]
        )
        return clips, labels.reshape(-1, labels.shape[-1])

    def _joint_labels(self, labels):
        """4 y + r for the rotated batch, whose order is video, rotation, view."""
        return jnp.repeat((4 * labels[:, None] + jnp.arange(4)).reshape(-1), self.views)

    def _aggregate(self, joint):
        """The mean over rotations r of the joint logits 4 k + r: (B * 4 * V, 4 K) -> (B * V, K)."""
        joint = joint.reshape(-1, 4, self.views, self.model.num_classes, 4)
        return jnp.einsum("brvkr->bvk", joint).reshape(-1, self.model.num_classes) / 4

    def _attention(self, students, teachers):
        """N_n sum_l AT, the mean over the clips of all passes."""
        per_clip = jnp.concatenate(
            [
                sum(
                    # Refined maps are rectified; a network with linear bottlenecks has others.
                    losses.attention_transfer(nn.relu(own), jax.lax.stop_gradient(refined))
                    for own, refined in zip(student.maps, teacher.maps, strict=True)
                )
                for student, teacher in zip(students, teachers, strict=True)
            ]
        )
        return per_clip.mean() * math.prod(students[0].maps[-1].shape[1:4])
