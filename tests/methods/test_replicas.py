"""What compares examples, and networks with statistics of their own: four devices equal one.

As a script this file runs what is compared and writes it down; the tests run it again in a process
with four fake CPU devices: python tests/methods/test_replicas.py OUT.npz
"""

import sys

import numpy as np
import pytest

from skd_jax import methods
from tests.devices import compare, outcome, part
from tests.fakes import quick_compilation  # noqa: F401  a fixture
from tests.methods.staged import Staged
from tests.test_parallel import train

EQUAL = {
    "bake": {"num_partners": 1},
    "ddgsd": {"lambda_mmd": 10.0},
    "dks": {},
    "frskd": {"width": 1, "depth": 1},
    "hsakd": {"head_share": 0.0},
    "pkt": {},
    "rkd": {},
    "sp": {},
    "sskd": {"head_share": 0.0},
}
# Every replica draws for itself: only that all end with the same can be asked for.
DRAWING = {"crd": {"negatives": 8}, "mixskd": {}}


def everything() -> dict[str, np.ndarray]:
    """State and metrics after two steps of each method."""
    found = {}
    for name, options in (EQUAL | DRAWING).items():
        given = {"teacher": Staged(channels=(4, 5, 6))} if methods.takes_teacher(name) else {}
        method = methods.create(name, Staged(), num_videos=8, **given, **options)
        state, metrics = train("pmap", method=method)
        found |= {f"{name}/{key}": value for key, value in (state | metrics).items()}
    return found


@pytest.fixture(scope="module")
def one():
    return everything()


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    return outcome(__file__, tmp_path_factory.mktemp("four"))


@pytest.mark.parametrize("name", EQUAL)
def test_four_devices_equal_one(one, four, name):
    compare(part(four, f"{name}/"), part(one, f"{name}/"))


@pytest.mark.parametrize("name", DRAWING)
def test_four_devices_end_with_as_much(one, four, name):
    got, want = (part(values, f"{name}/") for values in (four, one))
    assert {k: v.shape for k, v in got.items()} == {k: v.shape for k, v in want.items()}
    assert all(np.isfinite(v).all() for v in got.values())


def test_what_every_video_leaves_does_not_depend_on_the_devices(one, four):
    """CRD remembers the teacher's embeddings, whatever the negatives."""
    for name in ("label", "memory.teacher"):
        key = f"crd/method_state.{name}"
        np.testing.assert_allclose(four[key], one[key], rtol=0.05, atol=0.02)


if __name__ == "__main__":
    np.savez(sys.argv[1], **everything())
