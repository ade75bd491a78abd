"""What a family file says about each of its models."""

import dataclasses
import functools

from skd_jax.models.conv3d import Triple
from skd_jax.models.torch_names import TorchNames


@dataclasses.dataclass(frozen=True)
class Entry:
    """One model of the registry.

    Attributes:
      build: the Flax module's class with what the name fixes bound by keyword; it takes
        `num_classes` and the family's options.
      clip: (T, H, W) of the clip at which the model's multiply-accumulates are usually quoted.
      source: paper and reference code in a few words.
      torch: names in the PyTorch implementation whose checkpoints fit; None if there is none.
    """

    build: functools.partial
    clip: Triple
    source: str
    torch: TorchNames | None = None
