"""Plain supervision: the baseline every other method is compared with."""

import dataclasses

import chex
import jax

from skd_jax import losses
from skd_jax.errors import UserError
from skd_jax.methods import base, diagnostics


@dataclasses.dataclass(frozen=True)
class Supervised(base.Method):
    """Cross-entropy, averaged over the views of a video.

    With two views it sees as many clips as a two-view method does, the fair comparison. Methods that
    only give the views other targets derive from it and say so in `objective`.

    Attributes:
      views: clips of each video in a batch, 1 or more.
      label_smoothing: e of the smoothed labels (Szegedy et al., CVPR 2016).
      views_together: whether all views pass through BatchNorm as one batch.
    """

    views: int = 1
    label_smoothing: float = 0.0
    views_together: bool = False

    def __post_init__(self):
        super().__post_init__()
        if self.views < 1:
            raise UserError(f"method.views must be at least 1, got {self.views}")

    @property
    def num_views(self) -> int:
        return self.views

    def objective(
        self,
        logits: chex.Array,
        batch: dict[str, chex.Array],
        state: base.PyTree,
        progress: chex.Array,
        axis_name: str | None,
    ) -> tuple[chex.Array, base.Metrics, base.PyTree]:
        """What is minimised, from the logits (B, V, K).

        Args:
          logits: of every view, in training mode.
          batch, state, progress, axis_name: as `loss` takes them.

        Returns:
          (scalar float32, its terms where there are several, new state).
        """
        del progress, axis_name
        return self.classify(logits, batch["label"]), {}, state

    def classify(self, logits: chex.Array, targets: chex.Array) -> chex.Array:
        """Mean cross-entropy of logits (B, V, K) against labels (B,) or probabilities (B, K)."""
        per_view = jax.vmap(losses.cross_entropy, in_axes=(1, None, None), out_axes=1)
        return per_view(logits, targets, self.label_smoothing).mean()

    def loss(self, variables, batch, state, rng, progress, axis_name):
        outputs, stats = base.classifier_views(
            self,
            variables,
            batch["clips"],
            together=self.views_together,
            rng=rng,
            axis_name=axis_name,
        )
        loss, terms, state = self.objective(outputs.logits, batch, state, progress, axis_name)
        top1 = diagnostics.accuracy(outputs.logits, batch["label"])
        metrics = {"loss": loss, **terms, "top1": top1}
        if self.views > 1:
            metrics |= diagnostics.view_metrics(outputs.logits, outputs.embedding, axis_name)
        return loss, (metrics, {"model": stats}, state)
