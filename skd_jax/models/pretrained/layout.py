"""The arrays of a model, each with its place in the Flax tree and its key in PyTorch.

Flax                                      PyTorch
kernel (kt, kh, kw, I / groups, O)        weight (O, I / groups, kt, kh, kw)
kernel (I, O) of the classifier           weight (O, I), or (O, I, 1, 1, 1) where it is a convolution
bias                                      bias
scale, bias of a BatchNorm                weight, bias
mean, var in "batch_stats"                running_mean, running_var
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util

from skd_jax.models.conv3d import Triple
from skd_jax.models.torch_names import TorchNames

# In the order of a PyTorch module's state dict.
_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Slot:
    """One array.

    Attributes:
      path: in the variables, from the collection to the leaf.
      shape: there.
      key: in the state dict.
      torch_shape: there.
    """

    path: tuple[str, ...]
    shape: Shape
    key: str
    torch_shape: Shape

    @property
    def in_head(self) -> bool:
        """Whether this belongs to the classifier."""
        return self.path[1:-1] == ("fc",)

    def to_torch(self, array: np.ndarray) -> np.ndarray:
        """From the layout of Flax to that of PyTorch."""
        return np.ascontiguousarray(array.transpose(_to_torch(array.ndim))).reshape(
            self.torch_shape
        )

    def from_torch(self, array: np.ndarray) -> np.ndarray:
        """The inverse of `to_torch`."""
        order = _to_torch(len(self.shape))
        array = array.reshape([self.shape[axis] for axis in order])
        return np.ascontiguousarray(array.transpose(np.argsort(order)))


def _to_torch(ndim: int) -> tuple[int, ...]:
    """Inputs and outputs, which come last in Flax, come first in PyTorch, outputs before inputs."""
    return {1: (0,), 2: (1, 0), 5: (4, 3, 0, 1, 2)}[ndim]


def slots(model: nn.Module, clip: Triple, names: TorchNames) -> list[Slot]:
    """All arrays of a model, layer after layer as it makes them; nothing is computed.

    Args:
      model: of the registry.
      clip: any (T, H, W) that the model takes.
      names: of its layers in PyTorch.
    """
    tree = {}

    def init():
        variables = model.init(jax.random.key(0), jnp.zeros((1, *clip, 3)))
        # Noted here, since what `eval_shape` returns has its keys sorted.
        for collection in ("params", "batch_stats"):
            for path, leaf in traverse_util.flatten_dict(variables[collection]).items():
                layer = tree.setdefault(path[:-1], {})
                layer[path[-1]] = ((collection, *path), leaf.shape)

    jax.eval_shape(init)
    found = []
    for path, leaves in tree.items():
        layer = names.layer("/".join(path))
        for leaf, torch_leaf in _LEAVES.items():
            if leaf not in leaves:
                continue
            place, shape = leaves[leaf]
            torch_shape = tuple(shape[axis] for axis in _to_torch(len(shape)))
            if names.conv_classifier and path == ("fc",) and leaf == "kernel":
                torch_shape += (1, 1, 1)
            found.append(Slot(place, shape, f"{layer}.{torch_leaf}", torch_shape))
    return found
