"""What every model returns."""

from typing import NamedTuple

import jax


class Outputs(NamedTuple):
    """Outputs of a video classifier for clips of shape (B, T, H, W, 3).

    Attributes:
      logits: class scores before the softmax, float32, shape (B, num_classes).
      embedding: globally pooled features, the input of the classifier before dropout, float32,
        shape (B, D).
      maps: output of each stage, first to last, in the model's compute dtype, shapes
        (B, T_i, H_i, W_i, C_i).
    """

    logits: jax.Array
    embedding: jax.Array
    maps: tuple[jax.Array, ...]
