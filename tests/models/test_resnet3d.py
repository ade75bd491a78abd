"""R3D against PyTorch's torchvision model, its contract, and its errors."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from skd_jax import models


def from_torchvision(state_dict):
    """torchvision's r3d_18 state dict as variables of this project's model."""
    variables = {"params": {}, "batch_stats": {}}
    norm = {
        "weight": ("params", "scale"),
        "bias": ("params", "bias"),
        "running_mean": ("batch_stats", "mean"),
        "running_var": ("batch_stats", "var"),
    }
    # Second to last part of a key, within its block: the convolution or the BatchNorm after it.
    parts_of = {
        "conv1.0": "conv1",
        "conv1.1": "bn1",
        "conv2.0": "conv2",
        "conv2.1": "bn2",
        "downsample.0": "downsample_conv",
        "downsample.1": "downsample_bn",
    }
    for key, value in state_dict.items():
        module, leaf = key.rsplit(".", 1)
        if leaf == "num_batches_tracked":
            continue
        if module == "fc":
            path = ("fc",)
        elif module.startswith("stem"):
            path = ("stem", {"0": "conv", "1": "bn"}[module.split(".")[1]])
        else:
            layer, block, part = module.split(".", 2)
            path = (f"{layer}_{block}", parts_of[part])
        if value.ndim == 5:
            collection, leaf, value = "params", "kernel", value.transpose(2, 3, 4, 1, 0)
        elif path == ("fc",):
            collection = "params"
            leaf, value = {"weight": ("kernel", value.T), "bias": ("bias", value)}[leaf]
        else:
            collection, leaf = norm[leaf]
        node = variables[collection]
        for name in path:
            node = node.setdefault(name, {})
        node[leaf] = value
    return variables


@pytest.fixture(scope="module")
def golden(shared):
    spec = importlib.util.spec_from_file_location("recipe", shared / "golden" / "recipe.py")
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    reference = np.load(shared / "golden" / "r3d_18.npz")
    weights = from_torchvision(recipe.state_dict(reference["keys"], reference["shapes"]))
    return reference, weights, recipe.clip(*reference["clip_shape"])


def test_same_tree_as_torchvision(golden):
    _, weights, _ = golden
    model = models.create("r3d_18", 400)
    want = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 2, 8, 8, 3)))
    assert jax.tree.map(np.shape, weights) == jax.tree.map(np.shape, dict(want))


def test_logits_as_torchvision(golden):
    reference, weights, clip = golden
    model = models.create("r3d_18", 400)
    outputs = jax.jit(model.apply, static_argnames="train")(weights, clip, train=False)
    want = reference["logits_eval"]
    np.testing.assert_allclose(outputs.logits, want, rtol=0, atol=1e-4 * want.std())
    assert [m.shape for m in outputs.maps] == [
        (2, 16, 56, 56, 64),
        (2, 8, 28, 28, 128),
        (2, 4, 14, 14, 256),
        (2, 2, 7, 7, 512),
    ]


def test_training_logits_and_statistics_as_torchvision(golden):
    reference, weights, clip = golden
    model = models.create("r3d_18", 400)
    apply = jax.jit(model.apply, static_argnames=("train", "mutable"))
    outputs, updates = apply(weights, clip, train=True, mutable=("batch_stats",))
    want = reference["logits_train"]
    np.testing.assert_allclose(outputs.logits, want, rtol=0, atol=1e-4 * want.std())
    before, after = weights["batch_stats"]["stem"]["bn"], updates["batch_stats"]["stem"]["bn"]
    np.testing.assert_allclose(after["mean"], reference["stem_running_mean"], rtol=1e-4, atol=1e-6)
    # PyTorch runs the unbiased variance along, Flax the biased one: n / (n - 1) times smaller.
    n = 2 * 16 * 56 * 56
    batch_var = (np.asarray(after["var"]) - 0.9 * before["var"]) / 0.1
    unbiased = 0.9 * before["var"] + 0.1 * batch_var * n / (n - 1)
    np.testing.assert_allclose(unbiased, reference["stem_running_var"], rtol=1e-4)


def tiny(**options):
    model = models.create("r3d_10", 5, width=0.125, **options)
    clips = jax.random.normal(jax.random.key(1), (2, 4, 16, 16, 3))
    return model, clips, jax.jit(model.init)(jax.random.key(0), clips)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_outputs_and_gradients(dtype):
    model, clips, variables = tiny(dtype=dtype)
    assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype("float32")}

    @jax.jit
    def gradient(params):
        def loss(params):
            outputs, updates = model.apply(
                {**variables, "params": params}, clips, train=True, mutable=["batch_stats"]
            )
            return jnp.sum(jnp.square(outputs.logits - 1)), (outputs, updates)

        return jax.grad(loss, has_aux=True)(params)

    gradients, (outputs, updates) = gradient(variables["params"])
    assert outputs.logits.shape == (2, 5) and outputs.logits.dtype == jnp.float32
    assert outputs.embedding.shape == (2, 64) and outputs.embedding.dtype == jnp.float32
    assert [m.dtype for m in outputs.maps] == [jnp.dtype(dtype)] * 4
    assert {x.dtype for x in jax.tree.leaves(updates)} == {jnp.dtype("float32")}
    kernel, bias = variables["params"]["fc"]["kernel"], variables["params"]["fc"]["bias"]
    np.testing.assert_allclose(outputs.logits, outputs.embedding @ kernel + bias, atol=1e-5)
    pooled = outputs.maps[-1].astype(jnp.float32).mean((1, 2, 3))
    np.testing.assert_allclose(outputs.embedding, pooled, rtol=1e-5, atol=1e-6)
    for path, g in jax.tree_util.tree_leaves_with_path(gradients):
        assert np.isfinite(g).all() and np.any(g != 0), jax.tree_util.keystr(path)


def test_bfloat16_computes_the_same_network():
    model, clips, variables = tiny()
    half, _, _ = tiny(dtype=jnp.bfloat16)
    want, got = model.apply(variables, clips), half.apply(variables, clips)
    np.testing.assert_allclose(got.embedding, want.embedding, rtol=0.1, atol=0.05)


def test_zero_init_residual_makes_each_block_its_shortcut():
    model, clips, variables = tiny(zero_init_residual=True)
    params = variables["params"]
    assert not np.any(params["layer1_0"]["bn2"]["scale"])
    assert np.all(params["layer1_0"]["bn1"]["scale"] == 1)
    assert np.all(params["layer2_0"]["downsample_bn"]["scale"] == 1)
    changed = jax.tree.map(lambda x: x, params)
    changed["layer1_0"]["conv2"]["kernel"] = 7 * params["layer1_0"]["conv2"]["kernel"]
    want = model.apply(variables, clips).maps[0]
    np.testing.assert_array_equal(
        model.apply({**variables, "params": changed}, clips).maps[0], want
    )


def test_dropout_acts_in_training_alone():
    model, clips, variables = tiny(dropout=0.5)

    def logits(train, seed):
        rngs = {"dropout": jax.random.key(seed)}
        outputs, _ = model.apply(variables, clips, train=train, rngs=rngs, mutable=["batch_stats"])
        return outputs.logits

    np.testing.assert_array_equal(logits(False, 0), logits(False, 1))
    assert not np.array_equal(logits(True, 0), logits(True, 1))


def test_synchronised_batch_norm_equals_one_large_batch():
    """Two halves of a batch under a mapped axis see the statistics of the whole."""
    model, _, variables = tiny()
    synchronised, _, _ = tiny(axis_name="batch")
    clips = jax.random.normal(jax.random.key(2), (4, 4, 16, 16, 3))
    want, want_updates = model.apply(variables, clips, train=True, mutable=["batch_stats"])

    def replica(clips):
        return synchronised.apply(variables, clips, train=True, mutable=["batch_stats"])

    halves = clips.reshape(2, 2, *clips.shape[1:])
    got, got_updates = jax.vmap(replica, axis_name="batch")(halves)
    np.testing.assert_allclose(got.logits.reshape(4, 5), want.logits, rtol=1e-3, atol=1e-4)
    for g, w in zip(jax.tree.leaves(got_updates), jax.tree.leaves(want_updates), strict=True):
        np.testing.assert_allclose(g[0], w, rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(g[1], w, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("shape", [(4, 16, 16, 3), (2, 4, 16, 16, 1), (2, 2, 4, 16, 16, 3)])
def test_wrong_clips_are_named(shape):
    model, _, variables = tiny()
    with pytest.raises(
        ValueError, match=r"\(B, T, H, W, 3\) expected; got shape \(" + str(shape)[1:-1]
    ):
        model.apply(variables, jnp.zeros(shape))


def test_smallest_clip():
    model, _, variables = tiny()
    outputs = model.apply(variables, jnp.ones((1, 1, 1, 1, 3)))
    assert np.isfinite(outputs.logits).all()
