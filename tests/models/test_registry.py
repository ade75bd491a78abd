"""Models by name: parameter counts of all of them, options, and mistakes."""

import jax
import jax.numpy as jnp
import pytest

from skd_jax import models
from skd_jax.errors import UserError

# (model, classes, options) -> parameters. r3d_18: torchvision 0.29; the others by hand from the
# geometry in the docstring of skd_jax/models/resnet3d.py.
COUNTS = {
    ("r3d_10", 400, ()): 14_566_992,
    ("r3d_18", 400, ()): 33_371_472,
    ("r3d_18", 101, ()): 33_218_085,
    ("r3d_18", 51, ()): 33_192_435,
    ("r3d_34", 400, ()): 63_681_104,
    # 16, 32, 64, 128 channels: stem 7,088 + 13,888 + 42,176 + 168,320 + 672,512 + fc 774.
    ("r3d_10", 6, (("width", 0.25),)): 904_758,
}


@pytest.mark.parametrize("name,classes,options", COUNTS)
def test_parameter_count(name, classes, options):
    model = models.create(name, classes, **dict(options))
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 2, 8, 8, 3)))
    total = sum(x.size for x in jax.tree.leaves(shapes["params"]))
    assert total == COUNTS[name, classes, options]


def test_every_model_has_an_asserted_count():
    assert {name for name, _, _ in COUNTS} == set(models.names())


def test_unknown_model_names_the_nearest():
    with pytest.raises(UserError, match="unknown model 'r3d18'; did you mean 'r3d_18'"):
        models.create("r3d18", 5)
    with pytest.raises(UserError, match="Known: r3d_10, r3d_18, r3d_34"):
        models.create("vgg", 5)


def test_unknown_option_names_the_nearest():
    with pytest.raises(UserError, match="unknown r3d_18 option 'widht'; did you mean 'width'"):
        models.create("r3d_18", 5, widht=0.5)
    with pytest.raises(UserError, match="unknown r3d_18 option 'stage_sizes'"):  # the name fixes it
        models.create("r3d_18", 5, stage_sizes=(1, 1, 1, 1))


@pytest.mark.parametrize("option,value", [("width", 0.0), ("dropout", 1.0), ("dropout", -0.1)])
def test_option_out_of_range_is_named(option, value):
    with pytest.raises(UserError, match=f"option {option} of r3d_18 must .* got {value}"):
        models.create("r3d_18", 5, **{option: value})


def test_unknown_dtype_is_named():
    with pytest.raises(UserError, match="option dtype of r3d_18 must be .* got 'bflaot16'"):
        models.create("r3d_18", 5, dtype="bflaot16")


def test_no_classes():
    with pytest.raises(UserError, match="num_classes must be at least 1; got 0"):
        models.create("r3d_18", 0)


def test_options_are_listed():
    expected = ("axis_name", "dropout", "dtype", "width", "zero_init_residual")
    assert models.options("r3d_34") == expected
