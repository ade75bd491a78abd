"""The cost on paper against numbers worked out by hand."""

import dataclasses

import pytest

from benchmarks import pod_cost
from skd_jax import methods, models
from tests.fakes import Normed

MACHINE = pod_cost.Machine(link=50e9, peak=400e12, utilisation=0.4, latency=20e-6)


def test_ring():
    """Two replicas send the whole, many twice the whole, one nothing."""
    assert pod_cost.ring_seconds(1e9, 1, 1e9) == 0
    assert pod_cost.ring_seconds(1e9, 2, 1e9) == pytest.approx(1)
    assert pod_cost.ring_seconds(1e9, 4, 1e9) == pytest.approx(1.5)
    assert pod_cost.ring_seconds(1e9, 10**6, 1e9) == pytest.approx(2, rel=1e-5)


def test_r3d_18():
    """The README's example; 20 BatchNorms of 4,800 channels in all, a mean and a variance each."""
    method = methods.create("supervised", models.create("r3d_18", num_classes=400))
    work = pod_cost.step_of(method, (16, 112, 112), 32)
    assert (work.parameters, work.statistics, work.metrics) == (33_371_472, 9_600, 2)
    assert work.fused_bytes == 133_524_296
    assert work.batch_norm_bytes == 76_800
    assert work.collectives == 41
    assert work.flops == pytest.approx(6 * 40.697e9 * 32, rel=1e-4)
    computing = 6 * 40.697e9 * 32 / 160e12
    assert pod_cost.computation(work, MACHINE) == pytest.approx(computing, rel=1e-4)
    moving = 2 * 7 / 8 * 133_601_096 / 50e9
    moving += 20e-6 * 41
    assert pod_cost.communication(work, MACHINE, 8) == pytest.approx(moving)
    assert pod_cost.share(work, MACHINE, 8) == pytest.approx(
        moving / (moving + computing), rel=1e-4
    )
    assert pod_cost.communication(work, MACHINE, 1) == pod_cost.share(work, MACHINE, 1) == 0
    heading, one, eight = pod_cost.table(work, MACHINE, [1, 8], 32)
    assert len(heading) == len(one) == len(eight)
    assert one.split()[:4] == ["1", "48.8", "ms", "0.00"]


def test_batch_norms_apart_synchronised_and_passed_by_both_views_together():
    def work(**options):
        options |= {"projector_out": 8, "predictor_hidden": 32}
        return pod_cost.step_of(methods.create("skd_srl", Normed(), **options), (2, 4, 4), 3)

    views_apart, together, local = (
        work(),
        work(views_together=True),
        work(sync_batch_norm=False),
    )
    assert together.batch_norms == 1 + 3 + 1  # classifier, projector, predictor
    # Their widths: 6; hidden 6 and 6, 8; 32.
    assert together.synchronised == together.statistics == 2 * (6 + 6 + 6 + 8 + 32)
    assert views_apart == dataclasses.replace(together, batch_norms=10, synchronised=232)
    assert local == dataclasses.replace(together, batch_norms=0, synchronised=0)
    # 96 pixels to 6 features to 4 classes; 3 videos, 2 views, 6 FLOP a multiply-accumulate.
    assert local.flops == 6 * 3 * 2 * (96 * 6 + 6 * 4)
