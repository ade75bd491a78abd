"""The demo's videos: what they promise about frames, motion and files."""

import dataclasses
import io
import json

import av
import numpy as np
import pytest
import scipy.ndimage
import scipy.stats

from skd_jax.data import synthetic
from skd_jax.errors import UserError

SMALL = synthetic.SyntheticSettings(
    train_per_class=2, validation_per_class=1, test_per_class=1, frames=6, size=32
)
OPPOSITE = {
    "grow": "shrink",
    "move_left": "move_right",
    "move_up": "move_down",
    "rotate_clockwise": "rotate_counterclockwise",
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return synthetic.write_dataset(tmp_path_factory.mktemp("synthetic") / "set", SMALL)


def files(root):
    return {path.relative_to(root).as_posix(): path for path in sorted(root.rglob("*.mp4"))}


def test_writes_an_own_folder_of_readable_files(dataset):
    names = list(files(dataset))
    assert len(names) == 8 * (2 + 1 + 1)
    folders = [tuple(name.split("/")[:2]) for name in names]
    for split, count in {"train": 2, "val": 1, "test": 1}.items():
        assert {m: folders.count((split, m)) for m in synthetic.MOTIONS} == dict.fromkeys(
            synthetic.MOTIONS, count
        )
    for path in files(dataset).values():
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            assert (stream.codec_context.name, stream.average_rate) == ("h264", 12)
            assert (stream.codec_context.width, stream.codec_context.height) == (32, 32)
            assert len(list(container.decode(stream))) == 6


def test_no_two_files_are_alike_and_all_are_the_same_when_written_again(dataset, tmp_path):
    first = {name: path.read_bytes() for name, path in files(dataset).items()}
    assert len(set(first.values())) == len(first)
    again = synthetic.write_dataset(tmp_path / "again", SMALL)
    assert {name: path.read_bytes() for name, path in files(again).items()} == first
    other = synthetic.write_dataset(tmp_path / "other", dataclasses.replace(SMALL, seed=1))
    assert not set(first.values()) & {path.read_bytes() for path in files(other).values()}


def test_more_videos_leave_the_first_ones_as_they_were(dataset, tmp_path):
    more = dataclasses.replace(SMALL, train_per_class=3, validation_per_class=0)
    written = files(synthetic.write_dataset(tmp_path / "more", more))
    name = "train/shrink/train_shrink_0001.mp4"
    assert written[name].read_bytes() == files(dataset)[name].read_bytes()
    assert not any(name.startswith("val/") for name in written)


def test_decoded_files_are_close_to_the_rendering():
    """Luma, since yuv420p halves the resolution of colour."""
    settings = dataclasses.replace(SMALL, size=64)
    luma = np.array([0.299, 0.587, 0.114])
    for number, motion in enumerate(synthetic.MOTIONS):
        frames = synthetic.render(motion, np.random.default_rng(number), settings)
        encoded = synthetic.encode(frames, settings.fps)
        with av.open(io.BytesIO(encoded)) as container:
            decoded = np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])
        assert decoded.shape == frames.shape
        error = np.square((decoded - np.float64(frames)) @ luma).mean(axis=(1, 2))
        assert (10 * np.log10(255**2 / error) > 30).all()


def test_every_frame_is_coded_on_its_own(dataset):
    with av.open(str(next(iter(files(dataset).values())))) as container:
        assert all(packet.is_keyframe for packet in container.demux(video=0) if packet.size)


def test_an_identical_set_is_reused_and_nothing_else_overwritten(dataset, tmp_path):
    before = {name: path.stat().st_mtime_ns for name, path in files(dataset).items()}
    assert synthetic.write_dataset(dataset, SMALL) == dataset
    assert {name: path.stat().st_mtime_ns for name, path in files(dataset).items()} == before
    with pytest.raises(UserError, match=r"other settings: size 32 \(now 48\)"):
        synthetic.write_dataset(dataset, dataclasses.replace(SMALL, size=48))
    (tmp_path / "mine.txt").write_text("not a set")
    with pytest.raises(UserError, match=r"no readable synthetic\.json"):
        synthetic.write_dataset(tmp_path, SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_set_with_a_lost_file_is_named(tmp_path):
    tiny = dataclasses.replace(SMALL, train_per_class=1, validation_per_class=0, test_per_class=0)
    root = synthetic.write_dataset(tmp_path / "set", tiny)
    assert json.loads((root / "synthetic.json").read_text())["train_per_class"] == 1
    (root / "train/grow/train_grow_0000.mp4").unlink()
    with pytest.raises(UserError, match=r"train_grow_0000\.mp4 is missing"):
        synthetic.write_dataset(root, tiny)


def test_of_two_writers_the_slower_takes_what_the_other_wrote(tmp_path, monkeypatch):
    root, write = tmp_path / "set", synthetic._write_videos

    def slowly(partial, settings):
        monkeypatch.setattr(synthetic, "_write_videos", write)
        monkeypatch.setattr(synthetic.os, "getpid", lambda: -1)
        synthetic.write_dataset(root, settings)
        write(partial, settings)

    monkeypatch.setattr(synthetic, "_write_videos", slowly)
    assert synthetic.write_dataset(root, SMALL) == root
    assert list(tmp_path.iterdir()) == [root]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_an_interrupted_set_leaves_nothing(error, tmp_path, monkeypatch):
    encode, calls = synthetic.encode, []

    def encode_twice(*arguments):
        calls.append(arguments)
        if len(calls) > 2:
            raise error
        return encode(*arguments)

    monkeypatch.setattr(synthetic, "encode", encode_twice)
    full = isinstance(error, OSError)
    with pytest.raises(
        UserError if full else KeyboardInterrupt, match="No space left" if full else None
    ):
        synthetic.write_dataset(tmp_path / "set", SMALL)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "change", [{"size": 33}, {"size": 8}, {"frames": 0}, {"fps": 0}, {"test_per_class": -1}]
)
def test_impossible_settings_are_named(change):
    with pytest.raises(UserError, match=next(iter(change))):
        synthetic.SyntheticSettings(**change)


