"""Rematerialisation in the residual families and S3D: the same network, stages recomputed."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skd_jax.models import hara_resnet3d, mc3, r2plus1d, resnet3d, s3d
from tests.models import families

_SHALLOW = {"stage_sizes": (1, 1, 1, 1)}
_BLOCK = (64, 96, 128, 16, 32, 32)
SMALL = {
    "hara_resnet3d": (hara_resnet3d.MODELS["resnet3d_50"], _SHALLOW),
    "mc3": (mc3.MODELS["mc3_18"], _SHALLOW),
    "r2plus1d": (r2plus1d.MODELS["r2plus1d_18"], _SHALLOW),
    "resnet3d": (resnet3d.MODELS["r3d_18"], _SHALLOW),
    "s3d": (s3d.MODELS["s3d"], {"inception": ((_BLOCK,),) * 3, "dropout": 0.0}),
}
CLIPS = np.random.default_rng(1).standard_normal((4, 5, 17, 17, 3), dtype=np.float32)


def small(family, **options):
    entry, fixed = SMALL[family]
    return entry.build(num_classes=5, width=0.0625, **fixed, **options)


def recomputed(jaxpr):
    """Number of recomputed pieces, wherever they stand."""
    total = 0
    for equation in jaxpr.eqns:
        total += "remat" in equation.primitive.name
        for value in jax.tree.leaves(list(equation.params.values())):
            inner = getattr(value, "jaxpr", value)
            total += recomputed(inner) if hasattr(inner, "eqns") else 0
    return total


@pytest.mark.parametrize("family", SMALL)
def test_the_tree_is_the_same_and_all_four_stages_are_recomputed(family):
    kept, remat = small(family), small(family, remat=True)
    trees = [jax.eval_shape(m.init, jax.random.key(0), CLIPS) for m in (kept, remat)]
    assert trees[0] == trees[1]
    variables = jax.tree.map(jnp.zeros_like, trees[0])

    def forward(clips, model):
        return model.apply(variables, clips, train=True, mutable=["batch_stats"])

    pieces = [
        recomputed(jax.make_jaxpr(functools.partial(forward, model=m))(CLIPS).jaxpr)
        for m in (kept, remat)
    ]
    assert pieces == [0, 4]


@pytest.mark.parametrize("family", ["resnet3d", "s3d"])
def test_gradients_outputs_and_statistics_are_the_same(family):
    variables = families.draw(small(family), CLIPS)
    want, got = (
        jax.jit(functools.partial(families.gradient, small(family, remat=remat)))(variables, CLIPS)
        for remat in (False, True)
    )
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for w, g in zip(jax.tree.leaves(want), jax.tree.leaves(got), strict=True):
        np.testing.assert_allclose(g, w, rtol=1e-3, atol=1e-4 * float(np.abs(w).max()))
