"""The pictures of a run: what is in them, and what reading cut metrics gives."""

import itertools
import subprocess
import sys

import matplotlib.image
import numpy as np
import pytest

from skd_jax import report


@pytest.fixture
def figures(monkeypatch):
    """The figures that were saved, in order."""
    saved, save = [], report._save

    def spy(figure, *arguments, **options):
        saved.append(figure)
        save(figure, *arguments, **options)

    monkeypatch.setattr(report, "_save", spy)
    return saved


def pixels(path):
    """uint8 (H, W, 3)"""
    return np.uint8(np.rint(matplotlib.image.imread(path)[..., :3] * 255))


def row(step, split="train", **values):
    return {"step": step, "split": split, **values}


def test_curves_show_what_was_measured(tmp_path, figures):
    rows = [row(step, loss=3.0 / step, top1=step / 10) for step in (1, 2, 4)]
    rows += [row(4, "validation", loss=1.5, top1=0.25), row(5, loss=None)]
    path = tmp_path / "plots" / "curves.png"
    report.plot_curves(rows, path, "demo")
    assert [axes.get_title() for axes in figures[0].axes] == ["Loss", "Top-1 accuracy"]
    loss, top1 = figures[0].axes
    assert [line.get_label() for line in loss.lines] == ["train", "validation"]
    assert loss.lines[0].get_color() != loss.lines[1].get_color()
    np.testing.assert_array_equal(loss.lines[0].get_xydata(), [[1, 3], [2, 1.5], [4, 0.75]])
    np.testing.assert_array_equal(top1.lines[1].get_xydata(), [[4, 0.25]])
    assert loss.get_xlabel() == "step" and figures[0].get_suptitle() == "demo"
    assert pixels(path).std() > 0
    assert [file.name for file in path.parent.iterdir()] == ["curves.png"]  # nothing beside it


def test_view_and_embedding_panels_appear_with_their_metrics(tmp_path, figures):
    values = {"view_agreement": 0.5, "view_cosine": 0.9, "embedding_std": 0.04}
    rows = [row(step, loss=1.0, embedding_rank=float("nan"), **values) for step in (1, 2)]
    report.plot_curves(rows, tmp_path / "curves.png")
    titles = ["Loss", "Agreement of the two views", "Spread of the embedding"]
    assert [axes.get_title() for axes in figures[0].axes] == titles
    agreement = figures[0].axes[1].lines
    assert [line.get_label() for line in agreement] == ["train, same top-1", "train, cosine"]
    assert [line.get_ydata()[0] for line in agreement] == [0.5, 0.9]


def test_many_points_are_drawn_pale_under_their_running_mean(tmp_path, figures):
    noise = np.random.default_rng(0).standard_normal(400)
    noise[100] = np.nan
    report.plot_curves([row(i, loss=x) for i, x in enumerate(noise)], tmp_path / "curves.png")
    raw, mean = figures[0].axes[0].lines
    np.testing.assert_array_equal(raw.get_ydata(), noise)
    smooth = mean.get_ydata()
    assert raw.get_alpha() < 0.5 and len(smooth) == 400
    assert smooth[200] == pytest.approx(noise[190:211].mean())
    assert smooth[105] == pytest.approx(np.nanmean(noise[95:116]))
    assert smooth[0] == pytest.approx(noise[:11].mean())
    assert smooth[-1] == pytest.approx(noise[-11:].mean())


def test_no_rows_still_give_a_picture(tmp_path):
    report.plot_curves([], tmp_path / "curves.png")
    assert pixels(tmp_path / "curves.png").std() > 0


