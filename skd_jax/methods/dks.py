"""DKS: classifiers at several depths exchange their predictions, each with every other."""

import dataclasses
import itertools

from skd_jax.errors import UserError
from skd_jax.methods import auxiliary
from skd_jax.models.branches import Branches


@dataclasses.dataclass(frozen=True)
class DKS(auxiliary.AuxiliaryMethod):
    """Sun et al., "Deeply-Supervised Knowledge Synergy", CVPR 2019.

    With q_0 the classifier's logits and q_1..q_m those of the branches on its inner stages:

        L = sum_i CE(q_i, y) + lambda_kd sum_{i != j} T^2 KL(sg softmax(q_j/T) || softmax(q_i/T))

    over all ordered pairs. What teaches is stopped: of each pair both directions are there, each
    moving the one that learns. T 4 with T^2, weight 1 and branches from the second stage on are
    those of winycg/Self-KD-Lib.

    Attributes:
      temperature: T.
      lambda_kd: weight of what the classifiers teach each other.
      first_branch: the first stage with a branch, from 1.
      block: what the branches are made of, a name in `models.branches.BLOCKS`.
    """

    temperature: float = 4.0
    lambda_kd: float = 1.0
    first_branch: int = 2
    block: str = "residual"

    def __post_init__(self):
        super().__post_init__()
        if self.first_branch < 1:
            raise UserError(f"method.first_branch must be at least 1, got {self.first_branch}")
        auxiliary.check_block(self.block)

    def auxiliaries(self, bn_axis):
        branches = Branches(
            self.model.num_classes,
            first=self.first_branch,
            block=self.block,
            dtype=self.model.dtype,
            axis_name=bn_axis,
        )
        return {"branches": auxiliary.Auxiliary(branches, lambda done: done["model"].maps)}

    def loss(self, variables, batch, state, rng, progress, axis_name):
        del progress
        done, stats = self.forward(variables, batch["clips"], rng, axis_name)
        labels = self.labels(batch["label"])
        deepest, branches = done["model"], done["branches"]
        logits = [deepest.logits, *(b.logits for b in branches)]
        terms = {
            "loss_ce": self.classify(deepest.logits, labels),
            "loss_ce_branches": sum(self.classify(q, labels) for q in logits[1:]),
            "loss_kd": sum(
                auxiliary.distil(student, teacher, self.temperature)
                for student, teacher in itertools.permutations(logits, 2)
            ),
        }
        loss = terms["loss_ce"] + terms["loss_ce_branches"] + self.lambda_kd * terms["loss_kd"]
        metrics = {
            "loss": loss,
            **terms,
            **self.metrics(deepest.logits, deepest.embedding, labels, axis_name),
        }
        return loss, (metrics, stats, state)
