"""Collapse diagnostics against NumPy."""

import jax
import numpy as np
import pytest

from skd_jax.methods import diagnostics
from tests.fakes import cosine

RNG = np.random.default_rng(0)


def metrics(embedding, logits=None, axis_name=None):
    if logits is None:
        logits = np.zeros((*embedding.shape[:2], 3), np.float32)
    return diagnostics.view_metrics(logits, embedding, axis_name)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def test_spread_of_random_directions_is_one():
    got = metrics(normal(512, 2, 64))
    np.testing.assert_allclose(got["embedding_std"], 1.0, rtol=0.01)
    np.testing.assert_allclose(got["embedding_rank"], 64, rtol=0.1)


def test_spread_of_one_direction_is_zero():
    constant = np.broadcast_to(normal(16), (8, 2, 16)) * RNG.uniform(1, 3, (8, 2, 1))
    got = metrics(constant.astype(np.float32))
    np.testing.assert_allclose(got["embedding_std"], 0.0, atol=1e-5)
    np.testing.assert_allclose(got["view_cosine"], 1.0, rtol=1e-5)


@pytest.mark.parametrize("videos,dimension", [(3, 20), (40, 5), (10, 20)])
def test_rank_is_the_participation_ratio_of_the_eigenvalues(videos, dimension):
    embedding = normal(videos, 2, dimension) * np.linspace(0.1, 2, dimension, dtype=np.float32)
    unit = embedding.reshape(-1, dimension).astype(np.float64)
    unit /= np.linalg.norm(unit, axis=-1, keepdims=True)
    values = np.linalg.eigvalsh(np.cov(unit.T))
    got = metrics(embedding)
    np.testing.assert_allclose(
        got["embedding_rank"], values.sum() ** 2 / (values**2).sum(), rtol=1e-4
    )
    np.testing.assert_allclose(
        got["embedding_std"], unit.std(0).mean() * np.sqrt(dimension), rtol=1e-4
    )


def test_embeddings_on_a_line_have_rank_one():
    ends = np.where(RNG.random((30, 2, 1)) < 0.5, -1.0, 1.0) * normal(8)
    np.testing.assert_allclose(metrics(ends.astype(np.float32))["embedding_rank"], 1.0, rtol=1e-4)


def test_zero_embeddings_stay_finite():
    assert all(np.isfinite(value) for value in metrics(np.zeros((4, 2, 8), np.float32)).values())


def test_agreement_accuracy_and_cosine():
    logits = np.eye(3, dtype=np.float32)[[[0, 0], [1, 2], [2, 2], [1, 0]]]
    embedding = normal(4, 2, 5)
    got = metrics(embedding, logits)
    assert got["view_agreement"] == 0.5
    np.testing.assert_allclose(
        got["view_cosine"], cosine(embedding[:, 0], embedding[:, 1]).mean(), rtol=1e-5
    )
    assert diagnostics.accuracy(logits, np.array([0, 2, 1, 1])) == 0.5


@pytest.mark.parametrize("dimension", [6, 64])
def test_replicas_see_the_spread_of_all_examples(dimension):
    """16 vectors: their moments are averaged, or they are gathered, whichever is less."""
    embedding, logits = normal(8, 2, dimension), normal(8, 2, 3)
    parts = embedding.reshape(4, 2, 2, dimension), logits.reshape(4, 2, 2, 3)

    def replica(embedding, logits):
        return metrics(embedding, logits, "batch")

    program = jax.make_jaxpr(replica, axis_env=[("batch", 4)])(*(part[0] for part in parts))
    assert ("all_gather" in str(program)) == (dimension == 64)
    split = jax.vmap(replica, axis_name="batch")(*parts)
    whole = metrics(embedding, logits)
    for name in ("embedding_std", "embedding_rank"):
        np.testing.assert_allclose(split[name], np.full(4, whole[name]), rtol=1e-4)
    for name in ("view_agreement", "view_cosine"):
        np.testing.assert_allclose(np.mean(split[name]), whole[name], rtol=1e-4)
