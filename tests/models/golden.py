"""torchvision's outputs beside the checkout, and its state dicts as this project's variables."""

import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

# The last parts of a state dict's module, after its block: the path of the layer here.
_PARTS = {
    "conv{n}.0": ("conv{n}",),
    "conv{n}.1": ("bn{n}",),
    "conv{n}.0.0": ("conv{n}", "spatial"),
    "conv{n}.0.1": ("conv{n}", "bn"),
    "conv{n}.0.3": ("conv{n}", "temporal"),
}
_BLOCK = {part.format(n=n): [p.format(n=n) for p in _PARTS[part]] for part in _PARTS for n in "12"}
_BLOCK |= {"downsample.0": ["downsample_conv"], "downsample.1": ["downsample_bn"]}
_STEM = {"0": ["conv"], "1": ["bn"]}
_FACTORISED_STEM = {
    "0": ["conv", "spatial"],
    "1": ["conv", "bn"],
    "3": ["conv", "temporal"],
    "4": ["bn"],
}


def load(shared: pathlib.Path, name: str):
    """(arrays of the .npz file, variables of this project's model, clips)."""
    spec = importlib.util.spec_from_file_location("recipe", shared / "golden" / "recipe.py")
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    reference = np.load(shared / "golden" / f"{name}.npz")
    weights = from_torchvision(recipe.state_dict(reference["keys"], reference["shapes"]))
    return reference, weights, recipe.clip(*reference["clip_shape"])


def from_torchvision(state_dict):
    """The state dict of one of torchvision's video ResNets as variables of this project's model."""
    stem = _FACTORISED_STEM if "stem.3.weight" in state_dict else _STEM
    variables = {"params": {}, "batch_stats": {}}
    norm = {
        "weight": ("params", "scale"),
        "bias": ("params", "bias"),
        "running_mean": ("batch_stats", "mean"),
        "running_var": ("batch_stats", "var"),
    }
    for key, value in state_dict.items():
        module, leaf = key.rsplit(".", 1)
        if leaf == "num_batches_tracked":
            continue
        if module == "fc":
            path = ["fc"]
        elif module.startswith("stem"):
            path = ["stem", *stem[module.split(".")[1]]]
        else:
            layer, block, part = module.split(".", 2)
            path = [f"{layer}_{block}", *_BLOCK[part]]
        if value.ndim == 5:
            collection, leaf, value = "params", "kernel", value.transpose(2, 3, 4, 1, 0)
        elif path == ["fc"]:
            collection = "params"
            leaf, value = {"weight": ("kernel", value.T), "bias": ("bias", value)}[leaf]
        else:
            collection, leaf = norm[leaf]
        node = variables[collection]
        for name in path:
            node = node.setdefault(name, {})
        node[leaf] = value
    return variables


def stage_counts(model) -> list[int]:
    """Parameters of the stem, of each of the four stages, and of the classifier."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1, 1, 1, 3)))
    parts = dict.fromkeys(("stem", "layer1", "layer2", "layer3", "layer4", "fc"), 0)
    for name, part in shapes["params"].items():
        parts[name.split("_")[0]] += sum(leaf.size for leaf in jax.tree.leaves(part))
    return list(parts.values())
