"""The classifier of a workdir: which weights it takes, and what evaluation says of them."""

import functools

import jax
import numpy as np
import optax
import pytest

from skd_jax import checkpoint, classifier, datasets, modes, settings, step, workdir
from tests import tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("classifier")


def make_workdir(folder, name, ema_decay):
    """A workdir whose one checkpoint has an average that is twice the raw weights."""
    config = tiny.config(folder, train__ema_decay=ema_decay)
    data = datasets.describe(datasets.ensure_prepared(config, lambda _: None))
    place = folder / name
    workdir.claim(place, config)
    workdir.write_json(place / workdir.DATA, data)
    method = settings.method(config, len(data["class_names"]))
    state = jax.device_get(
        step.create_state(
            method,
            optax.sgd(0.1),
            jax.random.key(0),
            (4, 16, 16, 3),
            step.StepSettings(total_steps=1, ema_decay=ema_decay),
        )
    )
    if ema_decay:
        doubled = jax.tree.map(functools.partial(np.multiply, 2), state.params)
        state = state.replace(ema=state.ema | {"params": doubled})
    checkpoints = checkpoint.Checkpoints(place / workdir.CHECKPOINTS)
    checkpoints.save(1, state)
    checkpoints.close()
    return place, state


def test_the_average_is_used_where_one_was_kept(folder):
    place, state = make_workdir(folder, "averaged", 0.5)
    trained = classifier.load(place)
    for got, factor in ((trained.variables, 2), (trained.raw_variables, 1)):
        assert {name for trees in got.values() for name in trees} == {"model"}
        jax.tree.map(
            lambda a, b, factor=factor: np.testing.assert_array_equal(a, factor * b),
            got["params"]["model"],
            dict(state.params["model"]),
        )
    results = modes.run_evaluate(place, "", lambda _: None)
    assert results["weights"] == "moving average"
    assert results["raw"].keys() == {"loss", "top1"}
    assert results["raw"]["loss"] != results["loss"]


def test_without_an_average_the_weights_are_the_raw_ones(folder):
    place, state = make_workdir(folder, "raw", 0.0)
    trained = classifier.load(place)
    assert trained.raw_variables is None
    jax.tree.map(
        np.testing.assert_array_equal,
        trained.variables["params"]["model"],
        dict(state.params["model"]),
    )
    # SKD-SRL's projector and predictor stay in the checkpoint.
    assert {"projector", "predictor"} <= state.params.keys()
    for trees in trained.variables.values():
        assert trees.keys() == {"model"}
    assert trained.selection == "last checkpoint (no validation split)"
    results = modes.run_evaluate(place, "", lambda _: None)
    assert results["weights"] == "raw" and "raw" not in results
