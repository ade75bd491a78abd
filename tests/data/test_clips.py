"""Clip arithmetic on the lengths and frame shapes where it could go wrong."""

import dataclasses
import types

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from skd_jax.data import clips
from skd_jax.data.clips import ClipSettings, sample_test, sample_train
from skd_jax.errors import UserError

SHAPES = ((128, 171), (171, 128), (128, 128), (7, 200), (1, 1))


def draw(num_frames, shape=(128, 171), seed=0, **settings):
    return sample_train(np.random.default_rng(seed), num_frames, *shape, ClipSettings(**settings))


def assert_inside(window, height, width):
    top, left, rows, columns = np.asarray(window, np.int64).T
    assert (np.minimum(top, left) >= 0).all() and (np.minimum(rows, columns) >= 1).all()
    assert (top + rows <= height).all() and (left + columns <= width).all()
    assert (np.maximum(rows, columns) <= min(height, width)).all()


@hypothesis_settings(deadline=None)
@given(
    num_frames=st.integers(1, 100),
    height=st.integers(1, 60),
    width=st.integers(1, 60),
    frames=st.integers(1, 16),
    stride=st.integers(1, 4),
    jitter=st.integers(0, 5),
    views=st.integers(1, 3),
    mode=st.sampled_from(clips.MODES),
    offset=st.integers(0, 20),
    seed=st.integers(0, 2**32),
)
def test_train_views_are_regular_and_inside(
    num_frames, height, width, frames, stride, jitter, views, mode, offset, seed
):
    settings = ClipSettings(
        frames=frames,
        stride=stride,
        stride_jitter=jitter,
        views=views,
        mode=mode,
        max_offset=offset,
    )
    sample = sample_train(np.random.default_rng(seed), num_frames, height, width, settings)
    assert sample.frames.shape == (views, frames) and sample.frames.dtype == np.int32
    assert sample.window.shape == (views, 4) and sample.window.dtype == np.int32
    assert sample.flip.shape == (views,) and sample.flip.dtype == bool
    assert sample.frames.min() >= 0 and sample.frames.max() < num_frames
    assert_inside(sample.window, height, width)
    for view in sample.frames.tolist():
        allowed = range(max(1, stride - jitter), stride + jitter + 1)
        regular = [
            s for s in allowed if view == [(view[0] + s * t) % num_frames for t in range(frames)]
        ]
        assert regular, "one stride within the jitter explains all frames"
        # It loops only where it must: at the smallest explaining stride the clip does not fit.
        if sorted(view) != view:
            assert (frames - 1) * max(regular) + 1 > num_frames


@pytest.mark.parametrize(
    ("num_frames", "expected"),
    [
        (1, [0, 0, 0, 0]),
        (3, [0, 2, 1, 0]),  # T - 1
        (4, [0, 2, 0, 2]),  # T
        (6, [0, 2, 4, 0]),  # one frame short
        (7, [0, 2, 4, 6]),  # exactly the span
    ],
)
def test_short_videos_loop_from_their_start(num_frames, expected):
    for seed in range(5):
        views = draw(num_frames, seed=seed, frames=4, stride=2).frames.tolist()
        assert views == [expected, expected]
    frames, _ = sample_test(num_frames, 8, 8, frames=4, stride=2, clips=3)
    assert frames.tolist() == [expected] * 3


def test_every_start_is_drawn_and_no_other():
    starts = [draw(8, seed=seed, frames=4, stride=2).frames[:, 0] for seed in range(200)]
    assert set(np.concatenate(starts).tolist()) == {0, 1}  # T x stride frames: two places
    first, second = np.array(starts).T
    assert abs(np.mean(first != second) - 0.5) < 0.15, "views start independently"


def test_same_clip_shares_frames_but_not_windows():
    sample = draw(300, mode="same_clip", stride_jitter=1, views=3)
    assert (sample.frames == sample.frames[0]).all()
    assert len({tuple(window) for window in sample.window.tolist()}) == 3
    apart = draw(300, mode="two_clips", views=3)
    assert len(set(apart.frames[:, 0].tolist())) == 3


def test_offset_bounds_the_distance_of_starts():
    away = []
    for seed in range(300):
        first, second = draw(300, seed=seed, mode="offset", max_offset=3).frames[:, 0].tolist()
        assert abs(first - second) <= 3 and 0 <= second <= 300 - 31
        away.append(second - first)
    assert set(away) == set(range(-3, 4))


@pytest.mark.parametrize("mode", clips.MODES)
def test_partners_are_drawn_in_their_own_video_and_change_no_other_view(mode):
    settings = {"mode": mode, "max_offset": 3, "stride_jitter": 1}
    for seed in range(20):
        alone = draw(300, seed=seed, views=2, **settings)
        chosen = ClipSettings(views=4, partners=2, **settings)
        lengths, heights, widths = np.array([(300, 128, 171)] * 2 + [(40, 64, 50), (9, 30, 90)]).T
        sample = sample_train(np.random.default_rng(seed), lengths, heights, widths, chosen)
        for name in ("frames", "window", "flip"):
            np.testing.assert_array_equal(getattr(sample, name)[:2], getattr(alone, name), name)
        assert (sample.frames.max(1) < lengths).all()
        for window, height, width in zip(sample.window[2:], heights[2:], widths[2:], strict=True):
            assert_inside(window[None], height, width)


