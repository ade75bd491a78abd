"""What a training method is: its networks, its loss, and the classifier it leaves behind."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from skd_jax.errors import UserError
from skd_jax.models import Outputs

PyTree = Any
Metrics = dict[str, chex.Array]


@dataclasses.dataclass(frozen=True)
class Method:
    """Base of all methods; a subclass adds hyper-parameters as fields and implements `loss`.

    A method is a value: it holds no parameters and no state. Variables are nested as
    `variables[collection][network]`; the classifier that is evaluated, predicted with and exported
    is always `variables[collection]["model"]`, whatever other networks training needs.

    Attributes:
      model: the classifier, from `skd_jax.models.create`.
      sync_batch_norm: whether BatchNorm uses the batch of all replicas or of one.
      num_videos: videos of the training split, for methods that remember each; no hyper-parameter:
        the program fills it in as it does the model's number of classes.
    """

    model: nn.Module
    sync_batch_norm: bool = dataclasses.field(default=True, kw_only=True)
    num_videos: int = dataclasses.field(default=0, kw_only=True)

    # A frozen classifier that the method learns from; a field where there is one. Its variables are
    # state["teacher"], which training puts there.
    teacher = None

    @property
    def compares_classes(self) -> bool:
        """Whether the teacher, where there is one, must know the same classes."""
        return self.teacher is not None

    def __post_init__(self):
        smoothing = getattr(self, "label_smoothing", 0.0)
        if not 0.0 <= smoothing < 1.0:
            raise UserError(f"method.label_smoothing must be in [0, 1), got {smoothing}")
        names = [field.name for field in dataclasses.fields(self)]
        not_negative(self, *(name for name in names if name.startswith("lambda_")))
        positive(self, *(name for name in names if name.endswith("temperature")))

    @property
    def num_views(self) -> int:
        """Number of views of each video in a training batch."""
        raise NotImplementedError

    @property
    def partners(self) -> int:
        """How many of the views, the last ones, show other training videos of the same class.

        A video that is alone in its class is its own partner.
        """
        return 0

    @property
    def needs_validation(self) -> bool:
        """Whether `after_evaluation` does anything, and so whether training needs evaluations."""
        return False

    @property
    def constant_lr(self) -> tuple[str, ...]:
        """Networks whose learning rate stays at its peak instead of following the schedule."""
        return ()

    @property
    def earlier_stages(self) -> tuple["Stage", ...]:
        """Trainings that come before this method's own; none here."""
        return ()

    @property
    def fixed(self) -> tuple[str, ...]:
        """Patterns (see `finetune`) of the parameters that this method leaves as they are."""
        return ()

    @property
    def least_batch(self) -> tuple[int, int]:
        """Fewest videos a micro-batch must hold, of one replica and of all, for the loss to have something
        to compare or to mix."""
        return 1, 1

    def waits(self, network: str, progress: chex.Array) -> chex.Array | bool:
        """Whether a network of `init` stays as it is at this step, as no term reaches it yet.

        Its gradient is zero then, but weight decay would move it, towards zero.

        Args:
          network: its name.
          progress: share of training done, in [0, 1].
        """
        del network, progress
        return False

    @property
    def freezes_batch_norm(self) -> bool:
        """Whether the classifier's BatchNorm layers stay as they are, statistics and parameters."""
        return getattr(self.model, "freeze_batch_norm", False)

    def init(self, rng: chex.PRNGKey, clips: chex.Array) -> PyTree:
        """Initial variables.

        The classifier begins alike in all methods with the same key, so that runs of one seed can be
        compared in pairs; networks beside it have keys of their own, folded in.

        Args:
          rng: key.
          clips: (B, T, H, W, 3) floats, one view; only the shape matters.

        Returns:
          {"params": {"model": ..., ...}, "batch_stats": {"model": ..., ...}}.
        """
        return nest({"model": self.model.init({"params": rng}, clips, train=False)})

    def init_state(self, variables: PyTree) -> PyTree:
        """State beside the variables that training carries (memories, past teachers); none here."""
        del variables
        return {}

    def begin(
        self, variables: PyTree, state: PyTree, finished: Mapping[str, PyTree]
    ) -> tuple[PyTree, PyTree]:
        """What a run begins with, after the stages before it; unchanged here.

        Args:
          variables: as `init` returns them.
          state: as `init_state` returns it, with the teacher where there is one.
          finished: {name of a stage: its variables}, of every stage before.
        """
        del finished
        return variables, state

    def loss(
        self,
        variables: PyTree,
        batch: dict[str, chex.Array],
        state: PyTree,
        rng: chex.PRNGKey,
        progress: chex.Array,
        axis_name: str | None,
    ) -> tuple[chex.Array, tuple[Metrics, PyTree, PyTree]]:
        """Loss of one replica's batch, averaged over its examples.

        Args:
          variables: as `init` returns them.
          batch: "clips" (B, V, T, H, W, 3) float, normalised; "label" (B,) int32; "index" (B,)
            int32, row of the video in the training split.
          state: as `init_state` returns it.
          rng: key for dropout and the like.
          progress: share of training done, in [0, 1].
          axis_name: mapped axis over the replicas, or None outside one.

        Returns:
          (scalar float32, (metrics, new batch_stats, new state)).
        """
        raise NotImplementedError

    def after_evaluation(self, state: PyTree, variables: PyTree, improved: bool) -> PyTree:
        """State after an evaluation on the validation split; unchanged here.

        Called where `needs_validation`, on every replica as the step is, and so a pure function.

        Args:
          state: as `init_state` returns it.
          variables: those that were judged: the moving averages where they are kept.
          improved: whether this is the best evaluation so far.
        """
        del variables, improved
        return state

    def logits(self, variables: PyTree, clips: chex.Array) -> chex.Array:
        """The deployed classifier's logits (B, K) float32 for clips (B, T, H, W, 3)."""
        return self.model.apply(network(variables, "model"), clips, train=False).logits


