"""What a model costs: parameters, and multiply-accumulates from the jaxpr of an abstract pass."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jax.extend.core import ClosedJaxpr, Jaxpr

from skd_jax.models.conv3d import Triple
from skd_jax.models.layers import Conv3D


class Cost(NamedTuple):
    """Cost of a model.

    Attributes:
      parameters: how many trainable numbers it has.
      macs: multiply-accumulates of a forward pass of one clip.
    """

    parameters: int
    macs: int


def cost(model: nn.Module, clip: Triple) -> Cost:
    """Counts without computing: nothing is initialised, all arrays are shapes.

    Multiply-accumulates are those of convolutions and matrix products, biases, BatchNorm and
    pooling left out. Convolutions count as they are written, padding included, not as they are
    lowered: the number is the same on every backend and is the one that papers quote as GFLOPs.

    Args:
      model: a classifier, as `models.create` gives it.
      clip: (T, H, W).
    """
    clips = jax.ShapeDtypeStruct((1, *clip, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), clips)
    with nn.intercept_methods(_as_written):
        jaxpr = jax.make_jaxpr(model.apply)(variables, clips)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    return Cost(parameters, multiply_accumulates(jaxpr.jaxpr))


def multiply_accumulates(jaxpr: Jaxpr) -> int:
    """Multiply-accumulates of a jaxpr's convolutions and dot products, nested ones included.

    A scan counts as often as it runs, of a cond the dearest branch.

    Raises:
      ValueError: a loop whose length is not known.
    """
    return sum(_of_equation(equation) for equation in jaxpr.eqns)


def _of_equation(equation: Any) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval
        features = kernel.shape[params["dimension_numbers"].rhs_spec[0]]
        # The kernel's other dimensions: its taps and the channels of one group.
        return equation.outvars[0].aval.size * kernel.size // features
    if name == "dot_general":
        left = equation.invars[0].aval
        (contracted, _), _ = params["dimension_numbers"]
        terms = 1
        for axis in contracted:
            terms *= left.shape[axis]
        return equation.outvars[0].aval.size * terms
    inner = [
        multiply_accumulates(getattr(part, "jaxpr", part))
        for part in jax.tree.leaves(params, is_leaf=_is_jaxpr)
        if _is_jaxpr(part)
    ]
    if name == "while" and any(inner):
        raise ValueError("the multiply-accumulates of a while loop depend on its data")
    if name == "cond":
        return max(inner)
    return sum(inner) * (params["length"] if name == "scan" else 1)


def _is_jaxpr(part: Any) -> bool:
    return isinstance(part, Jaxpr | ClosedJaxpr)


def _as_written(call, args, kwargs, context):
    """In place of a Conv3D: XLA's convolution of the whole kernel, whatever would be lowered."""
    module = context.module
    written = isinstance(module, Conv3D) and context.method_name == "__call__"
    if not written or module.is_initializing():
        return call(*args, **kwargs)
    (x,) = args
    return lax.conv_general_dilated(
        x,
        module.get_variable("params", "kernel").astype(x.dtype),
        module.strides,
        [(p, p) for p in module.padding],
        dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
        feature_group_count=module.groups,
    )
