"""Look-up of things by the names users type."""

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

from skd_jax.errors import UserError

T = TypeVar("T")

_MOST, _SHOWN = 15, 10  # More than `_MOST` names are cut to `_SHOWN`: Kinetics has 400 classes.


def unknown(kind: str, name: str, known: Iterable[str]) -> UserError:
    """The error for a name that does not exist, with the nearest one that does, in any case."""
    known = sorted(known)
    lower = {candidate.lower(): candidate for candidate in known}
    near = difflib.get_close_matches(str(name).lower(), lower, n=1, cutoff=0.5)
    hint = f"; did you mean {lower[near[0]]!r}?" if near else "."
    more = f", ... ({len(known)} in all)" if len(known) > _MOST else ""
    shown = ", ".join(known[:_SHOWN] if more else known)
    return UserError(f"unknown {kind} {name!r}{hint} Known: {shown}{more}")


def look_up(kind: str, name: str, table: Mapping[str, T]) -> T:
    """`table[name]`, or a UserError that names the nearest key."""
    if name not in table:
        raise unknown(kind, name, table)
    return table[name]
