"""The sparse coding block against NumPy float64, its start, and maps of different families."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skd_jax import models
from skd_jax.models import sparse

RNG = np.random.default_rng(0)
MAP = RNG.normal(size=(2, 3, 4, 5, 6)).astype(np.float32)
VARIABLES = {
    "params": {
        "dictionary": RNG.normal(size=(6, 12)).astype(np.float32),
        "intercept": np.float32(-0.3),
    }
}


def by_hand(x, variables, active):
    """Similarity, code and reconstruction, pixel by pixel."""
    dictionary = variables["params"]["dictionary"].astype(np.float64)
    pixels = x.reshape(-1, x.shape[-1]).astype(np.float64)
    similarity = 1 / (1 + np.exp(-(pixels @ dictionary + variables["params"]["intercept"])))
    code = np.zeros_like(similarity)
    for row, entries in zip(code, similarity, strict=True):
        kept = entries >= np.sort(entries)[-active]
        row[kept] = entries[kept]
    return [a.reshape(*x.shape[:-1], -1) for a in (similarity, code, code @ dictionary.T)]


@pytest.mark.parametrize("active", [1, 3, 12])
def test_code_and_reconstruction(active):
    got = sparse.SparseCoding(12, active).apply(VARIABLES, MAP)
    for value, want in zip(got, by_hand(MAP, VARIABLES, active), strict=True):
        assert value.dtype == jnp.float32
        np.testing.assert_allclose(value, want, rtol=1e-4, atol=1e-5)
    assert (np.count_nonzero(got.code, axis=-1) == active).all()


def test_ties_with_the_last_entry_are_kept():
    similarity = np.array([0.5, 0.9, 0.5, 0.5, 0.1], np.float32)
    np.testing.assert_array_equal(
        sparse.keep_largest(similarity, 2), np.array([0.5, 0.9, 0.5, 0.5, 0], np.float32)
    )
    np.testing.assert_array_equal(
        sparse.keep_largest(similarity, 1), np.array([0, 0.9, 0, 0, 0], np.float32)
    )


def test_gradient_passes_through_what_is_kept():
    similarity = np.array([[0.5, 0.9, 0.4, 0.1]], np.float32)
    weights = np.array([[1.0, 2.0, 3.0, 4.0]], np.float32)
    got = jax.grad(lambda x: (weights * sparse.keep_largest(x, 2)).sum())(similarity)
    np.testing.assert_array_equal(got, [[1.0, 2.0, 0.0, 0.0]])


def test_saturated_and_zero_features_are_finite():
    x = np.stack([np.zeros(6), np.full(6, 1e6), np.full(6, -1e6)]).astype(np.float32)

    def total(variables):
        return sum(out.sum() for out in sparse.SparseCoding(12, 2).apply(variables, x))

    assert all(np.isfinite(g).all() for g in jax.tree.leaves(jax.grad(total)(VARIABLES)))


def test_start_is_kaiming_uniform_and_a_uniform_intercept():
    params = jax.vmap(lambda key: sparse.SparseCoding(50).init(key, jnp.zeros((1, 8))))(
        jax.random.split(jax.random.key(0), 200)
    )["params"]
    assert params["dictionary"].shape == (200, 8, 50) and params["intercept"].shape == (200,)
    bound = np.sqrt(6 / 50)
    for values, b in ((params["dictionary"], bound), (params["intercept"], 1.0)):
        assert 0.95 * b < np.abs(values).max() <= b
        assert np.abs(np.std(values) / (b / np.sqrt(3)) - 1) < 0.1


@pytest.mark.parametrize(
    "mu,sparsity,active",
    [
        (2, 0.01, (2, 5, 20)),
        (2, 0.02, (5, 10, 40)),
        (2, 0.03, (7, 15, 61)),
        (1.5, 0.02, (3, 7, 30)),
        (3, 0.02, (7, 15, 61)),
    ],
)
def test_sizes_are_those_of_the_authors(mu, sparsity, active):
    """DenseNet-121's three maps: 2,260,995 parameters at mu = 2, measured on the original."""
    sizes = [sparse.dictionary_size(c, mu, sparsity) for c in (128, 256, 1024)]
    assert tuple(k for _, k in sizes) == active
    count = sum(c * atoms + 1 for c, (atoms, _) in zip((128, 256, 1024), sizes, strict=True))
    assert count == {1.5: 1695747, 2: 2260995, 3: 3391491}[mu]
    assert sparse.dictionary_size(1, 1, 0.01) == (1, 1)


def test_maps_of_another_family():
    clips = jnp.zeros((1, 4, 32, 32, 3))
    for name in ("r3d_10", "shufflenetv2_x0_25"):
        model = models.create(name, 3)
        maps = jax.eval_shape(
            lambda model=model: model.init_with_output(jax.random.key(0), clips)[0].maps
        )
        blocks = sparse.SparseCodings(
            tuple(sparse.dictionary_size(m.shape[-1], 2, 0.02) for m in maps)
        )
        codes = jax.eval_shape(
            lambda maps, blocks=blocks: blocks.init_with_output(jax.random.key(0), maps)[0], maps
        )
        for code, features in zip(codes, maps, strict=True):
            assert code.reconstruction.shape == features.shape
            assert code.code.shape == (*features.shape[:-1], 2 * features.shape[-1])


def test_more_entries_than_atoms_are_refused():
    with pytest.raises(ValueError, match="5 entries over 4 atoms"):
        sparse.SparseCoding(4, 5).init(jax.random.key(0), MAP)
