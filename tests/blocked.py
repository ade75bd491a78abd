"""A process in which TensorFlow and ml_collections are not installed."""

import os
import subprocess
import sys
from pathlib import Path

from tests.tiny import REPOSITORY

_BLOCKED = ("tensorflow", "tensorflow_datasets", "ml_collections")

_BEFORE = f"""
import sys

BLOCKED = {_BLOCKED}


class Without:
    # A finder of modules that does not know the blocked ones.

    def __init__(self, finder):
        self._finder = finder

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            return None
        return self._finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self._finder, name)


sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
for name in BLOCKED:
    try:
        __import__(name)
    except ModuleNotFoundError:
        continue
    raise SystemExit(f"{{name}} is not blocked")
"""

_AFTER = """
print("LOADED", sorted({name.partition(".")[0] for name in sys.modules} & set(BLOCKED)))
"""


def run(script: str, folder: Path) -> None:
    """Runs a script in such a process, in `folder`; fails if it does, or if it loaded one of them."""
    done = subprocess.run(
        [sys.executable, "-c", _BEFORE + script + _AFTER],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "LOADED []" in done.stdout
