"""Losses as pure functions of arrays, float32, free of Flax.

Every function takes any float dtype and computes in float32. Most return one value for each example,
shape (B,), and the caller averages; those that compare examples with each other return a scalar and
say whose batch they see. A gradient is stopped only where the loss is defined by it.

One file for each kind: `labels` (predictions), `maps` (feature maps), `vectors` (embeddings).
"""

from skd_jax.losses.labels import cross_entropy, soft_label_distillation
from skd_jax.losses.maps import attention_map, attention_transfer, layer_attention, masked_hint
from skd_jax.losses.vectors import NORM_EPSILON, cosine, normalise, siamese_similarity

__all__ = [
    "NORM_EPSILON",
    "attention_map",
    "attention_transfer",
    "cosine",
    "cross_entropy",
    "layer_attention",
    "masked_hint",
    "normalise",
    "siamese_similarity",
    "soft_label_distillation",
]
