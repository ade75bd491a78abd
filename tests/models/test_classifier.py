"""What all families share: remat, dropout, precision, synchronised BatchNorm, wrong clips."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from skd_jax.models import csn, i3d, mobilenetv2, shufflenet2p1d, shufflenetv2, slowfast, x3d
from skd_jax.models.blocks import ConvNorm
from skd_jax.models.classifier import VideoClassifier
from skd_jax.models.layers import global_average_pool
from tests.models import families

# One small model of each family, with its number of recomputed pieces: stages, pathways apart.
SMALL = {
    "csn": (csn.CSN, {"stage_sizes": (1, 1)}, 2),
    "i3d": (i3d.InflatedResNet, {"stage_sizes": (2, 1)}, 2),
    "mobilenetv2": (mobilenetv2.MobileNetV2, {"stages": (((1, 4, 1, 1), (6, 6, 1, 2)),)}, 1),
    "shufflenet2p1d": (shufflenet2p1d.ShuffleNet2Plus1D, {"stage_sizes": (1, 1)}, 2),
    "shufflenetv2": (shufflenetv2.ShuffleNetV2, {"channels": (4, 4), "stage_sizes": (2,)}, 1),
    "slowfast": (slowfast.SlowFast, {"stage_sizes": (1,)}, 2),
    "x3d": (x3d.X3D, {"stage_sizes": (2, 1)}, 2),
}
CLIPS = np.random.default_rng(1).standard_normal((4, 2, 4, 4, 3), "f4")


class Tiny(VideoClassifier):
    """The least network that passes through everything shared."""

    @nn.compact
    def __call__(self, clips, train=False):
        x, conv, norm = self.prepare(clips, train)
        blocks = [
            functools.partial(
                ConvNorm, 4, (1, 3, 3), (1, 1, 1), nn.relu, conv, norm, name=f"block{i}"
            )
            for i in range(2)
        ]
        x = self.stage(blocks, x)
        return self.classify(global_average_pool(x), [x], train)


def recomputed(jaxpr):
    """Number of recomputed pieces, wherever they stand."""
    total = 0
    for eqn in jaxpr.eqns:
        total += "remat" in eqn.primitive.name
        for value in jax.tree.leaves(list(eqn.params.values())):
            inner = getattr(value, "jaxpr", value)
            total += recomputed(inner) if hasattr(inner, "eqns") else 0
    return total


@pytest.mark.parametrize("family", SMALL)
def test_remat_recomputes_each_stage_of_the_same_network(family):
    build, options, pieces = SMALL[family]
    options = {"num_classes": 2, "width": 0.125, **options}
    kept, remat = build(**options), build(**options, remat=True)
    trees = [jax.eval_shape(m.init, jax.random.key(0), CLIPS) for m in (kept, remat)]
    assert trees[0] == trees[1]
    variables = jax.tree.map(jnp.zeros_like, trees[0])
    counts = [
        recomputed(
            jax.make_jaxpr(
                lambda clips, m=m: m.apply(variables, clips, train=True, mutable=["batch_stats"])
            )(CLIPS).jaxpr
        )
        for m in (kept, remat)
    ]
    assert counts == [0, pieces]


def test_remat_changes_neither_results_nor_statistics():
    variables = families.draw(Tiny(num_classes=5), CLIPS)
    want, got = (
        jax.jit(functools.partial(families.gradient, Tiny(num_classes=5, remat=remat)))(
            variables, CLIPS
        )
        for remat in (False, True)
    )
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), want, got)


def test_initial_variables_do_not_depend_on_remat():
    want, got = (
        jax.jit(Tiny(num_classes=5, remat=remat).init)(jax.random.key(0), CLIPS)
        for remat in (False, True)
    )
    jax.tree.map(np.testing.assert_array_equal, want, got)


def test_dropout_acts_on_the_classifier_input_in_training_alone():
    model = Tiny(num_classes=5, dropout=0.5)
    variables = families.draw(model, CLIPS)

    @functools.partial(jax.jit, static_argnames="train")
    def outputs(train, seed):
        rngs = {"dropout": jax.random.key(seed)}
        return model.apply(variables, CLIPS, train=train, rngs=rngs, mutable=["batch_stats"])[0]

    np.testing.assert_array_equal(outputs(False, 0).logits, outputs(False, 1).logits)
    assert not np.array_equal(outputs(True, 0).logits, outputs(True, 1).logits)
    np.testing.assert_array_equal(outputs(True, 0).embedding, outputs(True, 1).embedding)


def test_synchronised_batch_norm_equals_one_large_batch():
    variables = families.draw(Tiny(num_classes=5), CLIPS)

    def train(axis_name):
        model = Tiny(num_classes=5, axis_name=axis_name)
        return lambda clips: model.apply(variables, clips, train=True, mutable=["batch_stats"])

    want, want_updates = jax.jit(train(None))(CLIPS)
    halves = CLIPS.reshape(2, 2, *CLIPS.shape[1:])
    got, got_updates = jax.jit(jax.vmap(train("batch"), axis_name="batch"))(halves)
    np.testing.assert_allclose(got.logits.reshape(4, 5), want.logits, rtol=1e-3, atol=1e-3)
    jax.tree.map(
        lambda g, w: np.testing.assert_allclose(g[0], w, rtol=1e-3, atol=1e-4),
        got_updates,
        want_updates,
    )


@pytest.mark.parametrize("family", SMALL)
@pytest.mark.parametrize("shape", [(4, 16, 16, 3), (2, 4, 16, 16, 1)])
def test_wrong_clips_are_named(family, shape):
    build, options, _ = SMALL[family]
    model = build(num_classes=2, **options)
    with pytest.raises(ValueError, match=re.escape(f"(B, T, H, W, 3) expected; got shape {shape}")):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(shape))
