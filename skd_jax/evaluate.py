"""Video accuracy: several clips and crops of each video, every video counted exactly once."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from skd_jax.parallel import Replicas

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Scores:
    """Predictions for the videos of a split, ordered by their row in it.

    Attributes:
      probabilities: (N, K) float32, mean over the clips of a video.
      label: (N,) integer.
      index: (N,) row of each video in the split.
    """

    probabilities: np.ndarray
    label: np.ndarray
    index: np.ndarray


def score(
    run: Callable[[PyTree, PyTree], PyTree],
    replicas: Replicas,
    variables: PyTree,
    batches: Iterable[dict[str, np.ndarray]],
) -> Scores:
    """Scores every video of the batches.

    Args:
      run: `replicas.evaluate(eval_step)`.
      replicas: how `run` is spread.
      variables: replicated variables.
      batches: padded and masked; each process passes its part, all the same number of batches.

    Raises:
      ValueError: a video came twice, or none came.
    """
    parts = [replicas.get(run(variables, replicas.shard(batch))) for batch in batches]
    if not parts:
        raise ValueError("there are no videos to evaluate")
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    kept = joined["mask"]
    index, order = np.unique(joined["index"][kept], return_index=True)
    if len(index) != kept.sum():
        raise ValueError(f"{kept.sum()} scores for {len(index)} videos: some were counted twice")
    return Scores(joined["probabilities"][kept][order], joined["label"][kept][order], index)


def loss_and_top1(scores: Scores) -> dict[str, float]:
    """Mean negative log-likelihood (nats) and top-1 accuracy, as Python floats."""
    likelihood = scores.probabilities[np.arange(len(scores.label)), scores.label]
    return {
        "loss": float(-np.log(np.maximum(likelihood.astype(np.float64), 1e-12)).mean()),
        "top1": float((scores.probabilities.argmax(1) == scores.label).mean()),
    }


def summarise(scores: Scores, class_names: tuple[str, ...]) -> dict[str, Any]:
    """What results.json says of a split.

    Returns:
      top1, top5 (absent with 5 classes or fewer), loss, videos, per_class {name: {"top1", "videos"}}
      and confusion (K x K counts, row = truth, column = prediction).
    """
    predicted = scores.probabilities.argmax(1)
    classes = len(class_names)
    confusion = np.zeros((classes, classes), np.int64)
    np.add.at(confusion, (scores.label, predicted), 1)
    per_class = {
        name: {
            "top1": float(confusion[k, k] / confusion[k].sum()) if confusion[k].any() else None,
            "videos": int(confusion[k].sum()),
        }
        for k, name in enumerate(class_names)
    }
    result = loss_and_top1(scores) | {"videos": len(scores.label)}
    if classes > 5:
        best = np.argsort(-scores.probabilities, axis=1, kind="stable")[:, :5]
        result["top5"] = float((best == scores.label[:, None]).any(1).mean())
    return result | {"per_class": per_class, "confusion": confusion.tolist()}
