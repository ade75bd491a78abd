"""MixSKD: what a network makes of a mixture and the mixture of what it makes teach each other."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from skd_jax import losses, mixing
from skd_jax.errors import UserError
from skd_jax.methods import auxiliary, base
from skd_jax.models.branches import Branches
from skd_jax.models.heads import torch_linear_init
from skd_jax.models.layers import global_average_pool


class Ensemble(nn.Module):
    """Classifier of several stages' features: their concatenation, linear to one's width, linear.

    The reference convolves the concatenated maps with 1x1 and pools then, with nothing in between:
    the same numbers.
    """

    num_classes: int

    @nn.compact
    def __call__(self, features: Sequence[jax.Array], train: bool = False) -> jax.Array:
        del train
        x = jnp.concatenate(features, axis=-1)
        width = features[-1].shape[-1]
        x = nn.Dense(width, use_bias=False, kernel_init=torch_linear_init, name="join")(x)
        return nn.Dense(self.num_classes, kernel_init=torch_linear_init, name="fc")(x)


class Discriminators(nn.Module):
    """For each stage's features (B, C) two logits (B, 2): interpolated, of a mixed clip."""

    hidden: int = 128

    @nn.compact
    def __call__(self, features: Sequence[jax.Array], train: bool = False) -> list[jax.Array]:
        del train
        results = []
        for i, x in enumerate(features, start=1):
            x = nn.Dense(self.hidden, kernel_init=torch_linear_init, name=f"stage{i}_fc1")(x)
            x = nn.Dense(2, kernel_init=torch_linear_init, name=f"stage{i}_fc2")(nn.relu(x))
            results.append(x)
        return results


