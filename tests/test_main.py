"""The program as its users run it: train, kill, go on, evaluate, predict, several processes."""

import shutil
import signal
import socket
import time

import jax
import numpy as np
import pytest

from skd_jax import checkpoint, metrics, models, modes
from skd_jax.data import prepared
from tests import tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("main")


@pytest.fixture(scope="module")
def cache(folder):
    """One compilation for all the processes of this file."""
    return {
        "JAX_COMPILATION_CACHE_DIR": str(folder / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5",
    }


@pytest.fixture(scope="module")
def trained(folder, cache):
    """An uninterrupted run: (workdir, what it printed)."""
    workdir = folder / "whole"
    status, output = tiny.run(f"--workdir={workdir}", *tiny.arguments(folder), **cache)
    assert status == 0, output
    return workdir, output


def final_state(workdir) -> dict[str, np.ndarray]:
    checkpoints = checkpoint.Checkpoints(workdir / "checkpoints")
    return checkpoints.restore(checkpoints.steps()[-1])


def wait_for(path, process, seconds=240):
    end = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, f"ended before {path.name}: {process.stdout.read()}"
        assert time.monotonic() < end, f"no {path} in {seconds} s"
        time.sleep(0.005)


def test_training_leaves_results_and_says_where(trained):
    workdir, output = trained
    results = tiny.read(workdir / "results.json")
    assert results["split"] == "test"
    assert results["videos"] == 16 and results["clips"] == 32
    assert sum(entry["videos"] for entry in results["per_class"].values()) == 16
    assert np.sum(results["confusion"]) == 16
    assert results["top1"] == np.trace(results["confusion"]) / 16
    info = prepared.load_info(workdir.parent / "prepared")
    assert results["data"]["fingerprint"] == info["fingerprint"]
    assert results["split_source"] and results["seed"] == 0
    assert results["versions"]["jax"] == jax.__version__
    for name in ("curves.png", "confusion_test.png"):
        assert (workdir / name).read_bytes().startswith(b"\x89PNG"), name
    for words in (
        "preparing",
        "validation top-1",
        str(workdir / "results.json"),
        "--mode=predict",
    ):
        assert words in output, words
    assert "absl::InitializeLog" not in output  # nor what TensorFlow's C++ says at its import


def test_terminated_and_killed_run_ends_in_the_same_parameters(trained, folder, cache):
    """SIGTERM, then kill -9, then to the end: bit for bit the uninterrupted run."""
    workdir = folder / "interrupted"
    arguments = [f"--workdir={workdir}", *tiny.arguments(folder)]

    process = tiny.start(*arguments, **cache)
    wait_for(workdir / "checkpoints" / "4", process)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert "stopped by SIGTERM" in output
    assert not (workdir / "results.json").exists()
    stopped = max(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit())
    assert 4 <= stopped < 60

    process = tiny.start(*arguments, **cache)
    wait_for(workdir / "checkpoints" / str(stopped // 4 * 4 + 8), process)
    process.kill()
    output, _ = process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL, output
    assert f"resuming at step {stopped} of 60" in output

    status, output = tiny.run(*arguments, **cache)
    assert status == 0, output
    assert "resuming at step" in output
    expected, found = final_state(trained[0]), final_state(workdir)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    steps = [row["step"] for row in metrics_rows(workdir) if row["split"] == "train"]
    assert steps == sorted(set(steps)), "a step was logged twice or out of order"
    first, second = tiny.read(trained[0] / "results.json"), tiny.read(workdir / "results.json")
    assert first == second


def metrics_rows(workdir):
    return metrics.read_rows(workdir / "metrics.jsonl")


def test_evaluate_repeats_the_result_from_the_workdir_alone(trained, cache):
    workdir, _ = trained
    before = tiny.read(workdir / "results.json")
    status, output = tiny.run("--mode=evaluate", f"--workdir={workdir}", **cache)
    assert status == 0, output
    assert tiny.read(workdir / "results.json") == before
    status, output = tiny.run(
        "--mode=evaluate", f"--workdir={workdir}", "--split=validation", **cache
    )
    assert status == 0, output
    assert tiny.read(workdir / "results_validation.json")["videos"] == 8
    assert tiny.read(workdir / "results.json") == before


def test_predict_reports_a_bad_file_and_goes_on(trained, folder, cache, tmp_path):
    workdir, _ = trained
    videos = sorted((folder / "videos" / "test").rglob("*.mp4"))[:2]
    for video in videos:
        shutil.copy(video, tmp_path)
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    output_file = tmp_path / "out" / "p.json"
    status, output = tiny.run(
        "--mode=predict",
        f"--workdir={workdir}",
        f"--output={output_file}",
        tmp_path,
        tmp_path / "gone.mp4",
        **cache,
    )
    assert status == 0, output
    found = {entry["file"]: entry for entry in tiny.read(output_file)["videos"]}
    assert len(found) == 4
    assert found[str(tmp_path / "gone.mp4")]["error"] == "no such file or folder"
    assert "error" in found[str(tmp_path / "broken.mp4")]
    names = set(tiny.read(workdir / "data.json")["class_names"])
    for video in videos:
        best = found[str(tmp_path / video.name)]["predictions"]
        assert len(best) == 5 and {entry["class"] for entry in best} <= names
        probabilities = [entry["probability"] for entry in best]
        assert probabilities == sorted(probabilities, reverse=True)
        assert 0 < sum(probabilities) <= 1 + 1e-5
        assert video.name in output
    assert "broken.mp4" in output and "2 of 4 videos classified" in output


@pytest.mark.parametrize("replicas", ["pmap", "shard_map"])
@pytest.mark.parametrize("method,steps", [("skd_srl", 6), ("ps_kd", 9)])
def test_two_processes_agree_with_one(folder, cache, trained, method, steps, replicas):
    """A real two-process run of the demo: the same parameters within float tolerance.

    PS-KD's table is divided between the processes, and read from the second epoch on, behind 6 steps.
    """
    # SGD: Adam divides by small second moments, which makes rounding errors large.
    changes = {"train__duration": f"{steps} steps", "train__log_every": 1}
    changes |= {"optim__name": "sgd", "optim__learning_rate": 0.02, "train__replicas": replicas}
    alone = folder / f"alone_{method}_{replicas}"
    arguments = tiny.arguments(folder, method, **changes)
    status, output = tiny.run(f"--workdir={alone}", *arguments, **cache)
    assert status == 0, output

    together = folder / f"together_{method}_{replicas}"
    processes = start_two(f"--workdir={together}", *arguments)
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)
    assert "2 cpu device(s)" in outputs[0]
    expected, found = final_state(alone), final_state(together)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-3, atol=1e-4, err_msg=name)
    for one, two in zip(metrics_rows(alone), metrics_rows(together), strict=True):
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-3), one["step"]
    first, second = (tiny.read(w / "results.json") for w in (alone, together))
    assert first["videos"] == second["videos"]
    assert first["loss"] == pytest.approx(second["loss"], rel=1e-3)


