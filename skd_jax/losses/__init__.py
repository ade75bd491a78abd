"""Losses as pure functions of arrays, float32, free of Flax.

Every function takes any float dtype and computes in float32, matrix products included
(`skd_jax.precision`). Most losses return one value for each example, shape (B,), and the caller
averages; those that compare examples with each other (PKT, RKD, SP, MMD, BAKE) or with a memory (CRD)
return a scalar and say whether they see the replica's batch or all replicas'. A gradient is stopped
only where the loss is defined by it.

One file for each kind: `labels` (predictions), `vectors` (embeddings), `maps` and `features` (maps of
one example in two networks), `relations` (examples of a batch, in two networks), `batches` (a batch as
a whole), `contrastive` (against a memory), `rotations` (turned clips), `adversarial` (discriminators),
`sparse` (sparse codes), `resizing` (maps on another grid), `targets` (distributions to be distilled).
"""

from skd_jax.losses.adversarial import told_apart
from skd_jax.losses.batches import (
    batch_ensemble,
    ensemble_distillation,
    maximum_mean_discrepancy,
)
from skd_jax.losses.contrastive import (
    contrastive_representation,
    contrastive_scale,
    noise_contrastive,
)
from skd_jax.losses.features import (
    class_similarity,
    hint,
    normalised_hint,
    pool_to_common,
)
from skd_jax.losses.labels import cross_entropy, soft_label_distillation
from skd_jax.losses.maps import attention_map, attention_transfer, layer_attention, masked_hint
from skd_jax.losses.relations import (
    probabilistic_transfer,
    relational_angles,
    relational_distances,
    similarity_preserving,
)
from skd_jax.losses.resizing import resize_mean
from skd_jax.losses.rotations import best_ranked, turned_similarity
from skd_jax.losses.sparse import (
    image_label_loss,
    image_labels,
    pixel_label_loss,
    pixel_labels,
    reconstruction_error,
)
from skd_jax.losses.targets import probability_distillation, progressive_targets, virtual_teacher
from skd_jax.losses.vectors import NORM_EPSILON, cosine, normalise, siamese_similarity

__all__ = [
    "NORM_EPSILON",
    "attention_map",
    "attention_transfer",
    "batch_ensemble",
    "best_ranked",
    "class_similarity",
    "contrastive_representation",
    "contrastive_scale",
    "cosine",
    "cross_entropy",
    "ensemble_distillation",
    "hint",
    "image_label_loss",
    "image_labels",
    "layer_attention",
    "masked_hint",
    "maximum_mean_discrepancy",
    "noise_contrastive",
    "normalise",
    "normalised_hint",
    "pixel_label_loss",
    "pixel_labels",
    "pool_to_common",
    "probabilistic_transfer",
    "probability_distillation",
    "progressive_targets",
    "reconstruction_error",
    "relational_angles",
    "relational_distances",
    "resize_mean",
    "siamese_similarity",
    "similarity_preserving",
    "soft_label_distillation",
    "told_apart",
    "turned_similarity",
    "virtual_teacher",
]
