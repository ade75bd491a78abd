"""What the tests of all families check in the same way."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from skd_jax.models.classifier import VideoClassifier


@functools.lru_cache
def count(build, num_classes, **options):
    """Trainable parameters, without computing any; the smallest clip is the quickest to trace."""
    model = build(num_classes=num_classes, **options)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 2, 1, 1, 3)))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))


def output_shapes(entry):
    """Shapes of the maps, without the batch, and of the embedding at the usual clip."""
    model, clips = entry.build(num_classes=5), jnp.zeros((1, *entry.clip, 3))
    outputs, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), clips)
    return [m.shape[1:] for m in outputs.maps], outputs.embedding.shape


def draw(model, *inputs):
    """Variables that are all far from their initial values."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs)
    rng = np.random.default_rng(0)

    def leaf(path, shape):
        name = path[-1].key
        if name == "kernel":
            return rng.normal(0, np.sqrt(2 / np.prod(shape.shape[:-1])), shape.shape).astype("f4")
        low = 0.5 if name in ("scale", "var") else -0.2
        return rng.uniform(low, low + 1, shape.shape).astype("f4")

    return jax.tree_util.tree_map_with_path(leaf, shapes)


def gradient(model, variables, clips):
    """Gradients of a loss of the logits in training mode, outputs and updated statistics."""

    def loss(params):
        outputs, updates = model.apply(
            {**variables, "params": params}, clips, train=True, mutable=["batch_stats"]
        )
        return jnp.sum(jnp.square(outputs.logits - 1)), (outputs, updates)

    return jax.grad(loss, has_aux=True)(variables["params"])


def check_training_step(build, size, dtype, **options):
    """Outputs as promised; finite gradients, not all zero, in every parameter."""
    clips = np.random.default_rng(1).standard_normal((4, *size, 3), dtype=np.float32)
    model = build(num_classes=5, dtype=dtype, **options)
    variables = draw(model, clips)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype("float32")}
    # Compiling takes nearly all the time of this test: ask for little optimisation.
    step = jax.jit(
        functools.partial(gradient, model), compiler_options={"xla_backend_optimization_level": 0}
    )
    gradients, (outputs, updates) = step(variables, clips)
    assert outputs.logits.shape == (4, 5) and outputs.logits.dtype == jnp.float32
    assert outputs.embedding.ndim == 2 and outputs.embedding.dtype == jnp.float32
    assert {m.dtype for m in outputs.maps} == {jnp.dtype(dtype)}
    assert {leaf.dtype for leaf in jax.tree.leaves(updates)} == {np.dtype("float32")}
    fc = variables["params"]["fc"]
    np.testing.assert_allclose(
        outputs.logits, outputs.embedding @ fc["kernel"] + fc["bias"], rtol=1e-4, atol=1e-4
    )
    for path, g in jax.tree_util.tree_leaves_with_path(gradients):
        assert np.isfinite(g).all() and np.any(g != 0), jax.tree_util.keystr(path)


def layers():
    """What builds a family's convolutions and BatchNorms, in evaluation."""
    _, conv, norm = VideoClassifier(num_classes=1).prepare(jnp.zeros((1, 1, 1, 1, 3)), train=False)
    return {"conv": conv, "norm": norm}


def conv(kernel, x, strides=(1, 1, 1), groups=1):
    """XLA's own convolution, padded by half its kernel."""
    y = lax.conv_general_dilated(
        jnp.asarray(x),
        jnp.asarray(kernel),
        strides,
        [(k // 2, k // 2) for k in kernel.shape[:3]],
        dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
        feature_group_count=groups,
    )
    return np.asarray(y)


def conv_norm(block, x, conv_name, norm_name, strides=(1, 1, 1), groups=1, epsilon=1e-5):
    """That, then BatchNorm in evaluation, of a block's variables."""
    y = conv(block["params"][conv_name]["kernel"], x, strides, groups)
    affine, stats = block["params"][norm_name], block["batch_stats"][norm_name]
    scale = affine["scale"] / np.sqrt(stats["var"] + epsilon)
    return (y - stats["mean"]) * scale + affine["bias"]


def relu(x):
    return np.maximum(x, 0)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))