def test_confusion_is_normalised_by_row(tmp_path, figures):
    matrix = np.array([[3, 1, 0], [0, 0, 0], [1, 1, 2]])
    path = tmp_path / "confusion.png"
    report.plot_confusion(matrix, ("a", "b", "c"), path, "Confusion on test")
    axes, bar = figures[0].axes
    share = axes.images[0].get_array()
    np.testing.assert_array_equal(share.filled(-1), [[0.75, 0.25, 0], [-1] * 3, [0.25, 0.25, 0.5]])
    texts = {text.get_position(): text.get_text() for text in axes.texts}
    assert texts == {(0, 0): "75", (1, 0): "25", (0, 2): "25", (1, 2): "25", (2, 2): "50"}
    assert axes.get_title() == "Confusion on test"
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted class", "true class")
    assert bar.get_ylabel() == "share of the true class"
    # The row without examples, 204 of 255 grey, takes a third of the matrix' pixels.
    grey = (pixels(path) == 204).all(axis=-1)
    box = axes.get_window_extent()
    assert grey.sum() > 0.25 * box.width * box.height


@pytest.mark.parametrize("count", [2, 6, 40, 41, 101, 700])
def test_confusion_of_few_and_many_classes_stays_readable(count, tmp_path, figures):
    names = [f"playing instrument {i}" for i in range(count)]
    path = tmp_path / "confusion.png"
    report.plot_confusion(np.eye(count, dtype=int), names, path, "test")
    height, width = pixels(path).shape[:2]
    assert 400 < height < 2000 and 400 < width < 2200
    figure = figures[0]
    figure.draw_without_rendering()  # at its own resolution, which the boxes below are in
    shown = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    step = -(-count // 40)
    assert shown == names[::step]
    boxes = [label.get_window_extent() for label in figure.axes[0].get_xticklabels()]
    assert all(a.x1 <= b.x0 for a, b in itertools.pairwise(boxes))
    assert min(box.y0 for box in boxes) >= 0
    assert min(label.get_window_extent().x0 for label in figure.axes[0].get_yticklabels()) >= 0
    # The matrix itself, not its labels, takes the most of the picture.
    assert figure.axes[0].get_window_extent().width > 0.35 * figure.bbox.width


def test_a_confusion_matrix_of_another_size_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"2 classes.*\(3, 3\)"):
        report.plot_confusion(np.eye(3), ("a", "b"), tmp_path / "confusion.png")


def test_film_strip_shows_the_frames_pixel_by_pixel(tmp_path):
    rng = np.random.default_rng(0)
    videos = {
        "move_left": rng.integers(0, 255, (9, 16, 20, 3), dtype=np.uint8),
        "grow": rng.integers(0, 255, (3, 16, 20, 3), dtype=np.uint8),
    }
    path = tmp_path / "strip.png"
    report.film_strip(videos, path, columns=4, stride=2, scale=2)
    picture = pixels(path)
    for number, video in enumerate(videos.values()):
        for column in range(4):
            bottom = len(picture) - (1 - number) * (32 + 4)
            right = picture.shape[1] - (3 - column) * (40 + 4)
            found = picture[bottom - 32 : bottom, right - 40 : right]
            if 2 * column < len(video):
                expected = video[2 * column].repeat(2, axis=0).repeat(2, axis=1)
            else:
                expected = np.full_like(found, 255)
            np.testing.assert_array_equal(found, expected)
    left = picture[:, : picture.shape[1] - 4 * 44 + 4]
    assert (left < 128).any() and (left[:, 0] == 255).all()  # names, whole


def test_a_failed_drawing_leaves_the_old_picture(tmp_path, monkeypatch):
    path = tmp_path / "curves.png"
    report.plot_curves([row(1, loss=1.0)], path)
    before = path.read_bytes()

    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(report.epath.Path(path)), "write_bytes", fail)
    with pytest.raises(OSError, match="No space left"):
        report.plot_curves([row(1, loss=2.0)], path)
    assert path.read_bytes() == before


def test_needs_neither_pyplot_nor_tensorflow(tmp_path):
    code = (
        "import sys; from skd_jax import report;"
        f"report.plot_curves([dict(step=1, split='train', loss=1.0)], {str(tmp_path / 'a.png')!r});"
        "assert not {'matplotlib.pyplot', 'tensorflow', 'jax'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
