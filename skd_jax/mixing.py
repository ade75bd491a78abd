"""Mixed training clips: mixup and CutMix, on the device.

Every clip gets a partner, another clip of the batch, and a share of its own from Beta(alpha, alpha).
References draw one share for a whole batch; here each clip has its own, so that small batches are not
all mixed alike. All is a function of the key. The partners come from the batch that is given, a
replica's.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp


class Mixture(NamedTuple):
    """Who is mixed with whom.

    Attributes:
      share: (B,) float32 in [0, 1], what is kept of each example.
      partner: (B,) int32, a permutation: the example the rest is taken from.
    """

    share: chex.Array
    partner: chex.Array


def draw(rng: chex.PRNGKey, batch: int, alpha: float) -> Mixture:
    """Shares from Beta(alpha, alpha) and a random permutation of `batch` examples.

    Raises:
      ValueError: alpha is not positive.
    """
    if alpha <= 0:
        raise ValueError(f"alpha must be positive, got {alpha}")
    share_rng, partner_rng = jax.random.split(rng)
    share = jax.random.beta(share_rng, alpha, alpha, (batch,), jnp.float32)
    # With a small alpha a draw may underflow in both of the gammas that it is the ratio of.
    share = jnp.clip(jnp.nan_to_num(share, nan=0.5), 0.0, 1.0)
    return Mixture(share, jax.random.permutation(partner_rng, batch))


def interpolate(x: chex.Array, mixture: Mixture) -> chex.Array:
    """share * x + (1 - share) * x[partner], for any array (B, ...) of floats."""
    share = mixture.share.reshape(-1, *[1] * (x.ndim - 1)).astype(x.dtype)
    return share * x + (1 - share) * jnp.take(x, mixture.partner, axis=0)


def probabilities(labels: chex.Array, num_classes: int) -> chex.Array:
    """(B, K) float32 from class ids (B,); probabilities (B, K) stay as they are."""
    if labels.ndim == 1:
        return jax.nn.one_hot(labels, num_classes, dtype=jnp.float32)
    return labels.astype(jnp.float32)


def mixup(
    rng: chex.PRNGKey, clips: chex.Array, labels: chex.Array, num_classes: int, alpha: float
) -> tuple[chex.Array, chex.Array]:
    """Clips and labels interpolated with those of their partners.

    Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018.

    Args:
      rng: key.
      clips: (B, T, H, W, C) floats.
      labels: (B,) class ids, or (B, K) probabilities.
      num_classes: K.
      alpha: of the Beta distribution.

    Returns:
      (mixed clips, label probabilities (B, K) float32).
    """
    mixture = draw(rng, len(clips), alpha)
    return (
        interpolate(clips, mixture),
        interpolate(probabilities(labels, num_classes), mixture),
    )


def cutmix(
    rng: chex.PRNGKey, clips: chex.Array, labels: chex.Array, num_classes: int, alpha: float
) -> tuple[chex.Array, chex.Array]:
    """Clips with a tube of their partners in them: one box, in all frames alike.

    Yun et al., "CutMix: Regularization Strategy to Train Strong Classifiers with Localizable
    Features", ICCV 2019. The box has sides sqrt(1 - share) of the frame's, rounded down to an even
    number of pixels, and its centre anywhere in the frame; what lies outside is cut off, and the
    labels are mixed by the area that is left.

    Args, returns: as for `mixup`.
    """
    share_rng, box_rng = jax.random.split(rng)
    mixture = draw(share_rng, len(clips), alpha)
    inside = boxes(box_rng, mixture.share, *clips.shape[2:4])
    mixed = jnp.where(inside[:, None, :, :, None], jnp.take(clips, mixture.partner, axis=0), clips)
    mixture = mixture._replace(share=1.0 - inside.mean(axis=(1, 2), dtype=jnp.float32))
    return mixed, interpolate(probabilities(labels, num_classes), mixture)


def boxes(rng: chex.PRNGKey, share: chex.Array, height: int, width: int) -> chex.Array:
    """CutMix's boxes, (B, height, width) bool, for shares (B,) that stay outside them."""

    def along(key, size):
        half = jnp.floor(size * jnp.sqrt(1.0 - share)).astype(jnp.int32) // 2
        centre = jax.random.randint(key, share.shape, 0, size)
        at = jnp.arange(size)
        return (at >= (centre - half)[:, None]) & (at < (centre + half)[:, None])

    row_rng, column_rng = jax.random.split(rng)
    return along(row_rng, height)[:, :, None] & along(column_rng, width)[:, None, :]


def rotate(clips: chex.Array) -> chex.Array:
    """Each clip turned in its image plane by 0, 90, 180 and 270 degrees, counter-clockwise.

    Args:
      clips: (B, ..., T, H, W, C), H = W.

    Returns:
      (4 B, ..., T, H, W, C); 4 b + r is clip b after r quarter turns.

    Raises:
      ValueError: the frames are not square.
    """
    if clips.shape[-3] != clips.shape[-2]:
        raise ValueError(f"only square frames can be rotated, got clips of shape {clips.shape}")
    turned = jnp.stack([jnp.rot90(clips, r, axes=(-3, -2)) for r in range(4)], axis=1)
    return turned.reshape(-1, *clips.shape[1:])
