"""What a measurement was made on."""

import importlib.metadata
import importlib.util
import os
import pathlib
import platform


def processor() -> str:
    """The CPU's name, and how many of its cores this process may use."""
    name = platform.processor() or platform.machine()
    table = pathlib.Path("/proc/cpuinfo")
    if table.exists():
        fields = (line.partition(":") for line in table.read_text().splitlines())
        name = next((text.strip() for key, _, text in fields if key.strip() == "model name"), name)
    number = cores()
    return f"{name}, {number} core{'s' if number > 1 else ''}"


def cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def device() -> str:
    """The kind of JAX's default device; starts JAX."""
    import jax

    return processor() if jax.default_backend() == "cpu" else jax.devices()[0].device_kind


def versions(*packages: str) -> dict[str, str]:
    """Versions of Python and of those packages that are installed."""
    found = {"python": platform.python_version()}
    for package in packages:
        if importlib.util.find_spec(package):
            found[package] = importlib.metadata.version(package)
    return found