def test_an_unknown_motion_is_named():
    with pytest.raises(UserError, match="'jump'.*move_left"):
        synthetic.render("jump", np.random.default_rng(0), SMALL)


def trajectories(motion, count, settings=SMALL):
    drawn = [
        synthetic.draw_trajectory(motion, np.random.default_rng([7, i]), settings)
        for i in range(count)
    ]
    return {
        field.name: np.stack([getattr(one, field.name) for one in drawn])
        for field in dataclasses.fields(synthetic.Trajectory)
    }


@pytest.mark.parametrize("motion", synthetic.MOTIONS)
def test_at_every_frame_position_angle_and_log_size_are_uniform(motion):
    paths = trajectories(motion, 600)
    low, high = np.log(paths["radius"].min()), np.log(paths["radius"].max())
    unit = {
        "x": paths["x"],
        "y": paths["y"],
        "angle": paths["angle"] / (2 * np.pi),
        "radius": (np.log(paths["radius"]) - low) / (high - low),
    }
    for frame in (0, 1, 5):
        for name, values in unit.items():
            assert scipy.stats.kstest(values[:, frame], "uniform").pvalue > 1e-3, (name, frame)


@pytest.mark.parametrize("motion", OPPOSITE)
def test_a_motion_is_its_opposite_played_backwards(motion):
    """With the same start and speed, the two differ in the sign of what they add per frame."""
    forth, back = trajectories(motion, 50), trajectories(OPPOSITE[motion], 50)
    moving = []
    for name, period in (
        ("x", 1.0),
        ("y", 1.0),
        ("angle", 2 * np.pi),
        ("radius", np.log(0.49 / 0.13)),
    ):
        a, b = (np.log(p[name]) if name == "radius" else p[name] for p in (forth, back))
        np.testing.assert_array_equal(a[:, 0], b[:, 0])
        ahead, behind = (around(np.diff(path, axis=1), period) for path in (a, b))
        np.testing.assert_allclose(ahead, -behind, atol=1e-9)
        np.testing.assert_allclose(ahead, ahead[:, :1].repeat(5, axis=1), atol=1e-9)
        moving += [name] * bool(np.abs(ahead).min() > 1e-3)
        assert name in moving or np.abs(ahead).max() < 1e-9
    expected = {"move_left": "x", "move_up": "y", "grow": "radius", "rotate_clockwise": "angle"}
    assert moving == [expected[motion]]


def around(difference, period):
    """`difference` on a circle of that period, in [-period / 2, period / 2)."""
    return (difference + period / 2) % period - period / 2


def test_motions_go_the_way_their_names_say():
    """In the picture's axes: y points down, so that an angle grows clockwise."""
    axis = {"move_left": ("x", -1), "move_right": ("x", 1), "move_up": ("y", -1)}
    axis |= {"move_down": ("y", 1), "grow": ("radius", 1), "shrink": ("radius", -1)}
    axis |= {"rotate_clockwise": ("angle", 1), "rotate_counterclockwise": ("angle", -1)}
    for motion, (name, sign) in axis.items():
        steps = sign * np.diff(trajectories(motion, 20)[name], axis=1)
        assert np.median(steps) > 0, motion  # the median passes over the wraps


def test_an_angle_turns_the_object_clockwise():
    """A pointer to the right at angle 0 points down after a quarter of a turn."""
    pointer = np.full(1024, 0.1, np.float32)
    pointer[:64] = pointer[-64:] = 1
    middle, radius = np.full(2, 0.5), np.full(2, 0.4)
    path = synthetic.Trajectory(middle, middle, np.array([0, np.pi / 2]), radius)
    where, alpha, _, _ = synthetic._object_pixels(pointer, path, 64)
    frame, y, x = np.unravel_index(where, (2, 64, 64))
    centre = [
        np.average(np.stack([x, y])[:, frame == t], axis=1, weights=alpha[frame == t]) - 31.5
        for t in (0, 1)
    ]
    assert centre[0][0] > 8 and abs(centre[0][1]) < 0.5
    assert centre[1][1] > 8 and abs(centre[1][0]) < 0.5


