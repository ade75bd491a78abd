"""What a PyTorch implementation calls the layers of a model of this project.

Each family file gives one rule from the path of a layer in the Flax tree, "layer1_0/conv1", to the
name of the module in PyTorch, "layer1.0.conv1.0". Import, export and the check of a checkpoint's
keys all follow from it; see `pretrained`.
"""

import dataclasses
import re
from collections.abc import Callable

Replacement = str | Callable[[re.Match], str]


@dataclasses.dataclass(frozen=True)
class TorchNames:
    """Names of one PyTorch implementation.

    Attributes:
      source: the implementation, in a word or two.
      substitutions: (regular expression, replacement), applied by `re.sub` one after the other to
        the path of a layer; what slashes are left become dots.
      conv_classifier: whether the classifier `fc` is a 1x1x1 convolution there.
      hint: what to look at where a checkpoint does not fit.
    """

    source: str
    substitutions: tuple[tuple[str, Replacement], ...]
    conv_classifier: bool = False
    hint: str = ""

    def layer(self, path: str) -> str:
        """The PyTorch module that holds the arrays of the Flax layer at `path`."""
        for pattern, replacement in self.substitutions:
            path = re.sub(pattern, replacement, path)
        return path.replace("/", ".")
