"""Where in a checkpoint the state dict is."""

from collections.abc import Mapping
from typing import Any

# Who wraps so: 3D-ResNets, Efficient-3DCNNs; pytorchvideo, PySlowFast; torchvision's reference
# training, VMZ.
_WRAPPERS = ("state_dict", "model_state", "model")

# Of nn.DataParallel and of torch.compile.
_PREFIXES = ("module.", "_orig_mod.")


def unwrap(checkpoint: Mapping[str, Any]) -> Mapping[str, Any]:
    """The innermost mapping under `state_dict`, `model_state` or `model`, or the checkpoint itself."""
    for key in _WRAPPERS:
        if isinstance(checkpoint.get(key), Mapping):
            return unwrap(checkpoint[key])
    return checkpoint


def without_prefix(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Keys without the `module.` or `_orig_mod.` that all of them begin with."""
    for prefix in _PREFIXES:
        if state_dict and all(key.startswith(prefix) for key in state_dict):
            return without_prefix({k.removeprefix(prefix): v for k, v in state_dict.items()})
    return dict(state_dict)
