"""torchvision's outputs beside the checkout."""

import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from skd_jax.models import pretrained


def load(shared: pathlib.Path, name: str):
    """(arrays of the .npz file, state dict, variables of this project's model, clips)."""
    spec = importlib.util.spec_from_file_location("recipe", shared / "golden" / "recipe.py")
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    reference = np.load(shared / "golden" / f"{name}.npz")
    state_dict = recipe.state_dict(reference["keys"], reference["shapes"])
    variables = pretrained.from_torch(name, state_dict)
    return reference, state_dict, variables, recipe.clip(*reference["clip_shape"])


def stage_counts(model) -> list[int]:
    """Parameters of the stem, of each of the four stages, and of the classifier."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1, 1, 1, 3)))
    parts = dict.fromkeys(("stem", "layer1", "layer2", "layer3", "layer4", "fc"), 0)
    for name, part in shapes["params"].items():
        parts[name.split("_")[0]] += sum(leaf.size for leaf in jax.tree.leaves(part))
    return list(parts.values())
