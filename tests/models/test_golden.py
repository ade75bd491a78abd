"""torchvision's networks against the outputs of PyTorch itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skd_jax import models
from skd_jax.models import pretrained
from tests.models import golden

# Its maps for a clip of 16 x 112 x 112, and where the first BatchNorm stands.
CASES = {"r3d_18": ("stem", "bn"), "r2plus1d_18": ("stem", "conv", "bn")}
MAPS = [(2, 16, 56, 56, 64), (2, 8, 28, 28, 128), (2, 4, 14, 14, 256), (2, 2, 7, 7, 512)]


@pytest.fixture(scope="module", params=CASES)
def case(request, shared):
    return request.param, *golden.load(shared, request.param)


def test_same_tree_as_torchvision(case):
    name, _, _, weights, _ = case
    model = models.create(name, 400)
    want = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 2, 8, 8, 3)))
    assert jax.tree.map(np.shape, weights) == jax.tree.map(np.shape, dict(want))


def test_exported_as_torchvision_names_and_orders_it(case):
    name, reference, state_dict, weights, _ = case
    exported = pretrained.to_torch(name, weights)
    assert list(exported) == list(reference["keys"])
    for key, array in state_dict.items():
        assert exported[key].dtype == array.dtype
        np.testing.assert_array_equal(exported[key], array)


def test_logits_as_torchvision(case):
    name, reference, _, weights, clip = case
    model = models.create(name, 400)
    outputs = jax.jit(model.apply, static_argnames="train")(weights, clip, train=False)
    want = reference["logits_eval"]
    np.testing.assert_allclose(outputs.logits, want, rtol=0, atol=1e-4 * want.std())
    assert [m.shape for m in outputs.maps] == MAPS


def test_training_logits_and_statistics_as_torchvision(case):
    name, reference, _, weights, clip = case
    model = models.create(name, 400)
    apply = jax.jit(model.apply, static_argnames=("train", "mutable"))
    outputs, updates = apply(weights, clip, train=True, mutable=("batch_stats",))
    want = reference["logits_train"]
    np.testing.assert_allclose(outputs.logits, want, rtol=0, atol=1e-4 * want.std())
    before, after = weights["batch_stats"], updates["batch_stats"]
    for part in CASES[name]:
        before, after = before[part], after[part]
    np.testing.assert_allclose(after["mean"], reference["stem_running_mean"], rtol=1e-4, atol=1e-6)
    # PyTorch runs the unbiased variance along, Flax the biased one: n / (n - 1) times smaller.
    n = 2 * 16 * 56 * 56
    batch_var = (np.asarray(after["var"]) - 0.9 * before["var"]) / 0.1
    unbiased = 0.9 * before["var"] + 0.1 * batch_var * n / (n - 1)
    np.testing.assert_allclose(unbiased, reference["stem_running_var"], rtol=1e-4)
