"""SSKD's similarities of turned clips and its choice of answers against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skd_jax import losses
from tests.fakes import cosine

RNG = np.random.default_rng(1)
EMBEDDING = RNG.normal(size=(3, 4, 5)).astype(np.float32)


def kept(scores, right, share):
    """The authors' selection, one example after the other."""
    order = np.argsort(-scores, axis=1, kind="stable")
    rank = (order == right[:, None]).argmax(1)
    wrong = int((rank > 0).sum())
    index = np.argsort(rank, kind="stable")[: len(scores) - wrong + int(wrong * share)]
    return np.isin(np.arange(len(scores)), index)


def test_every_turned_clip_is_compared_with_every_upright_one():
    got = losses.turned_similarity(EMBEDDING)
    assert got.shape == (9, 3) and got.dtype == jnp.float32
    for row in range(9):
        turned = EMBEDDING[row // 3, 1 + row % 3]
        want = cosine(np.tile(turned, (3, 1)), EMBEDDING[:, 0])
        np.testing.assert_allclose(got[row], want, rtol=1e-4, atol=1e-6)


def test_both_sides_of_a_similarity_move_and_zeros_stay_finite():
    gradient = np.asarray(jax.grad(lambda z: losses.turned_similarity(z)[4, 2])(EMBEDDING))
    moved = {tuple(map(int, place)) for place in np.argwhere(abs(gradient).max(-1) > 1e-4)}
    assert moved == {(1, 2), (2, 0)}
    zeros = jax.grad(lambda z: losses.turned_similarity(z).sum())(0 * EMBEDDING)
    np.testing.assert_array_equal(zeros, 0 * EMBEDDING)
    half = jnp.asarray(EMBEDDING, jnp.bfloat16)
    np.testing.assert_array_equal(
        losses.turned_similarity(half), losses.turned_similarity(half.astype(jnp.float32))
    )
    with pytest.raises(ValueError, match=r"\(B, 4, D\) of all turns expected, got shape \(3, 3, 5"):
        losses.turned_similarity(EMBEDDING[:, 1:])


@pytest.mark.parametrize("share", [0.0, 0.5, 0.75, 1.0])
def test_which_examples_are_learnt_from(share):
    scores, right = RNG.normal(size=(11, 4)).astype(np.float32), RNG.integers(4, size=11)
    want = kept(scores, right, share)
    np.testing.assert_array_equal(losses.best_ranked(scores, right, share), want)
    assert want.sum() < 11 or share == 1.0
