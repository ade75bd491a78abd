"""Self-knowledge distillation with Siamese representation learning for action recognition, in JAX."""

import importlib

# Loaded when first named, so that a process that needs one does not pay for all.
_FACE = ("augment", "losses", "methods", "models", "optim", "parallel", "step")


def __getattr__(name: str):
    if name in _FACE:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_FACE})
