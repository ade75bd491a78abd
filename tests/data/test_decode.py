"""Decoding against pixels that the tests drew, and against the untouched real files."""

import contextlib
import fractions
import math
import pickle
import struct

import av
import numpy as np
import pytest
from PIL import Image

from skd_jax.data import decode as decode_lib
from skd_jax.data.decode import DecodeError, decode, iter_frames

WIDTH, HEIGHT = 96, 64


def quadrants(level: int = 200) -> np.ndarray:
    """A picture that shows which way up it is: red, green / blue, white quarters."""
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    top, left = HEIGHT // 2, WIDTH // 2
    image[:top, :left, 0] = level
    image[:top, left:, 1] = level
    image[top:, :left, 2] = level
    image[top:, left:] = level
    return image


def grey(index: int) -> np.ndarray:
    """Frame number as brightness: 16, 20, 24 ..."""
    return np.full((HEIGHT, WIDTH, 3), 16 + 4 * index, np.uint8)


def frame_number(frame: np.ndarray) -> int:
    return round((float(frame.mean()) - 16) / 4)


def write_video(
    path, images, codec="libx264", pts=None, audio=False, options=None, muxer=None, rate=25
):
    """Muxes the images at an even rate, or with time stamps in milliseconds."""
    with av.open(str(path), "w", options=muxer or {}) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = images[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.options = options or {}
        sound = container.add_stream("aac", rate=16000) if audio else None
        if pts is not None:
            stream.codec_context.time_base = fractions.Fraction(1, 1000)
        for index, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            if pts is not None:
                frame.pts, frame.time_base = pts[index], fractions.Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if sound is not None:
            silence = av.AudioFrame.from_ndarray(
                np.zeros((1, 1024), np.float32), format="fltp", layout="mono"
            )
            silence.sample_rate = 16000
            container.mux(sound.encode(silence))
            container.mux(sound.encode(None))
    return path


def set_display_matrix(path, a, b, c, d):
    """Rewrites the matrix in an mp4's track header, as phones do instead of turning pixels."""
    data = bytearray(path.read_bytes())
    header = data.index(b"tkhd")
    assert data[header + 4] == 0  # Version 0: 32-bit times.
    matrix = header + 8 + 20 + 16
    assert struct.unpack_from(">9i", data, matrix) == (1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    values = (a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    struct.pack_into(">9i", data, matrix, *values)
    path.write_bytes(data)


def test_pixels_and_rate(tmp_path):
    path = write_video(tmp_path / "v.mp4", [quadrants()] * 10, audio=True)
    decoded = decode(path, short_side=None, max_fps=None)
    assert decoded.frames.shape == (10, HEIGHT, WIDTH, 3) and decoded.frames.dtype == np.uint8
    assert decoded.fps == pytest.approx(25)
    assert decoded.notes == ()
    error = np.abs(decoded.frames.astype(int) - quadrants())
    assert np.median(error) <= 4 and error.mean() < 6  # Lossy, and soft only at the borders.


# The matrix maps a stored pixel (x, y) to the place it is shown at, (ax + cy, bx + dy).
@pytest.mark.parametrize(
    ("matrix", "shown"),
    [
        ((0, 1, -1, 0), lambda x: np.rot90(x, -1, (1, 2))),  # A quarter turn clockwise.
        ((0, -1, 1, 0), lambda x: np.rot90(x, 1, (1, 2))),
        ((-1, 0, 0, -1), lambda x: np.rot90(x, 2, (1, 2))),
        ((-1, 0, 0, 1), lambda x: x[:, :, ::-1]),  # Mirrored, as by a front camera.
        ((1, 0, 0, -1), lambda x: x[:, ::-1]),
        ((0, 1, 1, 0), lambda x: x.transpose(0, 2, 1, 3)),
    ],
)
def test_display_matrix(tmp_path, matrix, shown):
    path = write_video(tmp_path / "v.mp4", [quadrants()] * 3)
    plain = decode(path, short_side=None, max_fps=None).frames
    small = decode(path, short_side=32, max_fps=None).frames
    set_display_matrix(path, *matrix)
    np.testing.assert_array_equal(decode(path, short_side=None, max_fps=None).frames, shown(plain))
    np.testing.assert_array_equal(decode(path, short_side=32, max_fps=None).frames, shown(small))


def test_rotation_sign_agrees_with_pyav(tmp_path):
    path = write_video(tmp_path / "v.mp4", [quadrants()] * 2)
    plain = decode(path, short_side=None, max_fps=None).frames
    set_display_matrix(path, 0, 1, -1, 0)
    with av.open(str(path)) as container:
        counterclockwise = next(container.decode(video=0)).rotation
    assert counterclockwise == -90
    turned = np.rot90(plain, counterclockwise // 90, (1, 2))
    np.testing.assert_array_equal(decode(path, short_side=None, max_fps=None).frames, turned)


def test_foreign_metadata_encoding(tmp_path):
    path = tmp_path / "v.avi"
    with av.open(str(path), "w") as container:
        container.metadata["title"] = "a cafe"
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for _ in range(5):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(quadrants(), format="rgb24")))
        container.mux(stream.encode(None))
    data = path.read_bytes()
    assert data.count(b"a cafe") == 1
    path.write_bytes(data.replace(b"a cafe", "a café".encode("latin-1")))
    if int(av.__version__.split(".")[0]) < 19:  # Later ones escape what they cannot read.
        with pytest.raises(UnicodeDecodeError):
            av.open(str(path))
    assert len(decode(path, short_side=None, max_fps=None).frames) == 5


@pytest.mark.parametrize(
    ("size", "short_side", "expected"),
    [
        ((64, 96), 32, (32, 48)),
        ((96, 64), 32, (48, 32)),  # Portrait.
        ((64, 96), 80, (80, 120)),  # Enlarged.
        ((66, 98), 33, (33, 49)),
    ],
)
def test_short_side(tmp_path, size, short_side, expected):
    images = [np.zeros((*size, 3), np.uint8)] * 2
    path = write_video(tmp_path / "v.avi", images, codec="mpeg4")
    assert decode(path, short_side=short_side, max_fps=None).frames.shape[1:3] == expected


def test_resizing_does_not_alias(shared):
    path = shared / "fixtures" / "kinetics" / "R6llTwEh07w.mp4"
    size = (64, 85)
    stream = iter_frames(path, short_side=64, max_fps=None, max_frames=3)
    small = np.stack(list(stream)).astype(float)
    full = decode(path, short_side=None, max_fps=None, max_frames=3).frames
    filtered = [Image.fromarray(f).resize(size[::-1], Image.Resampling.BILINEAR) for f in full]
    nearest = [Image.fromarray(f).resize(size[::-1], Image.Resampling.NEAREST) for f in full]
    assert np.abs(small - np.stack(filtered)).mean() < 1
    assert np.abs(small - np.stack(nearest)).mean() > 4


def test_frame_cap_on_a_constant_rate(tmp_path):
    path = write_video(tmp_path / "v.mp4", [grey(i) for i in range(50)])

    def picked(max_fps):
        decoded = decode(path, short_side=None, max_fps=max_fps)
        return decoded.fps, [frame_number(f) for f in decoded.frames]

    assert picked(12.5) == (12.5, list(range(0, 50, 2)))
    assert picked(5.0) == (5.0, list(range(0, 50, 5)))
    assert picked(60.0) == (pytest.approx(25), list(range(50)))  # A cap adds nothing.
    # No whole ratio: the frame on screen at each tick.
    fps, frames = picked(10.0)
    assert fps == 10.0 and frames == [math.floor(2.5 * k) for k in range(20)]
    fps, frames = picked(15.0)
    assert fps == 15.0 and frames == [5 * k // 3 for k in range(30)]


def test_frame_cap_picks_as_torchvision_does(tmp_path):
    """floor(k * rate / cap), as `VideoClips._resample_video_idx`."""
    ntsc = fractions.Fraction(30000, 1001)
    images = [grey(i) for i in range(40)]
    path = write_video(tmp_path / "v.mp4", images, rate=ntsc)
    frames = decode(path, short_side=None, max_fps=15.0).frames
    assert [frame_number(f) for f in frames] == [int(k * ntsc / 15) for k in range(len(frames))]
    assert len(frames) == 21
    # Time stamps rounded to the next millisecond do not miss their ticks.
    times = [math.ceil(i * 100 / 3) for i in range(40)]
    path = write_video(tmp_path / "v.mkv", images, pts=times, rate=30)
    frames = decode(path, short_side=None, max_fps=15.0).frames
    assert [frame_number(f) for f in frames] == list(range(0, 40, 2))


def test_variable_frame_rate(tmp_path):
    # 20 frames at 50 fps, then 11 at 10 fps, in a container with true time stamps.
    times = [20 * i for i in range(20)] + [400 + 100 * i for i in range(11)]
    path = write_video(tmp_path / "v.mkv", [grey(i) for i in range(31)], pts=times)
    everything = decode(path, short_side=None, max_fps=None)
    assert [frame_number(f) for f in everything.frames] == list(range(31))
    assert everything.fps == pytest.approx(30 / 1.4, rel=1e-3)
    capped = decode(path, short_side=None, max_fps=10.0)
    assert capped.fps == 10.0
    assert [frame_number(f) for f in capped.frames] == [0, 5, 10, 15, *range(20, 31)]
    # On a finer grid the slow part is held, so that equal steps are equal times.
    fine = decode(path, short_side=None, max_fps=20.0)
    assert fine.fps == 20.0 and len(fine.frames) == 29
    assert [frame_number(f) for f in fine.frames[8:14]] == [20, 20, 21, 21, 22, 22]


def test_broken_clock_does_not_fill_the_memory(tmp_path):
    times = [40 * i for i in range(10)] + [10_000_000 + 40 * i for i in range(10)]
    path = write_video(tmp_path / "v.mkv", [grey(i) for i in range(20)], pts=times)
    # The average rate of such a file is nonsense; what counts is that nothing fills the hours.
    decoded = decode(path, short_side=None, max_fps=25.0)
    assert 2 <= len(decoded.frames) <= 100


def test_max_frames_and_streaming(tmp_path):
    path = write_video(tmp_path / "v.mp4", [grey(i) for i in range(20)])
    decoded = decode(path, short_side=32, max_fps=None, max_frames=7)
    assert [frame_number(f) for f in decoded.frames] == list(range(7))
    assert decoded.notes == ("cut after the first 7 frames",)
    assert decode(path, short_side=32, max_fps=None, max_frames=20).notes == ()
    stream = iter_frames(path, short_side=32, max_fps=None)
    first = next(iter(stream))
    assert frame_number(first) == 0 and stream.count == 1  # Nothing else was decoded for it.
    with pytest.raises(DecodeError, match="only 20 frames, at least 21 are needed"):
        decode(path, short_side=32, max_fps=None, min_frames=21)


@pytest.mark.parametrize("suffix", ["avi", "mkv"])
def test_truncated(tmp_path, suffix):
    noise = np.random.default_rng(0).integers(0, 255, (40, HEIGHT, WIDTH, 3), np.uint8)
    path = write_video(tmp_path / f"v.{suffix}", list(noise), codec="mpeg4")
    whole = decode(path, short_side=None, max_fps=None).frames
    assert len(whole) == 40
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    part = decode(path, short_side=None, max_fps=None)
    assert 10 < len(part.frames) < 30
    np.testing.assert_array_equal(part.frames[:10], whole[:10])
    assert any("truncated" in note for note in part.notes)
    with pytest.raises(DecodeError, match="only .* frames.*truncated"):
        decode(path, short_side=None, max_fps=None, min_frames=40)


def test_truncated_after_the_index(tmp_path):
    """What an interrupted download of a web video is: the index comes first, the data end early."""
    noise = np.random.default_rng(0).integers(0, 255, (40, HEIGHT, WIDTH, 3), np.uint8)
    path = write_video(
        tmp_path / "v.mp4", list(noise), codec="mpeg4", muxer={"movflags": "faststart"}
    )
    whole = decode(path, short_side=None, max_fps=None).frames
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    part = decode(path, short_side=None, max_fps=None)
    assert 10 < len(part.frames) < 30
    np.testing.assert_array_equal(part.frames[:10], whole[:10])
    assert any("truncated" in note for note in part.notes)


def test_truncated_before_the_index(tmp_path):
    path = write_video(tmp_path / "v.mp4", [grey(i) for i in range(20)])  # The index comes last.
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DecodeError, match="invalid data"):
        decode(path, short_side=None, max_fps=None)


def test_refused(tmp_path):
    def reason(name, content):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(DecodeError) as caught:
            decode(path, short_side=None, max_fps=None)
        assert caught.value.path == str(path)
        return caught.value.reason

    picture = tmp_path / "picture.png"
    Image.fromarray(quadrants()).save(picture)
    assert "empty" in reason("zero.mp4", b"")
    assert "invalid data" in reason("text.mp4", b"no video here\n" * 50)
    assert "still picture or text" in reason("notes.txt", b"no video here\n" * 50)
    assert "still picture or text" in reason("picture.mp4", picture.read_bytes())
    with pytest.raises(DecodeError, match="no such file"):
        decode(tmp_path / "absent.mp4", short_side=None, max_fps=None)
    with pytest.raises(DecodeError, match="folder"):
        decode(tmp_path, short_side=None, max_fps=None)


def test_sound_only(tmp_path):
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(
            np.zeros((1, 1024), np.float32), format="fltp", layout="mono"
        )
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(DecodeError, match=r"no video stream \(it holds audio\)"):
        decode(path, short_side=None, max_fps=None)


def test_error_crosses_processes():
    error = pickle.loads(pickle.dumps(DecodeError("a.mp4", "because")))
    assert (error.path, error.reason, str(error)) == ("a.mp4", "because", "a.mp4: because")


def test_awkward_file_names(tmp_path, monkeypatch):
    source = write_video(tmp_path / "v.mp4", [grey(0)] * 2)
    monkeypatch.chdir(tmp_path)
    for name in ("http:a.mp4", "50% [x] #1 é.mp4"):
        (tmp_path / name).write_bytes(source.read_bytes())
        assert len(decode(name, short_side=None, max_fps=None).frames) == 2


# Counts are those the headers announce (HMDB51 announce one more than they hold); sizes keep the
# aspect of the originals.
@pytest.mark.parametrize(
    ("name", "shape", "fps"),
    [
        ("ucf101/v_Basketball_g01_c01.avi", (141, 128, 171, 3), 30000 / 1001),
        ("ucf101/v_SoccerJuggling_g23_c01.avi", (240, 128, 171, 3), 30000 / 1001),
        ("hmdb51/RATRACE_wave_f_nm_np1_fr_goo_37.avi", (72, 128, 299, 3), 30),
        ("hmdb51/SchoolRulesHowTheyHelpUs_wave_f_nm_np1_ba_med_0.avi", (74, 128, 171, 3), 30),
        ("kinetics/R6llTwEh07w.mp4", (303, 128, 170, 3), 30),
        ("kinetics/abseiling_k400.mp4", (250, 128, 227, 3), 25),
    ],
)
def test_real_files(shared, name, shape, fps):
    decoded = decode(shared / "fixtures" / name, short_side=128, max_fps=None)
    assert decoded.frames.shape == shape
    assert decoded.fps == pytest.approx(fps)
    assert decoded.notes == ()
    assert 20 < decoded.frames.mean() < 235 and decoded.frames.std() > 10


def test_real_avi_with_b_frames_is_thinned_evenly(shared):
    # FFmpeg's time stamps of this file are out of order (1, 4, 3, 5, 7, 6 ... frames).
    path = shared / "fixtures" / "hmdb51" / "RATRACE_wave_f_nm_np1_fr_goo_37.avi"
    whole = decode(path, short_side=64, max_fps=None).frames
    half = decode(path, short_side=64, max_fps=15.0).frames
    np.testing.assert_array_equal(half, whole[::2])


def test_real_damaged_file(shared):
    decoded = decode(shared / "fixtures" / "broken" / "corrupted.mp4", short_side=128, max_fps=None)
    assert decoded.frames.shape == (49, 128, 228, 3)
    assert decoded.notes == ("damaged packets passed over: 1",)


def test_mid_stream_reading_fault_keeps_what_came_before(tmp_path, monkeypatch):
    images = [grey(i) for i in range(20)]
    path = write_video(tmp_path / "v.mp4", images, options={"bf": "0"})
    original = decode_lib._open

    class Failing:
        """A container whose file cannot be read beyond ten packets."""

        def __init__(self, container):
            self._container = container

        def __getattr__(self, name):
            return getattr(self._container, name)

        def demux(self, stream):
            for index, packet in enumerate(self._container.demux(stream)):
                if index == 10:
                    raise OSError(5, "Input/output error")
                yield packet

    @contextlib.contextmanager
    def opened(path):
        with original(path) as container:
            yield Failing(container)

    monkeypatch.setattr(decode_lib, "_open", opened)
    decoded = decode(path, short_side=None, max_fps=None)
    assert [frame_number(f) for f in decoded.frames] == list(range(10))
    assert decoded.notes[0] == "the file breaks off (Input/output error)"
