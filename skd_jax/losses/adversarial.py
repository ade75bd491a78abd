"""Adversarial losses: what a discriminator makes of two kinds of features."""

import chex
import jax.numpy as jnp
import optax


def told_apart(interpolated: chex.Array, mixed: chex.Array) -> chex.Array:
    """MixSKD's discriminator: binary cross-entropy of telling interpolated features from mixed ones.

    Yang et al., "MixSKD: Self-Knowledge Distillation from Mixup for Image Recognition", ECCV 2022, as
    in winycg/Self-KD-Lib: two logits each, of "interpolated" and of "of a mixed clip"; the targets
    are (1, 0) for the former and (0, 1) for the latter. Mean over both logits and both kinds. No
    gradient is stopped here: network and discriminator both minimise it (in the authors' code the network
    alone, see `methods.mixskd`).

    Args:
      interpolated: (B, 2) floats, logits for the mixture of two clips' features.
      mixed: (B, 2) floats, logits for the features of the two clips' mixture.

    Returns:
      (B,) float32, in nats.

    Raises:
      ValueError: if the shapes are others.
    """
    if interpolated.ndim != 2 or interpolated.shape[1] != 2 or interpolated.shape != mixed.shape:
        raise ValueError(
            f"two logits (B, 2) of each kind expected, got {interpolated.shape} and {mixed.shape}"
        )
    logits = jnp.concatenate([interpolated, mixed], axis=1).astype(jnp.float32)
    target = jnp.array([1.0, 0.0, 0.0, 1.0])
    each = optax.losses.sigmoid_binary_cross_entropy(logits, target)
    return each.mean(axis=1)