@dataclasses.dataclass(frozen=True)
class Stage:
    """A training that comes before a method's own, in a folder of its own, by the same loop.

    It has no classifier to be judged by: nothing is validated, and its last state counts.

    Attributes:
      name: of the folder, WORKDIR/stages/NAME, and in `Method.begin`.
      method: what is trained; its classifier is a network like the final one.
      share: of the steps of the whole training; warm-up and boundaries of the schedule shrink alike.
      optim: fields of `optim.OptimSettings` that differ from the run's.
    """

    name: str
    method: Method
    share: float
    optim: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def not_negative(method: Method, *names: str) -> None:
    """Raises a UserError if one of these fields is below zero; what is traced is not looked at."""
    for name in names:
        value = getattr(method, name)
        if not isinstance(value, jax.core.Tracer) and value < 0:
            raise UserError(f"method.{name} must be 0 or more, got {value}")


def positive(method: Method, *names: str) -> None:
    """Raises a UserError if one of these fields is not above zero; what is traced is not looked at."""
    for name in names:
        value = getattr(method, name)
        if not isinstance(value, jax.core.Tracer) and value <= 0:
            raise UserError(f"method.{name} must be positive, got {value}")


def nest(networks: dict[str, PyTree]) -> PyTree:
    """{network: {collection: tree}} -> {collection: {network: tree}}.

    Every network is in both collections, with an empty tree where it has no BatchNorm: the structure
    is then the same before and after a step.
    """
    return {
        collection: {name: trees.get(collection, {}) for name, trees in networks.items()}
        for collection in ("params", "batch_stats")
    }


def network(variables: PyTree, name: str) -> PyTree:
    """The variables of one network: {collection: tree}."""
    return {collection: trees[name] for collection, trees in variables.items() if name in trees}


def replace_network(variables: PyTree, name: str, source: PyTree) -> PyTree:
    """`variables` with one network's taken from `source`, another {collection: {network: tree}}."""
    return {
        collection: {**trees, name: jax.tree.map(jnp.asarray, source[collection].get(name, {}))}
        for collection, trees in variables.items()
    }


def apply_views(
    module: nn.Module,
    variables: PyTree,
    views: PyTree,
    *,
    together: bool,
    rng: chex.PRNGKey | None = None,
) -> tuple[PyTree, PyTree]:
    """Applies a network in training mode to the views of a batch.

    Args:
      module: called as `module(view, train=True)`.
      variables: its collections, one network's.
      views: inputs, every leaf (B, V, ...).
      together: one pass over all B x V inputs, so that BatchNorm sees the views as one batch;
        otherwise a pass per view, the running statistics updated by each in turn (SimSiam).
      rng: key for dropout, or None.

    Returns:
      (outputs with every leaf (B, V, ...), new batch_stats).
    """
    batch, num_views = jax.tree.leaves(views)[0].shape[:2]

    def apply(stats: PyTree, inputs: chex.Array, key: chex.PRNGKey | None):
        outputs, updated = module.apply(
            {**variables, "batch_stats": stats},
            inputs,
            train=True,
            mutable=["batch_stats"],
            rngs=None if key is None else {"dropout": key},
        )
        return outputs, updated.get("batch_stats", stats)

    stats = variables.get("batch_stats", {})
    if together:
        merged = jax.tree.map(lambda x: x.reshape(batch * num_views, *x.shape[2:]), views)
        outputs, stats = apply(stats, merged, rng)
        outputs = jax.tree.map(lambda x: x.reshape(batch, num_views, *x.shape[1:]), outputs)
        return outputs, stats
    per_view = []
    for view in range(num_views):
        key = None if rng is None else jax.random.fold_in(rng, view)
        outputs, stats = apply(stats, jax.tree.map(lambda x, v=view: x[:, v], views), key)
        per_view.append(outputs)
    return jax.tree.map(lambda *x: jnp.stack(x, axis=1), *per_view), stats


def classifier_views(
    method: Method,
    variables: PyTree,
    clips: chex.Array,
    *,
    together: bool,
    rng: chex.PRNGKey,
    axis_name: str | None,
    maps: bool = False,
) -> tuple[Outputs, PyTree]:
    """The classifier's training-mode outputs for every view.

    Args:
      method: whose model is applied.
      variables: all networks'.
      clips: (B, V, T, H, W, 3).
      together: see `apply_views`.
      rng: dropout key.
      axis_name: the replicas' axis, or None.
      maps: whether to keep the feature maps.

    Returns:
      (Outputs with logits (B, V, K), embedding (B, V, D) and, if asked for, maps
      (B, V, T_i, H_i, W_i, C_i), else none; the model's new batch_stats).
    """
    model = method.model.clone(axis_name=axis_name if method.sync_batch_norm else None)
    outputs, stats = apply_views(
        model, network(variables, "model"), clips, together=together, rng=rng
    )
    return outputs if maps else outputs._replace(maps=()), stats
