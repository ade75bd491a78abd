"""BAKE: soft labels mixed among the examples of a batch that resemble each other."""

import dataclasses

from skd_jax import losses
from skd_jax.errors import UserError
from skd_jax.methods import base, diagnostics


@dataclasses.dataclass(frozen=True)
class BAKE(base.Method):
    """Batch knowledge ensembling.

    Ge et al., "Self-distillation with Batch Knowledge Ensembling Improves ImageNet Classification",
    2021 (code yxgeee/BAKE, small_scale):

        W = softmax over j != i of cos(f_i, f_j),   P = softmax(q / T)
        Q = (1 - omega) (I - omega W)^-1 P
        L = CE(q, y) + lambda_kd T^2 KL(sg Q || softmax(q / T))

    A batch holds every video and `num_partners` others of its class, so that there is someone to
    agree with; all of them are classified and distilled, and all pass through the network as one
    batch. W runs over all clips of all replicas; the original sees one device's batch. Whoever
    wants the same number of clips in a step divides the batch size by 1 + num_partners, as the code
    does.

    Attributes:
      num_partners: M, further videos of the class for each video.
      omega: w in [0, 1), share of the others.
      temperature: T.
      lambda_kd: weight of the divergence.
      views_together: all clips pass through BatchNorm as one batch.
      label_smoothing: of the cross-entropy.
    """

    num_partners: int = 3
    omega: float = 0.5
    temperature: float = 4.0
    lambda_kd: float = 1.0
    views_together: bool = True
    label_smoothing: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        if self.num_partners < 0:
            raise UserError(f"method.num_partners must be 0 or more, got {self.num_partners}")
        if not 0.0 <= self.omega < 1.0:
            raise UserError(f"method.omega must be in [0, 1), got {self.omega}")

    @property
    def num_views(self) -> int:
        return 1 + self.num_partners

    @property
    def partners(self) -> int:
        return self.num_partners

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
        logits = outputs.logits.reshape(-1, outputs.logits.shape[-1])
        embedding = outputs.embedding.reshape(len(logits), -1)
        labels = batch["label"].repeat(self.num_views)
        loss_ce = losses.cross_entropy(logits, labels, self.label_smoothing).mean()
        loss_kd = losses.ensemble_distillation(
            embedding, logits, self.temperature, self.omega, axis_name
        )
        loss = loss_ce + self.lambda_kd * loss_kd
        std, rank = diagnostics.spread_and_rank(outputs.embedding, axis_name)
        metrics = {
            "loss": loss,
            "loss_ce": loss_ce,
            "loss_kd": loss_kd,
            "top1": diagnostics.accuracy(outputs.logits, batch["label"]),
            "embedding_std": std,
            "embedding_rank": rank,
        }
        return loss, (metrics, {"model": stats}, state)
