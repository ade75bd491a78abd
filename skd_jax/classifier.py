"""The classifier that a trained workdir holds."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from skd_jax import checkpoint, settings, workdir
from skd_jax.errors import UserError
from skd_jax.methods import Method

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Trained:
    """A trained classifier.

    Attributes:
      method: its `logits` classifies clips.
      variables: the weights to use, of the network that is deployed alone, as {collection: {"model":
        tree}}: the moving average where one was kept, else the raw ones.
      raw_variables: the raw weights where `variables` are the average, else None.
      config: of the run.
      data: what the run says of its data.
      step: of the checkpoint.
      selection: how the checkpoint was chosen, in words.
    """

    method: Method
    variables: PyTree
    raw_variables: PyTree | None
    config: dict[str, Any]
    data: dict[str, Any]
    step: int
    selection: str

    @property
    def class_names(self) -> tuple[str, ...]:
        """In the order of the logits."""
        return tuple(self.data["class_names"])

    @property
    def num_parameters(self) -> int:
        """Of the deployed network, heads of the training method not counted."""
        return sum(x.size for x in jax.tree.leaves(self.variables["params"]["model"]))


def load(folder: Path, log: Callable[[str], None] = print) -> Trained:
    """The best checkpoint by validation, or the last where there was no validation split.

    Args:
      folder: the workdir.
      log: takes one line of text, such as that a checkpoint is unreadable and the next best taken.

    Raises:
      UserError: nothing was trained there, or the checkpoint cannot be read or does not fit its config.
    """
    config, data = workdir.read_config(folder), workdir.read_data(folder)
    method = settings.method(config, len(data["class_names"]))
    checkpoints = checkpoint.Checkpoints(folder / workdir.CHECKPOINTS, log=log)
    restored = checkpoints.restore_best()
    if restored is None:
        raise UserError(f"{folder} holds no finished checkpoint yet; train first")
    step, flat, metrics = restored
    if metrics:
        selection = f"best validation top-1 ({metrics['top1']:.4f})"
    elif "imported" in data:
        selection = f"imported from {data['imported']}"
    else:
        selection = "last checkpoint (no validation split)"
    checkpoints.close()
    raw = _deployed(checkpoint.variables(flat))
    averaged = _deployed(checkpoint.variables(flat, ema=True))
    has_average = bool(averaged["params"])
    _check_model(raw, method, config, f"{folder}/checkpoints/{step}")
    return Trained(
        method=method,
        variables=averaged if has_average else raw,
        raw_variables=raw if has_average else None,
        config=config,
        data=data,
        step=step,
        selection=selection,
    )


def _deployed(variables: PyTree) -> PyTree:
    """Without what only the training method needs: projectors, branches, a self-teacher."""
    return {
        collection: {name: tree for name, tree in trees.items() if name == "model"}
        for collection, trees in variables.items()
    }


def _check_model(variables: PyTree, method: Method, config: dict, source: str) -> None:
    crop = config["augment"]["crop"]
    shape = (1, config["clips"]["frames"], crop, crop, 3)
    wanted = jax.eval_shape(
        lambda: method.model.init(jax.random.key(0), jax.numpy.zeros(shape), train=False)
    )
    found = {c: trees["model"] for c, trees in variables.items() if "model" in trees}
    checkpoint.unflatten(checkpoint.flatten(found), wanted, source)
