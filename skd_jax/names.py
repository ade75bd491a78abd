"""Look-up of things by the names users type."""

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

from skd_jax.errors import UserError

T = TypeVar("T")


def unknown(kind: str, name: str, known: Iterable[str]) -> UserError:
    """The error for a name that does not exist, with the nearest one that does."""
    known = list(known)
    near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    return UserError(f"unknown {kind} {name!r}{hint} Known: {', '.join(sorted(known))}")


def look_up(kind: str, name: str, table: Mapping[str, T]) -> T:
    """`table[name]`, or a UserError that names the nearest key."""
    if name not in table:
        raise unknown(kind, name, table)
    return table[name]
