"""Multiply-accumulates and parameters without computing."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from skd_jax import models
from skd_jax.models.conv3d import conv3d
from skd_jax.models.cost import cost, multiply_accumulates

# (model, clip) -> 10^9 multiply-accumulates and half a unit of the last digit of the figure:
# torchvision 0.29's metadata ("GFLOPS" there); 3D-ResNets-PyTorch, Efficient-3DCNNs and pytorchvideo
# as counted by hooks.
GMACS = {
    ("r3d_18", (16, 112, 112)): (40.697, 0.0005),
    ("mc3_18", (16, 112, 112)): (43.343, 0.0005),
    ("r2plus1d_18", (16, 112, 112)): (40.519, 0.0005),
    ("s3d", (16, 224, 224)): (17.979, 0.0005),
    ("resnet3d_10", (16, 112, 112)): (5.65, 0.005),
    ("resnet3d_18", (16, 112, 112)): (8.31, 0.005),
    ("resnet3d_34", (16, 112, 112)): (12.70, 0.005),
    ("resnet3d_50", (16, 112, 112)): (10.07, 0.005),
    ("resnet3d_101", (16, 112, 112)): (13.89, 0.005),
    ("resnet2p1d_18", (16, 112, 112)): (8.48, 0.005),
    ("x3d_xs", (4, 160, 160)): (0.605, 0.0005),
    ("x3d_s", (13, 160, 160)): (1.963, 0.0005),
    ("x3d_m", (16, 224, 224)): (4.732, 0.0005),
    ("shufflenetv2_x1", (16, 112, 112)): (0.187, 0.0005),
    ("mobilenetv2_x1", (16, 112, 112)): (0.519, 0.0005),
}


@pytest.mark.parametrize("name,clip", GMACS)
def test_published_figures(name, clip):
    assert models.describe(name).clip == clip
    # Efficient-3DCNNs is quoted for Kinetics-600, the others for Kinetics-400.
    classes = 600 if name.startswith(("shufflenetv2", "mobilenetv2")) else 400
    total = cost(models.create(name, classes), clip)
    figure, half = GMACS[name, clip]
    assert abs(total.macs / 1e9 - figure) <= half


def test_published_figure_at_another_clip():
    """X3D on the clips of the 3D-ResNets: 1.26."""
    total = cost(models.create("x3d_m", 400), (16, 112, 112))
    assert abs(total.macs / 1e9 - 1.26) <= 0.005


def test_by_hand():
    """One frame of 2 x 2: taps that see padding alone count too, whatever the lowering."""
    total = cost(models.create("r3d_10", 6, width=0.25), (1, 2, 2))
    # One position after the stem: kernels without the BatchNorms' and the classifier's vectors.
    norms = 2 * (16 + 2 * 16 + 3 * (32 + 64 + 128))
    assert total == (904_758, 904_758 - norms - 6)


def macs(function, *shapes):
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return multiply_accumulates(jax.make_jaxpr(function)(*arrays).jaxpr)


def test_groups_divide_a_convolution():
    def grouped(x, kernel):
        return conv3d(x, kernel, padding=(1, 1, 1), groups=4, lowering="plain")

    assert macs(grouped, (2, 3, 5, 7, 8), (3, 3, 3, 2, 12)) == 2 * 3 * 5 * 7 * 12 * 27 * 2


def test_products_with_batch_dimensions():
    assert (
        macs(lambda a, b: jnp.einsum("bij,bjk->bik", a, b), (5, 2, 3), (5, 3, 4)) == 5 * 2 * 3 * 4
    )


def test_nested_programs():
    def square(x):
        return x @ x

    once = 4**3
    assert macs(jax.jit(lambda x: jax.checkpoint(square)(x)), (4, 4)) == once
    assert macs(lambda x: lax.scan(lambda c, _: (square(c), None), x, length=7)[0], (4, 4)) == (
        7 * once
    )
    assert macs(lambda x: lax.cond(x[0, 0] > 0, square, lambda x: x, x), (4, 4)) == once
    with pytest.raises(ValueError, match="while loop"):
        macs(lambda x: lax.while_loop(lambda c: c[0, 0] > 0, square, x), (4, 4))
