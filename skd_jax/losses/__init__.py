"""Losses as pure functions of arrays, float32, free of Flax.

Every function takes any float dtype and computes in float32. Most return one value for each example,
shape (B,), and the caller averages; those that compare examples with each other return a scalar and
say whose batch they see. A gradient is stopped only where the loss is defined by it.

One file for each kind: `labels` (predictions), `sparse` (sparse codes), `vectors` (embeddings).
"""

from skd_jax.losses.labels import cross_entropy, soft_label_distillation
from skd_jax.losses.sparse import (
    image_label_loss,
    image_labels,
    pixel_label_loss,
    pixel_labels,
    reconstruction_error,
    resize_mean,
)
from skd_jax.losses.vectors import NORM_EPSILON, cosine, normalise, siamese_similarity

__all__ = [
    "NORM_EPSILON",
    "cosine",
    "cross_entropy",
    "image_label_loss",
    "image_labels",
    "normalise",
    "pixel_label_loss",
    "pixel_labels",
    "reconstruction_error",
    "resize_mean",
    "siamese_similarity",
    "soft_label_distillation",
]