@dataclasses.dataclass(frozen=True)
class MixSKD(auxiliary.AuxiliaryMethod):
    """Yang et al., "MixSKD: Self-Knowledge Distillation from Mixup for Image Recognition", ECCV 2022.

    As in the authors' code (winycg/Self-KD-Lib). Every clip x has a partner x' in the replica's batch
    and a share m from Beta(mixup_alpha, mixup_alpha), and v = m x + (1 - m) x' goes through the network
    with it. Branches on the inner stages end, as the network does, in logits q_i and last maps f_i,
    i = 1..n. With q_i^ = m q_i(x) + (1 - m) q_i(x'), f_i^ alike, y^ the mixed labels and e the
    ensemble's logits of all stages' features:

        L = sum_i [CE(q_i(x), y) + CE(q_i(v), y^)] + CE(e(f^), y^) + CE(e(f(v)), y^)
            + lambda_kd { sum_{i<n} [KL(sg q_i(v) || q_i^) + KL(sg q_i^ || q_i(v))]
                          + KL(sg e(f(v)) || q_n^) + KL(sg e(f^) || q_n(v)) }
            + lambda_feature sum_i mean (f_i^ - f_i(v))^2
            + lambda_adversarial sum_i BCE(d_i)

    KL at T with T^2. The soft labels that teach are stopped; the features meet half-way, with no stop.
    The discriminators d_i tell pooled f_i^ from f_i(v), and, as in the code, the network minimises their
    loss too: it keeps the features apart that the squared difference draws together.

    What differs from the code: its CIFAR script computes CE(q_i(v), y^) and the ensemble's
    cross-entropies but leaves them out of the sum (its ImageNet script does not; without them the
    ensemble that teaches is not trained), here they are in; its discriminators stand in a plain list, which
    its optimiser does not see, so that they stay as they began, here they are trained; each clip has its own share; the
    branches have one basic block for each of the stages they stand in for, not as many as the
    network; in place of T, H, W maps of one image size they are 3-D.

    Attributes:
      temperature: T.
      mixup_alpha: of the Beta distribution.
      lambda_kd, lambda_feature, lambda_adversarial: weights.
      block: what the branches are made of, a name in `models.branches.BLOCKS`.
    """

    temperature: float = 3.0
    mixup_alpha: float = 0.4
    lambda_kd: float = 1.0
    lambda_feature: float = 1.0
    lambda_adversarial: float = 1.0
    block: str = "residual"

    def __post_init__(self):
        super().__post_init__()
        if self.mixup_alpha <= 0:
            raise UserError(f"method.mixup_alpha must be positive, got {self.mixup_alpha}")
        auxiliary.check_block(self.block)

    def auxiliaries(self, bn_axis):
        classes = self.model.num_classes
        branches = Branches(classes, block=self.block, dtype=self.model.dtype, axis_name=bn_axis)
        return {
            "branches": auxiliary.Auxiliary(branches, lambda done: done["model"].maps),
            "ensemble": auxiliary.Auxiliary(Ensemble(classes), _pooled),
            "discriminators": auxiliary.Auxiliary(Discriminators(), _pooled),
        }

    @property
    def least_batch(self):
        return 2, 2

    def loss(self, variables, batch, state, rng, progress, axis_name):
        del progress
        mix_rng, model_rng = jax.random.split(rng)
        clips = batch["clips"]
        mixture = mixing.draw(mix_rng, len(clips), self.mixup_alpha)
        both = jnp.concatenate([clips, mixing.interpolate(clips, mixture)])
        done, stats = self.forward(variables, both, model_rng, axis_name)

        # Views are merged into the batch: a view's partner is the same view of the partner's.
        views = jnp.arange(self.views)
        mixture = mixing.Mixture(
            jnp.repeat(mixture.share, self.views),
            (mixture.partner[:, None] * self.views + views).reshape(-1),
        )
        labels = self.labels(batch["label"])
        mixed_labels = mixing.interpolate(
            mixing.probabilities(labels, self.model.num_classes), mixture
        )

        def sides(x):
            """The mixture of what came of the clips, and what came of the mixture; float32."""
            plain, mixed = jnp.split(x.astype(jnp.float32), 2)
            return mixing.interpolate(plain, mixture), mixed

        def applied(name, inputs):
            module = self.auxiliaries(None)[name].module
            return module.apply(base.network(variables, name), inputs)

        outputs = [*done["branches"], done["model"]]
        logits = [sides(x.logits) for x in outputs]
        maps = [sides(x.maps[-1]) for x in outputs]
        pooled = [[global_average_pool(x) for x in side] for side in zip(*maps, strict=True)]
        ensemble = [applied("ensemble", side) for side in pooled]
        terms = {
            "loss_ce": sum(self.classify(x.logits[: len(labels)], labels) for x in outputs),
            "loss_ce_mixed": sum(self.classify(mixed, mixed_labels) for _, mixed in logits)
            + sum(self.classify(x, mixed_labels) for x in ensemble),
            "loss_kd": sum(
                self._distil(student, teacher)
                for interpolated, mixed in logits[:-1]
                for student, teacher in ((interpolated, mixed), (mixed, interpolated))
            )
            + sum(
                self._distil(student, teacher)
                for student, teacher in zip(logits[-1], reversed(ensemble), strict=True)
            ),
            "loss_feature": sum(jnp.mean(jnp.square(a - b)) for a, b in maps),
            "loss_adversarial": sum(
                losses.told_apart(*stage).mean()
                for stage in zip(*(applied("discriminators", side) for side in pooled), strict=True)
            ),
        }
        loss = (
            terms["loss_ce"]
            + terms["loss_ce_mixed"]
            + self.lambda_kd * terms["loss_kd"]
            + self.lambda_feature * terms["loss_feature"]
            + self.lambda_adversarial * terms["loss_adversarial"]
        )
        classifier = done["model"]
        plain = slice(len(labels))
        metrics = {
            "loss": loss,
            **terms,
            **self.metrics(
                classifier.logits[plain], classifier.embedding[plain], labels, axis_name
            ),
        }
        return loss, (metrics, stats, state)

    def _distil(self, student, teacher):
        return auxiliary.distil(student, teacher, self.temperature)


def _pooled(done):
    """Features (..., C) of the last map of every branch and of the network."""
    outputs = [*done["branches"], done["model"]]
    return [jnp.mean(x.maps[-1], axis=(-4, -3, -2), dtype=jnp.float32) for x in outputs]
