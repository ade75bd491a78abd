import jax
import pytest

from benchmarks import method_cost
from skd_jax import methods
from tests.fakes import quick_compilation  # noqa: F401  a fixture
from tests.methods.staged import Staged

CLIP, CLIPS = (4, 8), 8


@pytest.fixture(autouse=True)
def few_classes(monkeypatch):
    monkeypatch.setattr(method_cost, "CLASSES", 4)


def test_rows_say_what_training_carries():
    network, teacher = Staged(), Staged(channels=(4, 6, 8))
    reference = method_cost.Step(methods.create("supervised", network), CLIP, CLIPS)
    assert reference.extra == 0

    def row(name):
        return method_cost.cost(name, network, teacher, CLIP, CLIPS, reference, 1, 0.0)

    supervised, two_views, taught, staged = map(row, ("supervised", "skd_srl", "kd", "srm"))
    assert [r["views"] for r in (supervised, two_views, taught, staged)] == [1, 2, 1, 1]
    assert supervised["extra"] == taught["extra"] == 0
    assert supervised["memory"] == 1 and taught["memory"] > 1
    heads = jax.eval_shape(
        methods.create("skd_srl", network).init, jax.random.key(0), jax.numpy.zeros((1, 4, 8, 8, 3))
    )["params"]
    heads.pop("model")
    assert two_views["extra"] == sum(x.size for x in jax.tree.leaves(heads)) > 0
    assert staged["extra"] > 0
    past = row("skd_srl_past")  # the same networks, and the best past model's parameters
    assert past["extra"] == two_views["extra"] and past["bytes"] > two_views["bytes"]
    table = method_cost.markdown([supervised, two_views])
    assert table.count("\n") == 3 and "| `skd_srl` | 2 |" in table and "none" in table


def test_clips_that_do_not_divide_are_told():
    method = methods.create("skd_srl", Staged())
    with pytest.raises(SystemExit, match="--clips 7 is no multiple of the 2 clips"):
        method_cost.Step(method, CLIP, 7)
