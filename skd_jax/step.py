"""One training step and one evaluation step, as pure functions of one replica's batch."""

import dataclasses
from typing import Any

import chex
import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax

from skd_jax import augment, finetune, parallel
from skd_jax.errors import UserError
from skd_jax.methods import Method

PyTree = Any


@flax.struct.dataclass
class TrainState:
    """All that a step changes, and so all that a checkpoint must hold.

    Attributes:
      step: int32 scalar, number of updates done.
      params: {network: tree} float32.
      batch_stats: {network: tree} float32.
      method_state: the method's own state.
      opt_state: the optimiser's.
      ema: {"params": ..., "batch_stats": ...} moving averages, or None.
    """

    step: chex.Array
    params: PyTree
    batch_stats: PyTree
    method_state: PyTree
    opt_state: PyTree
    ema: PyTree | None

    @property
    def variables(self) -> PyTree:
        """What `Method.logits` takes."""
        return {"params": self.params, "batch_stats": self.batch_stats}


@dataclasses.dataclass(frozen=True)
class StepSettings:
    """Constants of the step.

    Attributes:
      total_steps: length of training; step / total_steps is the method's `progress`.
      seed: of dropout and other randomness inside the networks.
      accumulate: micro-batches that a replica's batch is cut into, to save memory.
      ema_decay: of the moving average of the weights; 0 keeps none.
      freeze: patterns of the parameters that stay as they are, see `finetune`.
    """

    total_steps: int
    seed: int = 0
    accumulate: int = 1
    ema_decay: float = 0.0
    freeze: tuple[str, ...] = ()


def create_state(
    method: Method,
    tx: optax.GradientTransformation,
    rng: chex.PRNGKey,
    clip_shape: tuple[int, ...],
    settings: StepSettings,
    initial: PyTree | None = None,
    teacher: PyTree | None = None,
) -> TrainState:
    """State before the first step.

    Args:
      method: what is trained.
      tx: the optimiser.
      rng: key of the initial parameters.
      clip_shape: (T, H, W, 3) of the clips the model will see.
      settings: whether an average of the weights is kept, and what is frozen.
      initial: {"params": tree, "batch_stats": tree} of the classifier, to begin with instead of
        random ones; what they leave out, and the other networks, begin as ever.
      teacher: {"params": tree, "batch_stats": tree} of `method.teacher`, where it has one; they
        become method_state["teacher"]. None takes random ones, of use for their shapes alone.

    Raises:
      UserError: nothing is left to train, or the teacher's variables do not fit it.
    """
    clips = jnp.zeros((1, *clip_shape), jnp.float32)
    variables = jax.jit(method.init)(rng, clips)
    if initial is not None:
        variables = {
            collection: trees
            | {"model": trees["model"] | jax.tree.map(jnp.asarray, dict(initial[collection]))}
            for collection, trees in variables.items()
        }
    trained, _ = finetune.split(variables["params"], _frozen(method, variables, settings))
    method_state = method.init_state(variables)
    if method.teacher is not None:
        method_state = {**method_state, "teacher": _teacher(method.teacher, rng, clips, teacher)}
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=variables["params"],
        batch_stats=variables["batch_stats"],
        method_state=method_state,
        opt_state=tx.init(trained),
        ema=jax.tree.map(jnp.copy, variables) if settings.ema_decay > 0 else None,
    )


