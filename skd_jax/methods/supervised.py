"""Plain supervision: the baseline every other method is compared with."""

import dataclasses

import jax

from skd_jax import losses
from skd_jax.errors import UserError
from skd_jax.methods import base, diagnostics


@dataclasses.dataclass(frozen=True)
class Supervised(base.Method):
    """Cross-entropy, averaged over the views of a video.

    With two views it sees as many clips as a two-view method does, the fair comparison.

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

    def loss(self, variables, batch, state, rng, progress, axis_name):
        del progress
        outputs, stats = base.classifier_views(
            self,
            variables,
            batch["clips"],
            together=self.views_together,
            rng=rng,
            axis_name=axis_name,
        )
        per_view = jax.vmap(losses.cross_entropy, in_axes=(1, None, None), out_axes=1)(
            outputs.logits, batch["label"], self.label_smoothing
        )
        loss = per_view.mean()
        metrics = {"loss": loss, "top1": diagnostics.accuracy(outputs.logits, batch["label"])}
        if self.views > 1:
            metrics |= diagnostics.view_metrics(outputs.logits, outputs.embedding, axis_name)
        return loss, (metrics, {"model": stats}, state)