def test_what_is_drawn_follows_the_trajectory():
    """The centre of the object's pixels, a mean on the torus, is where it should be."""
    for motion in ("move_left", "move_down", "grow"):
        path = synthetic.draw_trajectory(motion, np.random.default_rng(3), SMALL)
        where, alpha, _, _ = synthetic._object_pixels(np.ones(1024, np.float32), path, 32)
        mask = np.zeros(6 * 32 * 32)
        mask[where] = alpha
        mask = mask.reshape(6, 32, 32)
        wave = np.exp(2j * np.pi * (np.arange(32) + 0.5) / 32)
        for name, profile in (("x", mask.sum(1)), ("y", mask.sum(2))):
            centre = np.angle(profile @ wave) / (2 * np.pi) % 1.0
            np.testing.assert_allclose(around(centre - getattr(path, name), 1.0), 0, atol=0.01)
        # The object stays whole while it wraps around: a disc's area at every frame.
        np.testing.assert_allclose(mask.sum((1, 2)), np.pi * (32 * path.radius) ** 2, rtol=0.02)


# What can be told from a frame, and what from a pair of frames, by least squares.
COUNT = 60  # videos of each class, half to fit and half to score


def labelled_videos(settings):
    videos = [
        synthetic.render(motion, np.random.default_rng([5, label, number]), settings)
        for label, motion in enumerate(synthetic.MOTIONS)
        for number in range(COUNT)
    ]
    return np.stack(videos) @ np.array([0.299, 0.587, 0.114]) / 255


def frame_features(grey):
    """Grey values on 8 x 8 cells and histograms of oriented gradients on 4 x 4, of (N, H, W)."""
    count, size = grey.shape[:2]
    gy, gx = np.gradient(grey, axis=(1, 2))
    orientation = np.int32(np.arctan2(gy, gx) / (2 * np.pi) * 8) % 8
    energy = np.hypot(gx, gy)[..., None] * (orientation[..., None] == np.arange(8))
    hog = np.sqrt(energy.reshape(count, 4, size // 4, 4, size // 4, 8).mean((2, 4)))
    cells = grey.reshape(count, 8, size // 8, 8, size // 8).mean((2, 4))
    return np.concatenate([hog.reshape(count, -1), cells.reshape(count, -1)], axis=1)


def motion_features(grey):
    """Mean, curl and divergence of Lucas and Kanade's optical flow of frame pairs (N, 2, H, W)."""

    def smooth(image, sigma):
        return scipy.ndimage.gaussian_filter(image, (0, sigma, sigma), mode="wrap")

    def slope(image, axis):
        return (np.roll(image, -1, axis) - np.roll(image, 1, axis)) / 2

    first, second = smooth(grey[:, 0], 1), smooth(grey[:, 1], 1)
    x, y, t = slope(first + second, 2) / 2, slope(first + second, 1) / 2, second - first
    xx, yy, xy, xt, yt = (smooth(product, 2.5) for product in (x * x, y * y, x * y, x * t, y * t))
    xx, yy = xx + 1e-4, yy + 1e-4
    corner = xx * yy - xy**2
    u, v = (xy * yt - yy * xt) / corner, (xy * xt - xx * yt) / corner
    weight = corner / (xx + yy)
    fields = np.stack([u, v, slope(v, 2) - slope(u, 1), slope(u, 2) + slope(v, 1)], axis=-1)
    return np.average(fields, axis=(1, 2), weights=np.broadcast_to(weight[..., None], fields.shape))


def held_out_accuracy(features):
    features = (features - features.mean(0)) / features.std(0)
    features = np.concatenate([features, np.ones((len(features), 1))], axis=1)
    labels, fit = np.repeat(np.arange(8), COUNT), np.arange(8 * COUNT) % 2 == 0
    gram = features[fit].T @ features[fit] + np.eye(features.shape[1])
    weights = np.linalg.solve(gram, features[fit].T @ np.eye(8)[labels[fit]])
    return np.mean(np.argmax(features[~fit] @ weights, axis=1) == labels[~fit])


def test_a_frame_does_not_tell_the_class_but_motion_does():
    """240 scored videos: at chance, 0.125, an accuracy of 0.21 is four standard deviations up."""
    grey = labelled_videos(dataclasses.replace(SMALL, frames=4))
    for frame in (0, 2):
        assert held_out_accuracy(frame_features(grey[:, frame])) < 0.21
    pairs = [motion_features(grey[:, frame : frame + 2]) for frame in range(3)]
    assert held_out_accuracy(np.median(pairs, axis=0)) > 0.6


def test_the_frame_classifier_would_see_a_leak(monkeypatch):
    """Were all objects to start in the middle, their place some frames later would tell."""
    draw = synthetic.draw_trajectory

    def centred(*arguments):
        path = draw(*arguments)
        x, y = ((c - c[0] + 0.5) % 1.0 for c in (path.x, path.y))
        return dataclasses.replace(path, x=x, y=y)

    monkeypatch.setattr(synthetic, "draw_trajectory", centred)
    grey = labelled_videos(dataclasses.replace(SMALL, frames=5))
    assert held_out_accuracy(frame_features(grey[:, 4])) > 0.25