def test_partners_start_where_they_like():
    starts = []
    for seed in range(300):
        same = ClipSettings(views=3, partners=1, mode="same_clip", stride=1, frames=4)
        sample = sample_train(np.random.default_rng(seed), 40, 8, 8, same)
        assert sample.frames[0].tolist() == sample.frames[1].tolist()
        starts.append((sample.frames[0, 0], sample.frames[2, 0]))
    first, partner = np.array(starts).T
    assert set(partner.tolist()) == set(range(37))
    assert abs(np.corrcoef(first, partner)[0, 1]) < 0.2


def test_stride_jitter_draws_every_stride_of_every_view():
    strides = [
        np.diff(draw(300, seed=s, stride=2, stride_jitter=3).frames[:, :2]) for s in range(200)
    ]
    assert set(np.concatenate(strides).ravel().tolist()) == {1, 2, 3, 4, 5}
    assert np.mean(np.array(strides)[:, 0] != np.array(strides)[:, 1]) > 0.5


def test_windows_have_the_area_and_ratio_asked_for():
    windows = np.concatenate(
        [draw(50, shape=(1000, 1400), seed=s, area=(0.2, 0.5)).window for s in range(500)]
    )
    top, left, rows, columns = windows.T.astype(float)
    area, ratio = rows * columns / 1000**2, columns / rows
    assert 0.199 < area.min() < 0.22 and 0.48 < area.max() < 0.501
    assert 0.745 < ratio.min() < 0.77 and 1.3 < ratio.max() < 1.34
    assert abs(np.mean(ratio > 1) - 0.5) < 0.06, "log-uniform: portrait as often as landscape"
    # Position is uniform over the room that is left, along both axes.
    assert abs(np.mean(top / (1000 - rows)) - 0.5) < 0.05
    assert abs(np.mean(left / (1400 - columns)) - 0.5) < 0.05


@pytest.mark.parametrize("shape", SHAPES)
def test_windows_fit_any_frame(shape):
    for seed in range(20):
        assert_inside(draw(50, shape=shape, seed=seed, ratio=(0.2, 5.0)).window, *shape)
    for crops in (1, 2, 3):
        for fraction in (0.01, 0.875, 1.0):
            _, window = sample_test(50, *shape, frames=4, stride=2, crops=crops, fraction=fraction)
            assert_inside(window, *shape)
            assert (window[:, 2] == window[:, 3]).all()


def test_flip_is_a_fair_coin_of_each_view():
    flips = np.array([draw(50, seed=s).flip for s in range(400)])
    assert (np.abs(flips.mean(0) - 0.5) < 0.1).all()
    assert abs(np.mean(flips[:, 0] == flips[:, 1]) - 0.5) < 0.1
    assert not draw(50, flip=False).flip.any()


def test_draws_repeat_and_views_do_not_depend_on_their_number():
    two, again, three = draw(300), draw(300), draw(300, views=3)
    for field in dataclasses.fields(two):
        values = [getattr(sample, field.name) for sample in (two, again, three)]
        np.testing.assert_array_equal(values[0], values[1])
        np.testing.assert_array_equal(values[0], values[2][:2])
    assert (draw(300, seed=1).window != two.window).any()


def test_test_clips_and_crops_span_the_video():
    frames, window = sample_test(
        100, 128, 172, frames=4, stride=3, clips=3, crops=3, fraction=0.875
    )
    assert frames.shape == (9, 4) and window.shape == (9, 4)
    assert frames.dtype == window.dtype == np.int32
    assert frames[::3].tolist() == [[0, 3, 6, 9], [45, 48, 51, 54], [90, 93, 96, 99]]
    assert window[:3].tolist() == [[8, 0, 112, 112], [8, 30, 112, 112], [8, 60, 112, 112]]
    assert (frames[0] == frames[2]).all() and (window[0] == window[3]).all()
    for room, starts in ((9, [0, 2, 4, 6, 9]), (11, [0, 2, 5, 8, 11]), (34, [0, 8, 17, 25, 34])):
        # torch.linspace(0, room, 5).floor(): torchvision's UniformClipSampler.
        frames, _ = sample_test(room + 4, 128, 172, frames=4, stride=1, clips=5)
        assert frames[:, 0].tolist() == starts
    # A portrait video is cropped from top to bottom, a single clip and crop lie in the middle.
    _, portrait = sample_test(100, 172, 128, frames=4, stride=3, crops=3, fraction=0.875)
    assert portrait[:, :2].tolist() == [[0, 8], [30, 8], [60, 8]]
    frames, window = sample_test(100, 128, 172, frames=4, stride=3, fraction=0.875)
    assert frames.tolist() == [[45, 48, 51, 54]] and window.tolist() == [[8, 30, 112, 112]]


def test_share_of_short_videos():
    split = types.SimpleNamespace(num_frames=np.array([1, 30, 31, 300]))
    assert clips.short_video_share(split, ClipSettings(frames=16, stride=2)) == 0.5
    assert clips.short_video_share(split, ClipSettings(frames=1)) == 0.0


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"mode": "two_clip"}, "two_clips"),
        ({"frames": 0}, "frames=0"),
        ({"stride": 1.5}, "stride=1.5"),
        ({"stride_jitter": -1}, "stride_jitter=-1"),
        ({"area": (0.0, 1.0)}, "area"),
        ({"area": (0.5, 0.2)}, "area"),
        ({"ratio": (2.0, 1.0)}, "ratio"),
    ],
)
def test_bad_settings_are_named(settings, words):
    with pytest.raises(UserError, match=words):
        ClipSettings(**settings)
