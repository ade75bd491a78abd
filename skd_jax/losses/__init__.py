"""Losses as pure functions of arrays, float32, free of Flax.

Every function takes any float dtype and computes in float32. Most return one value for each example,
shape (B,), and the caller averages; those that compare examples with each other return a scalar and
say whose batch they see. A gradient is stopped only where the loss is defined by it.

One file for each kind: `labels` (predictions), `vectors` (embeddings), `targets` (distributions to be
distilled), `batches` (examples compared with each other).
"""

from skd_jax.losses.batches import batch_ensemble, maximum_mean_discrepancy
from skd_jax.losses.labels import cross_entropy, soft_label_distillation
from skd_jax.losses.targets import probability_distillation, progressive_targets, virtual_teacher
from skd_jax.losses.vectors import NORM_EPSILON, cosine, normalise, siamese_similarity

__all__ = [
    "NORM_EPSILON",
    "batch_ensemble",
    "cosine",
    "cross_entropy",
    "maximum_mean_discrepancy",
    "normalise",
    "probability_distillation",
    "progressive_targets",
    "siamese_similarity",
    "soft_label_distillation",
    "virtual_teacher",
]
