"""Label smoothing: supervision whose labels leave a share to all classes."""

import dataclasses

from skd_jax.methods.supervised import Supervised


@dataclasses.dataclass(frozen=True)
class LabelSmoothing(Supervised):
    """Cross-entropy against (1 - e) y + e / K.

    Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", CVPR 2016, whose e is
    0.1. It is `Supervised` with that default, under the name by which the field compares it.

    Attributes:
      label_smoothing: e in [0, 1).
    """

    label_smoothing: float = 0.1
