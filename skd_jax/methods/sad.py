"""SAD: each stage imitates where the next one looks."""

import dataclasses
import itertools
import math

import jax

from skd_jax import losses
from skd_jax.errors import UserError
from skd_jax.methods import auxiliary


@dataclasses.dataclass(frozen=True)
class SAD(auxiliary.AuxiliaryMethod):
    """Hou et al., "Learning Lightweight Lane Detection CNNs by Self Attention Distillation", ICCV 2019.

    Between the maps F_l of neighbouring stages, l = 1..n-1, with N the positions of F_{n-1}:

        L = CE(q, y) + lambda_sad N^2 sum_l LA(F_l, sg F_{l+1})

    LA is `losses.layer_attention`, the mean squared difference of two distributions over positions,
    so about 1 / N_l^2; N^2 keeps lambda_sad from depending on the size of the clips. The deeper map
    is the target and stopped. winycg/Self-KD-Lib has 1000 on maps of 32 x 32 to 4 x 4 positions:
    1000 LA = 0.244 * 64^2 LA, the default here. The paper adds the term late in training; the library
    from the start, and so does this. No network is added.

    Attributes:
      lambda_sad: weight of the attention maps.
    """

    lambda_sad: float = 0.244

    def loss(self, variables, batch, state, rng, progress, axis_name):
        del progress
        done, stats = self.forward(variables, batch["clips"], rng, axis_name)
        labels = self.labels(batch["label"])
        outputs = done["model"]
        if len(outputs.maps) < 2:
            raise UserError(
                f"sad needs a model with the maps of two stages or more, this one has {len(outputs.maps)}"
            )
        positions = math.prod(outputs.maps[-2].shape[1:4])
        loss_ce = self.classify(outputs.logits, labels)
        loss_sad = positions**2 * sum(
            losses.layer_attention(here, jax.lax.stop_gradient(deeper)).mean()
            for here, deeper in itertools.pairwise(outputs.maps)
        )
        loss = loss_ce + self.lambda_sad * loss_sad
        metrics = {
            "loss": loss,
            "loss_ce": loss_ce,
            "loss_sad": loss_sad,
            **self.metrics(outputs.logits, outputs.embedding, labels, axis_name),
        }
        return loss, (metrics, stats, state)
