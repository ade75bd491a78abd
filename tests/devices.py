"""Fake CPU devices, which only a process that starts with them has."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np


def run(script: str, *arguments: str, devices: int, **environment: str) -> str:
    """What a test file prints that is run as a script with so many devices; fails if it does."""
    environment |= {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(Path(__file__).resolve().parents[1]),
    }
    done = subprocess.run(
        [sys.executable, script, *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def outcome(script: str, folder: Path) -> dict[str, np.ndarray]:
    """What such a file writes with four devices: python SCRIPT OUT.npz."""
    out = folder / "out.npz"
    run(script, str(out), devices=4, JAX_DISABLE_MOST_OPTIMIZATIONS="1")
    return dict(np.load(out))


def part(values: dict, prefix: str) -> dict:
    """What stands below a prefix; there must be something."""
    found = {k.removeprefix(prefix): v for k, v in values.items() if k.startswith(prefix)}
    assert found
    return found


def compare(got: dict, want: dict, rtol: float = 1e-3, atol: float = 2e-5) -> None:
    """Asserts that both hold the same under the same names."""
    assert got.keys() == want.keys()
    for name, value in want.items():
        np.testing.assert_allclose(got[name], value, rtol=rtol, atol=atol, err_msg=name)
