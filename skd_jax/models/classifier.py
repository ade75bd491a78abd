"""What the families have in common: options, the layers they build, and the classifier on top."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from skd_jax.models.conv3d import Triple
from skd_jax.models.layers import BatchNorm, Conv3D
from skd_jax.models.outputs import Outputs


def linear_classifier(num_classes: int) -> nn.Dense:
    """The layer `fc`: float32 embeddings to logits, from N(0, 0.01^2) as torchvision starts it."""
    return nn.Dense(
        num_classes, kernel_init=nn.initializers.normal(0.01), dtype=jnp.float32, name="fc"
    )


class VideoClassifier(nn.Module):
    """Base of a family, which defines `__call__(clips, train=False) -> Outputs`.

    Collections: "params" (float32) and "batch_stats" (float32). `train=True` normalises with the
    statistics of the batch and needs `mutable=["batch_stats"]`, and the rng "dropout" where
    `dropout` > 0.

    Attributes:
      num_classes: length of the logits.
      width: multiplies all channels inside the network.
      dtype: compute dtype, e.g. "bfloat16"; parameters, statistics, embedding and logits stay
        float32.
      axis_name: mapped axis over which BatchNorm averages its training statistics; None for none.
      dropout: share of the embedding dropped before the classifier in training.
      remat: whether the backward pass recomputes the activations within each stage instead of
        keeping them; parameters and results are the same.
      freeze_batch_norm: whether BatchNorm normalises with its running statistics in training too,
        and leaves them as they are.
    """

    num_classes: int
    width: float = 1.0
    dtype: Any = jnp.float32
    axis_name: str | None = None
    dropout: float = 0.0
    remat: bool = False
    freeze_batch_norm: bool = False

    def prepare(self, clips: jax.Array, train: bool):
        """Checks the clips and makes the layers that a network is built of.

        Args:
          clips: float, shape (B, T, H, W, 3).
          train: whether BatchNorm is in training mode.

        Returns:
          The clips in the compute dtype; `conv(features, kernel_size, strides, **options)`, which
          makes a Conv3D padded by half its kernel; `norm(**options)`, which makes a BatchNorm.

        Raises:
          ValueError: clips of another rank or number of channels.
        """
        if clips.ndim != 5 or clips.shape[-1] != 3:
            raise ValueError(f"clips of shape (B, T, H, W, 3) expected; got shape {clips.shape}")
        dtype = jnp.dtype(self.dtype)

        def conv(
            features: int, kernel_size: Triple, strides: Triple = (1, 1, 1), **options
        ) -> Conv3D:
            padding = tuple(k // 2 for k in kernel_size)
            return Conv3D(features, kernel_size, strides, padding, dtype=dtype, **options)

        def norm(**options) -> BatchNorm:
            return BatchNorm(
                use_running_average=self.freeze_batch_norm or not train,
                dtype=dtype,
                axis_name=self.axis_name,
                **options,
            )

        return clips.astype(dtype), conv, norm

    def stage(self, blocks: Iterable[Callable[[], nn.Module]], x: jax.Array) -> jax.Array:
        """Applies the blocks in turn; the backward pass recomputes them where `remat` asks for it.

        Args:
          blocks: each makes one module, a child of this one whether it is recomputed or not.
          x: what goes into the first block.
        """

        def run(module, x):
            del module  # Flax lifts functions of a module; the children find their parent alone.
            for make in blocks:
                x = make()(x)
            return x

        return nn.remat(run)(self, x) if self.remat else run(self, x)

    def classify(self, embedding: jax.Array, maps: Sequence[jax.Array], train: bool) -> Outputs:
        """Dropout and the linear classifier `fc` on float32 embeddings (B, D)."""
        x = nn.Dropout(self.dropout, deterministic=not train)(embedding)
        return Outputs(linear_classifier(self.num_classes)(x), embedding, tuple(maps))
