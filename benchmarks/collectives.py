"""Collectives in a compiled XLA program, read from its text (`compiled.as_text()`)."""

import math
import re
from typing import NamedTuple

KINDS = (
    "all-gather",
    "all-reduce",
    "all-to-all",
    "collective-broadcast",
    "collective-permute",
    "ragged-all-to-all",
    "reduce-scatter",
)
# Bits of an element, by its name in HLO.
_BITS = {"pred": 8, "bf16": 16} | {
    f"{kind}{bits}": bits for kind in "sufc" for bits in (2, 4, 8, 16, 32, 64, 128)
}

# `%name = TYPE opcode(operands), attributes`, TYPE an array or a tuple of arrays. Layouts may hold
# parentheses, as in f32[8,128]{1,0:T(8,128)}, but no opcode.
_INSTRUCTION = re.compile(
    r"^\s*(?:ROOT )?%?(?P<name>[\w.-]+) = (?P<type>.*?) "
    rf"(?P<kind>{'|'.join(KINDS)})(?P<half>-start|-done)?\((?P<rest>.*)"
)
_ARRAY = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,<=]*)\]")
_OP_NAME = re.compile(r'op_name="([^"]*)"')


class Array(NamedTuple):
    """An array that a collective puts out: its dtype as HLO names it, and its shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Size in bytes.

        Raises:
          ValueError: a dtype whose width is not known.
        """
        bits = 8 if self.dtype.startswith("f8e") else _BITS.get(self.dtype)
        if bits is None:
            raise ValueError(f"unknown HLO dtype {self.dtype!r}")
        return math.ceil(math.prod(self.shape) * bits / 8)


class Collective(NamedTuple):
    """One collective of the program.

    Attributes:
      kind: one of `KINDS`.
      arrays: what it puts out on one device. For an all-reduce the operands have the same shapes;
        for an all-gather each is all devices' parts together.
      op_name: the JAX operations that it came from, "" where the text has none.
    """

    kind: str
    arrays: tuple[Array, ...]
    op_name: str

    @property
    def nbytes(self) -> int:
        """Bytes put out on one device."""
        return sum(array.nbytes for array in self.arrays)


def collectives(text: str) -> list[Collective]:
    """The collectives of a program in the order of its text.

    An asynchronous pair (`all-reduce-start`, `all-reduce-done`) counts once, with the result that
    the `-done` puts out. What stands in the body of a loop counts once, however often it runs.

    Args:
      text: of an HLO module.
    """
    found, started = [], {}
    for match in filter(None, map(_INSTRUCTION.match, text.splitlines())):
        op_name = _OP_NAME.search(match["rest"])
        op_name = op_name.group(1) if op_name else ""
        if match["half"] == "-start":
            started[match["name"]] = op_name
            continue
        if match["half"] == "-done":
            # XLA names the operations on both halves or on the first alone.
            names = re.findall(r"[\w.-]+", match["rest"])
            op_name = op_name or next(started[name] for name in names if name in started)
        arrays = tuple(
            Array(dtype, tuple(int(d.removeprefix("<=")) for d in shape.split(",") if d))
            for dtype, shape in _ARRAY.findall(match["type"])
        )
        found.append(Collective(match["kind"], arrays, op_name))
    return found