def start_two(*arguments):
    """Two processes of one run, each with all its arguments but its number."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    together = (*arguments, f"--coordinator=localhost:{port}", "--num_processes=2")
    return [tiny.start(*together, f"--process_id={number}") for number in range(2)]


def test_error_of_the_first_process_ends_the_other_too(folder, trained):
    """Only process 0 compares the config with the workdir's; neither may wait for the other."""
    arguments = tiny.arguments(folder, train__duration="61 steps")
    processes = start_two(f"--workdir={trained[0]}", *arguments)
    first, second = (process.communicate(timeout=120)[0] for process in processes)
    assert [process.returncode for process in processes] == [2, 2], first + second
    assert "train.duration" in first
    assert "process 0 has failed" in second


def test_two_processes_stop_together_at_a_sigterm_to_one(folder, trained):
    workdir = folder / "stopped"
    processes = start_two(
        f"--workdir={workdir}", *tiny.arguments(folder, train__duration="2000 steps")
    )
    wait_for(workdir / "checkpoints" / "4", processes[0])
    processes[1].send_signal(signal.SIGTERM)
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)
    assert "stopped by SIGTERM at step" in outputs[0]
    saved = max(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit())
    assert f"at step {saved}," in outputs[0]


def test_shards_prepared_apart_make_one_data_set(folder, trained, tmp_path):
    """Two machines, each its part; the second one finds all shards there and finishes."""
    arguments = [*tiny.arguments(folder, data__prepared=tmp_path / "parts"), "--mode=prepare"]
    status, output = tiny.run(*arguments, "--config.data.shards=0/2")
    assert status == 0 and "left to other processes" in output, output
    assert not prepared.is_complete(tmp_path / "parts")
    status, output = tiny.run(*arguments, "--config.data.shards=1/2")
    assert status == 0 and f"prepared data: {tmp_path / 'parts'}" in output, output
    for name in ("train", "validation", "test"):
        whole = prepared.load_split(folder / "prepared", name)
        parts = prepared.load_split(tmp_path / "parts", name)
        assert list(whole.ids) == list(parts.ids)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--wrong=3"], "Unknown command line flag 'wrong'"),
        (["--config=configs/demo.py"], "--workdir"),
        (["--workdir=runs/none"], "--config"),
        (["--config=configs/demo.py:skd_slr", "--workdir=runs/none"], "did you mean 'skd_srl'"),
        (["--config=configs/dmeo.py", "--workdir=runs/none"], "configs/dmeo.py"),
        (["--config=configs/demo.py", "--config.train.batchsize=3"], "batch_size"),
        (
            ["--config=configs/demo.py", "--workdir=runs/none", "--config.model.name=r3d_81"],
            "r3d_18",
        ),
        (["--config=configs/demo.py", "--config.model.remt=True"], "remat"),
        (
            ["--config=configs/demo.py", "--workdir=runs/none", "--config.model.shortcut=A"],
            "unknown r3d_10 option 'shortcut'. Known: dropout, dtype, remat, width",
        ),
        (["--config=configs/ucf101.py", "--workdir=/nonexistent/w"], "config.data.root"),
        (["--mode=evaluate", "--workdir=/nonexistent/run"], "holds no trained run"),
        (["--mode=models", "--workdir=w"], "--workdir has no effect with --mode=models"),
    ],
)
def test_mistyped_commands_answer_in_one_line(arguments, words):
    status, output = tiny.run(*arguments)
    assert status != 0
    assert words in output
    assert "Traceback" not in output
    if "Flags parsing error" not in output:  # absl adds a line on its own help
        assert output.strip().splitlines()[-1].startswith("error: "), output


