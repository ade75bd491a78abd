"""What holds of every method: what a step leaves as it was, and what is deployed in the end."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from skd_jax import augment, methods, step
from tests.fakes import (
    pixel_batch,
    quick_compilation,  # noqa: F401  a fixture
)
from tests.methods.staged import Staged

CLIP = (4, 8, 8, 3)
MODEL = Staged(dtype=jnp.bfloat16)
SETTINGS = step.StepSettings(total_steps=10, accumulate=2, ema_decay=0.9)
OPTIONS = {
    "skd_srl": {"past_teacher": 0.1},
    "bake": {"num_partners": 1},
    "crd": {"negatives": 8},
}


def create(name):
    given = {"teacher": Staged()} if methods.takes_teacher(name) else {}
    return methods.create(name, MODEL, num_videos=16, **given, **OPTIONS.get(name, {}))


@pytest.mark.parametrize("name", methods.names())
def test_a_step_keeps_the_structure_and_leaves_the_supervised_classifier(name):
    """In bfloat16, from two micro-batches, with an average of the weights; traced, not run."""
    final = create(name)
    tx = optax.sgd(0.1, momentum=0.9)
    for method in (*(stage.method for stage in final.earlier_stages), final):
        start = functools.partial(step.create_state, method, tx, jax.random.key(0), CLIP, SETTINGS)
        batch = pixel_batch(videos=4, views=method.num_views, frames=CLIP[0], canvas=CLIP[1])
        del batch["mask"]
        before = jax.eval_shape(start)
        after, metrics = jax.eval_shape(
            functools.partial(
                step.train_step,
                method=method,
                tx=tx,
                augmentation=augment.AugmentSettings(crop=CLIP[1]),
                settings=SETTINGS,
            ),
            before,
            batch,
        )
        assert jax.tree.structure(after) == jax.tree.structure(before)
        for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
            assert (old.shape, old.dtype) == (new.shape, new.dtype)
        assert {"loss", "grad_norm"} <= metrics.keys()
        assert {(x.shape, x.dtype) for x in metrics.values()} == {((), np.dtype("float32"))}

    supervised = methods.create("supervised", MODEL)
    clips = jnp.zeros((2, *CLIP))
    wanted = jax.eval_shape(supervised.init, jax.random.key(0), clips[:1])
    deployed = {
        collection: {"model": trees["model"]} for collection, trees in after.variables.items()
    }
    assert deployed == wanted
    # The same program, from the classifier alone: as many parameters, as fast.
    programs = [str(jax.make_jaxpr(m.logits)(deployed, clips)) for m in (final, supervised)]
    assert programs[0] == programs[1]


@pytest.mark.parametrize("name", methods.names())
def test_runs_of_one_seed_begin_with_the_same_classifier(name):
    final, clips = create(name), jnp.zeros((1, *CLIP))
    wanted = methods.create("supervised", MODEL).init(jax.random.key(3), clips)["params"]["model"]
    for method in (*(stage.method for stage in final.earlier_stages), final):
        found = method.init(jax.random.key(3), clips)["params"]["model"]
        jax.tree.map(np.testing.assert_array_equal, found, wanted)


# One of each kind always, the rest with -m slow.
RUN = ("skd_srl", "ps_kd", "bake", "crd", "srd")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in RUN else pytest.mark.slow) for n in methods.names()]
)
def test_two_steps_move_the_whole_classifier(name):
    """The same settings, run: finite, float32, and averaged weights between the first and the last."""
    method = create(name)
    tx = optax.sgd(0.1)
    start = step.create_state(method, tx, jax.random.key(0), CLIP, SETTINGS)
    batch = pixel_batch(videos=8, views=method.num_views, frames=CLIP[0], canvas=CLIP[1])
    del batch["mask"]
    advance = jax.jit(
        functools.partial(
            step.train_step,
            method=method,
            tx=tx,
            augmentation=augment.AugmentSettings(crop=CLIP[1]),
            settings=SETTINGS,
        )
    )
    end, metrics = advance(advance(start, batch)[0], batch)
    for path, leaf in jax.tree_util.tree_leaves_with_path((end, metrics)):
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            assert leaf.dtype == jnp.float32 and np.isfinite(leaf).all(), path
    first, last = (state.params["model"] for state in (start, end))
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), first, last)
    assert all(jax.tree.leaves(moved)), moved
    average = end.ema["params"]["model"]["fc"]["kernel"]
    for other in (first, last):
        assert np.any(average != other["fc"]["kernel"])
