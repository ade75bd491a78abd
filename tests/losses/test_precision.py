"""Matrix products in losses and their targets are asked for in full float32, backwards too."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skd_jax import losses
from skd_jax.methods import srd
from skd_jax.models.sparse import SparseCoding

X, Y = np.random.default_rng(0).normal(size=(2, 4, 3)).astype(np.float32)
MAPS = np.ones((2, 2, 4, 4, 3), np.float32)
CODING = SparseCoding(atoms=4, active=2)
WEIGHTS = {"dictionary": np.ones((3, 4), np.float32), "intercept": np.float32(0)}


def sparse(maps):
    code = CODING.apply({"params": WEIGHTS}, maps)
    return code.similarity.sum() + code.reconstruction.sum()


PRODUCTS = {
    "pkt": lambda x: losses.probabilistic_transfer(x, Y),
    "rkd": lambda x: losses.relational_angles(x, Y),
    "sp": lambda x: losses.similarity_preserving(x, Y),
    "bake": lambda x: losses.batch_ensemble(x, Y, 4.0, 0.5).sum(),
    "crd": lambda x: losses.contrastive_representation(x, Y, Y, 9, 0.1, 1.0),
    "sskd": lambda x: losses.turned_similarity(jnp.stack([x] * 4, axis=1)).sum(),
    "icsd": lambda x: losses.class_similarity(MAPS * x[0]).sum(),
    "resize": lambda x: losses.resize_mean(MAPS * x[0], (1, 2, 3)).sum(),
    "srd": lambda x: srd.linear_logits(MAPS * x[0], {"kernel": x.T}).sum(),
    "srm": lambda x: sparse(MAPS * x[0]),
}


def products(program):
    """Every dot_general of a jaxpr, those of the functions it calls among them."""
    for equation in program.eqns:
        if equation.primitive.name == "dot_general":
            yield equation
        for value in equation.params.values():
            for inner in value if isinstance(value, (tuple, list)) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from products(inner)


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_are_exact(name):
    highest = (jax.lax.Precision.HIGHEST,) * 2
    program = jax.make_jaxpr(jax.value_and_grad(PRODUCTS[name]))(X)
    found = [equation.params["precision"] for equation in products(program.jaxpr)]
    assert len(found) >= 2  # forward and backward
    assert set(found) == {highest}


def test_a_product_at_default_precision_would_be_seen():
    program = jax.make_jaxpr(jax.jit(lambda x: x @ x.T))(X)
    assert [e.params["precision"] for e in products(program.jaxpr)] == [None]