def train_step(
    state: TrainState,
    batch: dict[str, chex.Array],
    *,
    method: Method,
    tx: optax.GradientTransformation,
    augmentation: augment.AugmentSettings,
    settings: StepSettings,
    axis_name: str | None = None,
) -> tuple[TrainState, dict[str, chex.Array]]:
    """One update from one replica's batch.

    Gradients, metrics and running statistics are averaged over `axis_name` in one all-reduce, so
    every replica ends with the same state. Only what is not frozen is differentiated and reduced.

    That state does not depend on the number of replicas, to rounding, but where a replica draws or
    looks at its own part of the batch alone:
    - draws: dropout, the shares and partners of mixed clips (MixSKD, FRSKD with `mix`) and CRD's
      negatives come from a key of the replica's own, and partners from its own part of the batch;
    - `sync_batch_norm=False`: each part is normalised by itself;
    - `accumulate` above 1: a micro-batch holds one piece of every replica's part, so which videos
      share it, for BatchNorm and for losses that compare examples, changes with their number.

    Args:
      state: replicated.
      batch: "clips" (B, V, T, S, S, 3) uint8, "size" (B, V, 2), "flip" (B, V), "key" (B, 2) uint32,
        "label" (B,), "index" (B,).
      method, tx, augmentation, settings: constants.
      axis_name: the replicas' axis, or None for a single replica.

    Returns:
      (new state, metrics: float32 scalars; "grad_norm" among them).

    Raises:
      ValueError: the replica's batch cannot be cut into `settings.accumulate` parts.
    """
    rng = jax.random.fold_in(jax.random.key(settings.seed), state.step)
    if axis_name is not None:
        rng = jax.random.fold_in(rng, jax.lax.axis_index(axis_name))
    progress = state.step.astype(jnp.float32) / settings.total_steps

    trained, frozen = finetune.split(state.params, _frozen(method, state.variables, settings))

    def loss_fn(trained, stats, method_state, part, key):
        clips = augment.train_clips(
            part["clips"], part["size"], part["flip"], part["key"], augmentation
        )
        variables = {"params": finetune.join(trained, frozen), "batch_stats": stats}
        return method.loss(
            variables, {**part, "clips": clips}, method_state, key, progress, axis_name
        )

    gradient = jax.value_and_grad(loss_fn, has_aux=True)

    def micro_step(carry, inputs):
        stats, method_state, total = carry
        part, key = inputs
        (_, (metrics, stats, method_state)), grads = gradient(
            trained, stats, method_state, part, key
        )
        return (stats, method_state, jax.tree.map(jnp.add, total, grads)), metrics

    if settings.accumulate == 1:
        (_, (metrics, stats, method_state)), grads = gradient(
            trained, state.batch_stats, state.method_state, batch, rng
        )
    else:
        parts = _split(batch, settings.accumulate)
        zeros = jax.tree.map(jnp.zeros_like, trained)
        (stats, method_state, grads), metrics = jax.lax.scan(
            micro_step,
            (state.batch_stats, state.method_state, zeros),
            (parts, jax.random.split(rng, settings.accumulate)),
        )
        grads = jax.tree.map(lambda g: g / settings.accumulate, grads)
        metrics = jax.tree.map(jnp.mean, metrics)

    if axis_name is not None:
        grads, metrics, stats = parallel.mean_over_replicas((grads, metrics, stats), axis_name)
    if method.freezes_batch_norm:
        # Not even the mean over three replicas of one number is sure to be that number.
        stats = stats | {"model": state.batch_stats["model"]}
    updates, opt_state = tx.update(grads, state.opt_state, trained)
    updates = {name: _unless(method.waits(name, progress), tree) for name, tree in updates.items()}
    params = finetune.join(optax.apply_updates(trained, updates), frozen)
    ema = state.ema
    if settings.ema_decay > 0:
        # The decay warms up with the step, or the random start would linger in the average.
        step = state.step.astype(jnp.float32)
        decay = jnp.minimum(settings.ema_decay, (1.0 + step) / (10.0 + step))
        # In this form the average of what never moves is that very value.
        ema = jax.tree.map(
            lambda old, new: old + (1.0 - decay) * (new - old),
            ema,
            {"params": params, "batch_stats": stats},
        )
    new_state = state.replace(
        step=state.step + 1,
        params=params,
        batch_stats=stats,
        method_state=method_state,
        opt_state=opt_state,
        ema=ema,
    )
    return new_state, {**metrics, "grad_norm": optax.global_norm(grads)}


def eval_step(
    variables: PyTree,
    batch: dict[str, chex.Array],
    *,
    method: Method,
    augmentation: augment.AugmentSettings,
    axis_name: str | None = None,
) -> dict[str, chex.Array]:
    """Class probabilities of one replica's videos, averaged over the clips of each.

    Args:
      variables: {collection: {network: tree}}.
      batch: "clips" (B, V, T, S, S, 3) uint8, "size" (B, V, 2), "label", "index", "mask" (B,).
      method, augmentation: constants.
      axis_name: the replicas' axis; with it the result holds all replicas' videos, on each of them.

    Returns:
      "probabilities" (B, K) float32, "label", "index", "mask" (B,).
    """
    clips = augment.eval_clips(batch["clips"], batch["size"], augmentation)
    videos, views = clips.shape[:2]
    logits = method.logits(variables, clips.reshape(videos * views, *clips.shape[2:]))
    probabilities = jax.nn.softmax(logits.astype(jnp.float32)).reshape(videos, views, -1).mean(1)
    scores = {"probabilities": probabilities}
    scores |= {name: batch[name] for name in ("label", "index", "mask")}
    if axis_name is not None:
        scores = jax.lax.all_gather(scores, axis_name, tiled=True)
    return scores


def _teacher(
    module: nn.Module, rng: chex.PRNGKey, clips: chex.Array, given: PyTree | None
) -> PyTree:
    def init():
        return module.init(rng, clips, train=False)

    if given is None:
        return init()
    wanted = jax.eval_shape(init)
    given = {collection: given.get(collection) for collection in wanted}
    shapes = [jax.tree.map(lambda x: x.shape, tree) for tree in (wanted, given)]
    if shapes[0] != shapes[1]:
        raise UserError("the teacher's variables do not fit its network (method.teacher)")
    return jax.tree.map(jnp.asarray, given)


def _frozen(method: Method, variables: PyTree, settings: StepSettings) -> PyTree:
    patterns = (*settings.freeze, *method.fixed)
    return finetune.frozen(variables, patterns, method.freezes_batch_norm)


def _unless(waits: chex.Array | bool, updates: PyTree) -> PyTree:
    if waits is False:
        return updates
    return jax.tree.map(lambda x: jnp.where(waits, jnp.zeros_like(x), x), updates)


def _split(batch: dict[str, chex.Array], parts: int) -> dict[str, chex.Array]:
    size = batch["label"].shape[0]
    if size % parts:
        raise ValueError(f"a replica's batch of {size} cannot be cut into {parts} equal parts")
    return jax.tree.map(lambda x: x.reshape(parts, size // parts, *x.shape[1:]), batch)
