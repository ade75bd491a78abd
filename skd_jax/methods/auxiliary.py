"""What methods share whose auxiliary networks read the classifier's stage maps."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from skd_jax import losses
from skd_jax.errors import UserError
from skd_jax.methods import base, diagnostics
from skd_jax.models.branches import BLOCKS
from skd_jax.names import look_up

PyTree = Any
# Outputs of the networks run so far, by name; "model" is the classifier's.
Done = dict[str, Any]


class Auxiliary(NamedTuple):
    """A network beside the classifier: trained with it, dropped at deployment.

    Attributes:
      module: called as `module(inputs, train=...)`.
      reads: its inputs, taken from the outputs of the networks before it.
    """

    module: nn.Module
    reads: Callable[[Done], PyTree]


@dataclasses.dataclass(frozen=True)
class AuxiliaryMethod(base.Method):
    """Base of methods with auxiliary networks; a subclass gives `auxiliaries` and `loss`.

    Attributes:
      views: clips of each video in a batch, 1 or more; each is a further example.
      views_together: whether all views pass through BatchNorm as one batch.
      label_smoothing: of the cross-entropies.
    """

    views: int = 1
    views_together: bool = False
    label_smoothing: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        if self.views < 1:
            raise UserError(f"method.views must be at least 1, got {self.views}")
        if hasattr(self, "width"):
            base.positive(self, "width")

    @property
    def num_views(self) -> int:
        return self.views

    def auxiliaries(self, bn_axis: str | None) -> dict[str, Auxiliary]:
        """The networks beside the classifier in the order they run, by name.

        Args:
          bn_axis: mapped axis over which their BatchNorm averages, or None.
        """
        del bn_axis
        return {}

    def init(self, rng, clips):
        trees = {"model": self.model.init({"params": rng}, clips, train=False)}

        def outputs(module, variables, inputs):
            # Only shapes are needed: no forward pass is compiled for them.
            shapes = jax.eval_shape(lambda: module.apply(variables, inputs, train=False))
            return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

        done = {"model": outputs(self.model, trees["model"], clips)}
        for i, (name, (module, reads)) in enumerate(self.auxiliaries(None).items()):
            key = jax.random.fold_in(rng, i)
            trees[name] = module.init({"params": key}, reads(done), train=False)
            done[name] = outputs(module, trees[name], reads(done))
        return base.nest(trees)

    def forward(
        self,
        variables: PyTree,
        clips: chex.Array,
        rng: chex.PRNGKey,
        axis_name: str | None,
    ) -> tuple[Done, PyTree]:
        """Training-mode outputs of all networks, the views merged into the batch.

        Args:
          variables: all networks'.
          clips: (B, V, T, H, W, 3).
          rng: dropout key.
          axis_name: the replicas' axis, or None.

        Returns:
          (outputs by network, every leaf (B * V, ...); new batch_stats by network).
        """
        outputs, model_stats = base.classifier_views(
            self,
            variables,
            clips,
            together=self.views_together,
            rng=rng,
            axis_name=axis_name,
            maps=True,
        )
        done, stats = {"model": outputs}, {"model": model_stats}
        bn_axis = axis_name if self.sync_batch_norm else None
        for name, (module, reads) in self.auxiliaries(bn_axis).items():
            done[name], stats[name] = base.apply_views(
                module, base.network(variables, name), reads(done), together=self.views_together
            )
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), done), stats

    def labels(self, labels: chex.Array) -> chex.Array:
        """Those of the merged batch, (B * V,), from those of the videos (B,)."""
        return jnp.repeat(labels, self.views)

    def classify(self, logits: chex.Array, labels: chex.Array) -> chex.Array:
        """Mean cross-entropy."""
        return losses.cross_entropy(logits, labels, self.label_smoothing).mean()

    def metrics(
        self, logits: chex.Array, embedding: chex.Array, labels: chex.Array, axis_name: str | None
    ) -> base.Metrics:
        """`top1`, and with two views or more their agreement.

        Args:
          logits: the classifier's, (B * V, K).
          embedding: its, (B * V, D).
          labels: (B * V,) integers, or (B * V, K) probabilities of which the highest counts.
          axis_name: the replicas' axis, or None.
        """
        metrics = {"top1": top1(logits, labels)}
        if self.views > 1:
            logits, embedding = (
                x.reshape(-1, self.views, x.shape[-1]) for x in (logits, embedding)
            )
            metrics |= diagnostics.view_metrics(logits, embedding, axis_name)
        return metrics


def top1(logits: chex.Array, labels: chex.Array) -> chex.Array:
    """Share of right predictions from (B, K); labels (B,), or (B, K) of which the highest counts."""
    if labels.ndim > 1:
        labels = jnp.argmax(labels, axis=-1)
    return diagnostics.accuracy(logits[:, None], labels)


def distil(student: chex.Array, teacher: chex.Array, temperature: float) -> chex.Array:
    """Mean T^2 KL(softmax(teacher / T) || softmax(student / T)), the teacher's labels constants."""
    return losses.soft_label_distillation(
        student, jax.lax.stop_gradient(teacher), temperature, scale_by_t2=True
    ).mean()


def check_block(name: str) -> None:
    """Raises a UserError if branches cannot be made of it."""
    look_up("method.block", name, BLOCKS)
