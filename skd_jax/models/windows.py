"""Heads that look through a window of fixed size: fully convolutional inference.

torchvision's S3D and the networks of pytorchvideo (`ResNetBasicHead`, X3D's `ProjectedPool`) end in
AvgPool3d with the kernel of their usual clip and stride 1, the classifier on each of the windows,
and a mean over the windows. At the usual clip the kernel is the last map and there is one window.
On larger maps (pytorchvideo tests at 256 pixels what it trained at 224: 8x8 positions, windows of
7x7, four of them) the positions at the border lie in fewer windows and weigh less than in a mean
over the map. On maps smaller than the kernel, which PyTorch refuses, the window is the map.

outputs = self.classify(average_windows(x, self.window), maps, train)  # at each window
return mean_over_windows(outputs)
"""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn

from skd_jax.models.conv3d import Triple
from skd_jax.models.outputs import Outputs


def average_windows(x: jax.Array, window: Triple | None) -> jax.Array:
    """Means over windows of stride 1, no padding, as PyTorch's AvgPool3d.

    Args:
      x: any float dtype, shape (B, T, H, W, C).
      window: size over (T, H, W), cut to the map's; None takes the whole map.

    Returns:
      float32, shape (B, T - window[0] + 1, H - window[1] + 1, W - window[2] + 1, C).
    """
    sizes = x.shape[1:4]
    window = sizes if window is None else window
    covered = [k >= n for k, n in zip(window, sizes, strict=True)]
    whole = tuple(axis for axis, cover in enumerate(covered, start=1) if cover)
    x = jnp.mean(x, whole, dtype=jnp.float32, keepdims=True)
    if all(covered):
        return x
    rest = tuple(1 if cover else k for k, cover in zip(window, covered, strict=True))
    return nn.avg_pool(x, rest)


def mean_over_windows(outputs: Outputs, probabilities: bool = False) -> Outputs:
    """What a classifier says of a clip, from what it says of each window.

    Args:
      outputs: logits (B, T', H', W', K), embedding (B, T', H', W', D) and maps.
      probabilities: whether the windows' softmax is averaged, not their logits.

    Returns:
      Logits (B, K), embedding (B, D), its mean over the windows, and the same maps. With
      `probabilities` the softmax of the logits is the mean of the windows' softmax, and the
      logarithm of their sum of exponentials is the mean of the windows': one window's logits stay
      what they are.
    """
    over = (1, 2, 3)
    logits = outputs.logits
    if probabilities:
        # Only what is added to all classes alike is averaged outside the logarithm.
        level = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
        mean = jax.nn.logsumexp(logits - level, axis=over) - math.log(math.prod(logits.shape[1:4]))
        logits = mean + jnp.mean(level, over)
    else:
        logits = jnp.mean(logits, over)
    return Outputs(logits, jnp.mean(outputs.embedding, over), outputs.maps)