def test_models_are_listed_in_columns(monkeypatch):
    monkeypatch.setattr(models, "names", lambda: ("r3d_18", "resnet3d_18"))
    lines = []
    modes.run_models(lines.append)
    assert [line.split()[:4] for line in lines] == [
        ["model", "parameters", "GMACs", "at"],
        ["r3d_18", "33,371,472", "40.697", "16x112x112"],
        ["resnet3d_18", "33,409,104", "8.308", "16x112x112"],
    ]
    # Numbers end, words begin in one column.
    for words in (["GMACs", "40.697", "8.308"], ["parameters", "33,371,472", "33,409,104"]):
        assert len({line.index(w) + len(w) for line, w in zip(lines, words, strict=True)}) == 1
    words = ["source", "Tran et al.", "Hara et al."]
    assert len({line.index(w) for line, w in zip(lines, words, strict=True)}) == 1


@pytest.mark.slow
def test_mode_models_lists_every_model():
    status, output = tiny.run("--mode=models")
    assert status == 0, output
    assert [line.split()[0] for line in output.splitlines()] == ["model", *models.names()]


def test_help_is_readable():
    _status, output = tiny.run("--help")
    assert "Traceback" not in output
    for words in ("--workdir", "--mode", "predict", "--config.section.key=VALUE"):
        assert words in output


def test_predict_untouched_files_of_the_three_data_sets(trained, shared, cache, tmp_path):
    """XviD, MPEG-4 and H.264 with sound, as they are distributed, and one with a damaged packet."""
    output_file = tmp_path / "predictions.json"
    status, output = tiny.run(
        "--mode=predict",
        f"--workdir={trained[0]}",
        f"--output={output_file}",
        shared / "fixtures",
        **cache,
    )
    assert status == 0, output
    found = tiny.read(output_file)["videos"]
    assert len(found) == 7
    assert all(len(entry["predictions"]) == 5 for entry in found)
    noted = [entry["file"] for entry in found if entry["notes"]]
    assert [name.rsplit("/", 1)[1] for name in noted] == ["corrupted.mp4"]
    assert "damaged" in output
