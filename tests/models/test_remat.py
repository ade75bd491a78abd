"""Rematerialisation in every family: the same network, stages recomputed."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skd_jax import models
from tests.models import families

_SHALLOW = {"stage_sizes": (1, 1, 1, 1)}
_SHALLOW_MOBILE = {"stage_sizes": (2, 2, 2)}
_BLOCK = (64, 96, 128, 16, 32, 32)
# family -> (model, what makes it shallow, pieces that are recomputed: its stages, in both pathways).
SMALL = {
    "csn": ("ircsn_50", _SHALLOW, 4),
    "hara_resnet2p1d": ("resnet2p1d_50", _SHALLOW, 4),
    "hara_resnet3d": ("resnet3d_50", _SHALLOW, 4),
    "i3d": ("i3d_r50", _SHALLOW, 4),
    "mc3": ("mc3_18", _SHALLOW, 4),
    "mobilenetv2": ("mobilenetv2_x0_2", {"stages": (((1, 16, 1, 1), (6, 24, 1, 2)),) * 4}, 4),
    "r2plus1d": ("r2plus1d_18", _SHALLOW, 4),
    "resnet3d": ("r3d_18", _SHALLOW, 4),
    "s3d": ("s3d", {"inception": ((_BLOCK,),) * 3, "dropout": 0.0}, 4),
    "shufflenet2p1d": ("shufflenet2p1d", _SHALLOW_MOBILE, 3),
    "shufflenetv2": ("shufflenetv2_x0_25", _SHALLOW_MOBILE, 3),
    "slowfast": ("slowfast_r50", _SHALLOW, 8),
    "x3d": ("x3d_s", _SHALLOW, 4),
}
CLIPS = np.random.default_rng(1).standard_normal((4, 5, 17, 17, 3), dtype=np.float32)


def small(family, **options):
    name, fixed, _ = SMALL[family]
    return models.describe(name).build(num_classes=5, width=0.0625, **fixed, **options)


def inside(equation):
    """The programs that an equation calls."""
    for value in jax.tree.leaves(list(equation.params.values())):
        inner = getattr(value, "jaxpr", value)
        if hasattr(inner, "eqns"):
            yield inner


def is_recomputed(equation):
    return "remat" in equation.primitive.name or "checkpoint" in equation.primitive.name


def recomputed(jaxpr):
    """Number of recomputed pieces, wherever they stand."""
    return sum(
        is_recomputed(equation) + sum(map(recomputed, inside(equation))) for equation in jaxpr.eqns
    )


def operations(jaxpr):
    """All operations in turn with the shapes they work on, calls and recomputation looked through."""
    for equation in jaxpr.eqns:
        programs = [*inside(equation)]
        if programs:
            for program in programs:
                yield from operations(program)
        else:
            shapes = [str(v.aval) for v in (*equation.invars, *equation.outvars)]
            yield equation.primitive.name, str(equation.params), *shapes


def test_no_family_is_left_out():
    assert set(SMALL) == {family.__name__.rpartition(".")[2] for family in models.FAMILIES}
    for family in models.FAMILIES:
        assert SMALL[family.__name__.rpartition(".")[2]][0] in family.MODELS


@pytest.mark.parametrize("family", SMALL)
def test_the_same_operations_in_the_same_tree_with_every_stage_recomputed(family):
    kept, remat = small(family), small(family, remat=True)
    trees = [jax.eval_shape(m.init, jax.random.key(0), CLIPS) for m in (kept, remat)]
    assert trees[0] == trees[1]

    def loss(params, stats, model):
        outputs, updates = model.apply(
            {"params": params, "batch_stats": stats}, CLIPS, train=True, mutable=["batch_stats"]
        )
        return jnp.sum(outputs.logits), updates

    def program(function, model):
        arguments = trees[0]["params"], trees[0]["batch_stats"]
        return jax.make_jaxpr(functools.partial(function, model=model))(*arguments).jaxpr

    plain, pieces = program(loss, kept), program(loss, remat)
    assert [recomputed(plain), recomputed(pieces)] == [0, SMALL[family][2]]
    assert [*operations(pieces)] == [*operations(plain)]
    # The backward pass runs each piece once more, and nothing is left over from the first run.
    gradient = program(jax.grad(loss, has_aux=True), remat)
    assert recomputed(gradient) == SMALL[family][2]


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
