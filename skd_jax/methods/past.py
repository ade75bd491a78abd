"""The best model so far as a frozen teacher of the one in training.

The mechanism of Teaching Yourself (Vu, Le and Wang, IEEE Access 2021), which other methods may add to
their loss: `start` is their `init_state`, `swap` their `after_evaluation`, `distil` the term.
"""

import chex
import jax
import jax.numpy as jnp

from skd_jax import losses
from skd_jax.methods import base

PyTree = base.PyTree


def start(variables: PyTree) -> PyTree:
    """State without a teacher yet: the first weights hold its place.

    Returns:
      {"past": {collection: tree} like the classifier's, "ready": float32 scalar, 0 or 1}.
    """
    teacher = jax.tree.map(jnp.copy, base.network(variables, "model"))
    return {"past": teacher, "ready": jnp.zeros((), jnp.float32)}


def swap(state: PyTree, variables: PyTree, improved: bool) -> PyTree:
    """State whose teacher is the classifier in `variables`, if that is the best so far."""
    if not improved:
        return state
    # Copied: the next step reuses the memory of the variables.
    teacher = jax.tree.map(jnp.copy, base.network(variables, "model"))
    return {"past": teacher, "ready": jnp.ones_like(state["ready"])}


def distil(
    method: base.Method,
    state: PyTree,
    clips: chex.Array,
    logits: chex.Array,
    temperature: float,
    scale_by_t2: bool,
) -> chex.Array:
    """KL from the teacher's soft labels of the same clips, the mean over videos and views.

    Zero until there is a teacher. The teacher's BatchNorm uses its running statistics, and it is
    constant: nothing of it is trained.

    Args:
      method: whose model the teacher is.
      state: as `start` or `swap` return it.
      clips: (B, V, T, H, W, 3).
      logits: (B, V, K) of the model in training.
      temperature: T of both.
      scale_by_t2: multiply by T^2.

    Returns:
      float32 scalar.
    """
    one_pass = clips.reshape(-1, *clips.shape[2:])
    taught = method.model.apply(state["past"], one_pass, train=False).logits
    taught = jax.lax.stop_gradient(taught)
    divergence = losses.soft_label_distillation(
        logits.reshape(taught.shape), taught, temperature, scale_by_t2
    )
    return state["ready"] * divergence.mean()
