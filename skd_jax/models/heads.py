"""Small trainable heads on top of an embedding.

Projector and predictor follow SimSiam (Chen and He, "Exploring Simple Siamese Representation
Learning", CVPR 2021; facebookresearch/simsiam).
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from skd_jax.models.layers import BatchNorm

# PyTorch's default for a linear layer: uniform within 1 / sqrt(inputs).
torch_linear_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class Projector(nn.Module):
    """Three-layer MLP (B, D) -> (B, features): [Linear-BN-ReLU] x 2, Linear, BN (not affine).

    SimSiam's last linear layer carries a frozen bias. BatchNorm subtracts it again, so it is left
    out: 2 D^2 + 4 D + D * features parameters, which is SimSiam's trainable count (D = 512, 2048
    features: 1,574,912) and `features` fewer than its total (1,576,960).

    Attributes:
      features: width of the output.
      hidden: width of the two hidden layers; None takes that of the input, as SimSiam does.
      dtype: compute dtype; parameters, statistics and output are float32.
      axis_name: mapped axis over which BatchNorm averages its training statistics; None for none.
    """

    features: int = 2048
    hidden: int | None = None
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        _check(x)
        hidden = x.shape[-1] if self.hidden is None else self.hidden
        for layer in (1, 2):
            x = _linear(self, hidden, f"fc{layer}", use_bias=False)(x)
            x = nn.relu(_norm(self, f"bn{layer}", train)(x))
        x = _linear(self, self.features, "fc3", use_bias=False)(x)
        x = _norm(self, "bn3", train, use_scale=False, use_bias=False)(x)
        return x.astype(jnp.float32)


class Predictor(nn.Module):
    """Two-layer bottleneck MLP (B, D) -> (B, D): Linear-BN-ReLU, Linear with bias.

    2 D * hidden + 2 hidden + D parameters: 2,100,224 at D = 2048, hidden = 512.

    Attributes:
      hidden: width of the bottleneck; None takes a quarter of the input, SimSiam's ratio.
      dtype: compute dtype; parameters, statistics and output are float32.
      axis_name: mapped axis over which BatchNorm averages its training statistics; None for none.
    """

    hidden: int | None = None
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        _check(x)
        features = x.shape[-1]
        hidden = max(1, features // 4) if self.hidden is None else self.hidden
        x = _linear(self, hidden, "fc1", use_bias=False)(x)
        x = nn.relu(_norm(self, "bn1", train)(x))
        # As PyTorch: from zero, an example whose hidden units are all off would predict the zero
        # vector, and the cosine's gradient there is finite but huge.
        bound = hidden**-0.5

        def bias_init(key, shape, dtype):
            return jax.random.uniform(key, shape, dtype, -bound, bound)

        x = _linear(self, features, "fc2", use_bias=True, bias_init=bias_init)(x)
        return x.astype(jnp.float32)


class LinearHead(nn.Module):
    """A linear layer with bias on embeddings (B, D) -> (B, features), float32: D features + features.

    Attributes:
      features: width of the output.
    """

    features: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        del train
        _check(x)
        return nn.Dense(self.features, kernel_init=torch_linear_init, name="fc")(x)


def _check(x: jax.Array) -> None:
    if x.ndim != 2:
        raise ValueError(f"a head takes embeddings of shape (B, D); got shape {x.shape}")


def _linear(head: nn.Module, features: int, name: str, use_bias: bool, **options) -> nn.Dense:
    return nn.Dense(
        features,
        use_bias=use_bias,
        dtype=jnp.dtype(head.dtype),
        kernel_init=torch_linear_init,
        name=name,
        **options,
    )


def _norm(head: nn.Module, name: str, train: bool, **options) -> BatchNorm:
    return BatchNorm(
        use_running_average=not train,
        dtype=jnp.dtype(head.dtype),
        axis_name=head.axis_name,
        name=name,
        **options,
    )
