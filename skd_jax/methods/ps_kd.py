"""PS-KD: each video's label is softened by what was predicted for it an epoch ago."""

import dataclasses

import jax

from skd_jax import losses, rows
from skd_jax.errors import UserError
from skd_jax.methods.supervised import Supervised


@dataclasses.dataclass(frozen=True)
class PSKD(Supervised):
    """Progressive refinement of targets by a memory of the last epoch's predictions.

    Kim et al., "Self-Knowledge Distillation with Progressive Refinement of Targets", ICCV 2021:

        t = (1 - a) y + a p_previous,   L = CE(q, t),   then p_previous <- softmax(q)

    with a = alpha (epoch + 1) / E in epoch 0, ..., E - 1. The prediction is that of the training
    pass, averaged over the views where there are several, and no gradient passes through it. A
    video comes once in an epoch: it is read before it is written, and so what is read is the
    prediction of the epoch before; in the first epoch it is the label.

    a grows with every step instead of every epoch, a = alpha x the share of training done: the
    original's value at the end of each epoch, and defined for any length of training.

    The memory is a table of num_videos x K float32, `rows.Rows`, divided over the replicas; it is
    part of the state and so of every checkpoint. For UCF101 that is 4 MB, for Kinetics-400 0.4 GB.

    Attributes:
      alpha: share of the previous prediction at the end of training, in [0, 1].
    """

    alpha: float = 0.8

    def __post_init__(self):
        super().__post_init__()
        if not 0.0 <= self.alpha <= 1.0:
            raise UserError(f"method.alpha must be in [0, 1], got {self.alpha}")

    def init_state(self, variables):
        del variables
        if self.num_videos < 1:
            raise UserError(
                "ps_kd remembers every training video; give num_videos, how many there are"
            )
        return {"predictions": rows.empty(self.num_videos, self.model.num_classes)}

    def objective(self, logits, batch, state, progress, axis_name):
        memory, index = state["predictions"], batch["index"]
        previous = rows.read(memory, index, axis_name)
        targets = losses.progressive_targets(batch["label"], previous, self.alpha * progress)
        loss = self.classify(logits, targets)
        now = jax.lax.stop_gradient(jax.nn.softmax(logits).mean(axis=1))
        return loss, {}, {"predictions": rows.write(memory, index, now, axis_name)}
