"""A classifier behind clips that were normalised for another one."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from skd_jax.models.outputs import Outputs

Colour = tuple[float, float, float]


class Renormalised(nn.Module):
    """Applies `network` to clips * scale + shift; its variables are the network's own.

    Attributes:
      network: a classifier.
      scale, shift: per colour channel.
    """

    network: nn.Module
    scale: Colour
    shift: Colour

    def setup(self):
        nn.share_scope(self, self.network)

    def __call__(self, clips: jax.Array, train: bool = False) -> Outputs:
        clips = clips.astype(jnp.float32)
        scale, shift = (np.array(x, np.float32) for x in (self.scale, self.shift))
        return self.network(clips * scale + shift, train=train)


def renormalised(
    network: nn.Module,
    given: tuple[Sequence[float], Sequence[float]],
    wanted: tuple[Sequence[float], Sequence[float]],
) -> nn.Module:
    """`network` for clips normalised otherwise than it was trained with.

    Args:
      network: a classifier.
      given: (mean, std) per channel by which the clips are normalised.
      wanted: (mean, std) by which those of the network were.

    Returns:
      The network itself where the two are the same.
    """
    (mean, std), (own_mean, own_std) = (np.array(pair, np.float64) for pair in (given, wanted))
    if np.array_equal(mean, own_mean) and np.array_equal(std, own_std):
        return network
    # (pixel - own_mean) / own_std, with pixel = clip * std + mean
    return Renormalised(
        network, tuple((std / own_std).tolist()), tuple(((mean - own_mean) / own_std).tolist())
    )


def unwrapped(network: nn.Module) -> nn.Module:
    """The classifier itself, of a `renormalised` one."""
    return network.network if isinstance(network, Renormalised) else network
