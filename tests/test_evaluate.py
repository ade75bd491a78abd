"""Scores joined over batches, and what is said of them, against counts by hand."""

import numpy as np
import pytest

from skd_jax import evaluate
from skd_jax.evaluate import Scores


class OneCopy:
    """Replicas that are the process itself."""

    get = shard = staticmethod(lambda tree: tree)


def batch(index, label, mask):
    index = np.array(index)
    probabilities = np.stack([index / 100, 1 - index / 100], axis=1).astype(np.float32)
    return {
        "probabilities": probabilities,
        "index": index,
        "label": np.array(label),
        "mask": np.array(mask),
    }


def score(*batches):
    return evaluate.score(lambda variables, b: b, OneCopy(), None, batches)


def test_scores_are_ordered_by_row_and_padding_is_left_out():
    got = score(
        batch([7, 3, 5], [1, 0, 1], [True, True, True]),
        batch([4, 3, 3], [0, 1, 1], [True, False, False]),
    )
    np.testing.assert_array_equal(got.index, [3, 4, 5, 7])
    np.testing.assert_array_equal(got.label, [0, 0, 1, 1])
    np.testing.assert_allclose(got.probabilities[:, 0], [0.03, 0.04, 0.05, 0.07])


def test_a_video_counted_twice_is_an_error():
    with pytest.raises(ValueError, match="4 scores for 3 videos: some were counted twice"):
        score(batch([0, 1], [0, 0], [True, True]), batch([2, 1], [0, 0], [True, True]))


def test_loss_and_top1():
    probabilities = np.array([[0.7, 0.3], [0.4, 0.6], [0.9, 0.1], [1.0, 0.0]], np.float32)
    scores = Scores(probabilities, np.array([0, 1, 1, 1]), np.arange(4))
    got = evaluate.loss_and_top1(scores)
    want = -(np.log(0.7) + np.log(0.6) + np.log(0.1) + np.log(1e-12)) / 4
    assert got["loss"] == pytest.approx(want, rel=1e-5)
    assert got["top1"] == 0.5


def test_summary_by_hand():
    """Seven classes; the true class is placed at a known rank in each row."""
    rng = np.random.default_rng(0)
    label = np.array([0, 0, 1, 2, 2, 2, 6])
    ranks = [0, 4, 0, 5, 1, 0, 6]
    probabilities = np.zeros((7, 7), np.float32)
    predicted = []
    for row, (truth, rank) in enumerate(zip(label, ranks, strict=True)):
        others = rng.permutation(np.delete(np.arange(7), truth))
        order = np.insert(others, rank, truth)
        probabilities[row, order] = np.arange(7, 0, -1) / 28
        predicted.append(order[0])
    names = tuple("abcdefg")
    got = evaluate.summarise(Scores(probabilities, label, np.arange(7)), names)
    assert got["top1"] == pytest.approx(3 / 7)
    assert got["top5"] == pytest.approx(5 / 7)
    assert got["videos"] == 7
    assert got["loss"] == pytest.approx(-np.mean(np.log((7 - np.array(ranks)) / 28)), rel=1e-5)
    assert got["per_class"]["a"] == {"top1": 0.5, "videos": 2}
    assert got["per_class"]["c"] == {"top1": pytest.approx(1 / 3), "videos": 3}
    assert got["per_class"]["d"] == {"top1": None, "videos": 0}
    assert got["per_class"]["g"] == {"top1": 0.0, "videos": 1}
    want = [[0] * 7 for _ in range(7)]
    for truth, guess in zip(label, predicted, strict=True):
        want[truth][guess] += 1
    assert got["confusion"] == want


def test_no_top5_among_five_classes():
    scores = Scores(np.full((2, 5), 0.2, np.float32), np.array([0, 1]), np.arange(2))
    assert "top5" not in evaluate.summarise(scores, tuple("abcde"))
