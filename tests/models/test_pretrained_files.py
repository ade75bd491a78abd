"""Checkpoint files, read and written without PyTorch.

The fixtures are pickled by Python's own pickler over stand-ins with the names of PyTorch's classes,
in the layouts that PyTorch documents for its zip format and for the one before it.
"""

import argparse
import collections
import io
import pickle
import struct
import sys
import types
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from skd_jax.errors import UserError
from skd_jax.models import pretrained

KINDS = {
    "FloatStorage": "<f4",
    "DoubleStorage": "<f8",
    "HalfStorage": "<f2",
    "BFloat16Storage": jnp.bfloat16,
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
}


class Stored:
    """A storage: flat numbers of a kind."""

    def __init__(self, key, kind, numbers, view=None):
        self.key, self.kind, self.view = key, kind, view
        self.numbers = np.asarray(numbers, KINDS[kind])


class View:
    """A tensor, pickled as PyTorch does."""

    def __init__(self, stored, offset, shape, strides, rebuild="_rebuild_tensor_v2"):
        self.rebuild = rebuild
        self.arguments = (stored, offset, shape, strides)

    def __reduce__(self):
        function = getattr(sys.modules["torch._utils"], self.rebuild)
        more = (False, collections.OrderedDict()) if self.rebuild.endswith("v2") else ()
        return function, self.arguments + more


class Parameter:
    def __init__(self, tensor):
        self.tensor = tensor

    def __reduce__(self):
        return sys.modules["torch._utils"]._rebuild_parameter, (
            self.tensor,
            True,
            collections.OrderedDict(),
        )


class Pickler(pickle.Pickler):
    def persistent_id(self, obj):
        if not isinstance(obj, Stored):
            return None
        kind = getattr(sys.modules["torch"], obj.kind)
        return ("storage", kind, obj.key, "cpu", len(obj.numbers), *(obj.view or ()))


@pytest.fixture
def torch_names(monkeypatch):
    """Modules with PyTorch's names, for the pickler to find its globals in."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    for kind in KINDS:
        setattr(torch, kind, type(kind, (), {"__module__": "torch"}))
    for name in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_parameter"):
        function = types.FunctionType((lambda *a: None).__code__, {}, name)
        function.__module__, function.__qualname__ = "torch._utils", name
        setattr(utils, name, function)
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "torch._utils", utils)


def pickled(content, protocol=2):
    stream = io.BytesIO()
    Pickler(stream, protocol).dump(content)
    return stream.getvalue()


def write_zip(path, content, storages, protocol=2, more=(), data=None):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("mine/data.pkl", data or pickled(content, protocol))
        for stored in storages:
            archive.writestr(f"mine/data/{stored.key}", stored.numbers.tobytes())
        archive.writestr("mine/version", "3\n")
        for name, extra in more:
            archive.writestr(f"mine/{name}", extra)


def write_legacy(path, content, storages, protocol=2, data=None):
    machine = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"int": 4}}
    with path.open("wb") as file:
        for part in (0x1950A86A20F9469CFC6C, 1001, machine):
            file.write(pickle.dumps(part, protocol))
        file.write(data or pickled(content, protocol))
        file.write(pickle.dumps([stored.key for stored in storages], protocol))
        for stored in storages:
            file.write(struct.pack("<q", len(stored.numbers)) + stored.numbers.tobytes())


FORMATS = {"zip": write_zip, "legacy": write_legacy}


@pytest.fixture(params=FORMATS)
def write(request):
    return FORMATS[request.param]


def stored(kind="FloatStorage", count=24, key="0"):
    return Stored(key, kind, np.arange(count) % 2 if kind == "BoolStorage" else np.arange(count))


@pytest.mark.parametrize("protocol", [2, 4])
def test_views_of_one_storage(tmp_path, torch_names, write, protocol):
    one = stored()
    write(
        tmp_path / "a.pth",
        collections.OrderedDict(
            whole=View(one, 0, (2, 3, 4), (12, 4, 1)),
            transposed=View(one, 4, (4, 3), (1, 4)),
            scalar=View(one, 23, (), ()),
            empty=View(one, 24, (0, 5), (5, 1)),
            older=View(one, 1, (2,), (2,), "_rebuild_tensor"),
            parameter=Parameter(View(one, 5, (3,), (1,))),
        ),
        [one],
        protocol,
    )
    found = pretrained.load_state_dict(tmp_path / "a.pth")
    numbers = np.arange(24, dtype=np.float32)
    assert list(found) == ["whole", "transposed", "scalar", "empty", "older", "parameter"]
    np.testing.assert_array_equal(found["whole"], numbers.reshape(2, 3, 4))
    np.testing.assert_array_equal(found["transposed"], numbers[4:16].reshape(3, 4).T)
    assert found["scalar"].shape == () and found["scalar"] == 23
    assert found["empty"].shape == (0, 5)
    np.testing.assert_array_equal(found["older"], [1, 3])
    np.testing.assert_array_equal(found["parameter"], [5, 6, 7])
    assert all(array.flags.c_contiguous and array.flags.writeable for array in found.values())


@pytest.mark.parametrize("kind", KINDS)
def test_types(tmp_path, torch_names, write, kind):
    one = stored(kind)
    write(tmp_path / "a.pth", {"w": View(one, 2, (4,), (1,))}, [one])
    found = pretrained.load_state_dict(str(tmp_path / "a.pth"))["w"]
    assert found.dtype == KINDS[kind]
    np.testing.assert_array_equal(found, one.numbers[2:6])


def test_big_endian(tmp_path, torch_names):
    one = stored()
    one.numbers = one.numbers.astype(">f4")
    content = {"w": View(one, 0, (24,), (1,))}
    write_zip(tmp_path / "a.pth", content, [one], more=[("byteorder", "big")])
    found = pretrained.load_state_dict(tmp_path / "a.pth")["w"]
    assert found.dtype == np.dtype("<f4")
    np.testing.assert_array_equal(found, np.arange(24))


def test_a_view_of_a_storage_as_old_files_have_it(tmp_path, torch_names):
    one = Stored("7", "FloatStorage", np.arange(24), view=(("8", 10, 6),))
    write_legacy(tmp_path / "a.pth", {"w": View(one, 1, (5,), (1,))}, [one])
    found = pretrained.load_state_dict(tmp_path / "a.pth")["w"]
    np.testing.assert_array_equal(found, np.arange(11, 16))


def test_checkpoint_of_3d_resnets(tmp_path, torch_names, write):
    weight, momentum = stored(key="0"), stored(key="1")
    checkpoint = {
        "epoch": 200,
        "arch": "resnet-18",
        "state_dict": collections.OrderedDict({"module.w": View(weight, 0, (24,), (1,))}),
        "optimizer": {
            "state": {0: {"momentum_buffer": View(momentum, 0, (24,), (1,))}},
            "param_groups": [{"lr": 0.1, "nesterov": False, "betas": (0.9, None), "params": [0]}],
        },
        "scheduler": {"milestones": collections.Counter([50, 100]), "best": float("inf")},
        "history": collections.defaultdict(list, loss=[1.0, {2}]),
        "best_prec1": np.float64(0.5),
        "per_class": np.arange(3.0),
        "args": argparse.Namespace(lr=0.1),
    }
    write(tmp_path / "a.pth", checkpoint, [weight, momentum])
    found = pretrained.load_state_dict(tmp_path / "a.pth")
    assert list(found) == ["module.w"]
    np.testing.assert_array_equal(found["module.w"], np.arange(24))


def test_safetensors(tmp_path):
    arrays = {
        "w": np.arange(6, dtype=np.float32).reshape(2, 3),
        "n": np.array(3, np.int64),
        "h": np.arange(3).astype(jnp.bfloat16),
    }
    save_file(arrays, tmp_path / "a.safetensors")
    found = pretrained.load_state_dict(tmp_path / "a.safetensors")
    assert set(found) == set(arrays)
    for key, array in arrays.items():
        assert found[key].dtype == array.dtype
        np.testing.assert_array_equal(found[key], array)


class Call:
    def __init__(self, function, *arguments):
        self.arguments = (function, arguments)

    def __reduce__(self):
        return self.arguments


def malicious(marker):
    import os

    command = f"touch {marker}"
    evil = {
        "system": pickled({"w": Call(os.system, command)}),
        "protocol 4": pickled({"w": Call(os.system, command)}, 4),
        "eval": pickled([Call(eval, f"open({str(marker)!r}, 'w')")]),
        "open": pickled(Call(open, str(marker), "w")),
        "as a state": pickled(collections.OrderedDict(state_dict=Call(exec, "1"))),
        "instance": f"(S'{command}'\nios\nsystem\n.".encode(),
        # A dotted name behind a module that is allowed.
        "dotted": b"\x80\x04\x8c\x0ctorch._utils\x8c\x09os.system\x93"
        + pickle.dumps(command, 2)[2:-1]
        + b"\x85R.",
        "getattr": b"\x80\x02cbuiltins\ngetattr\n.",
        "extension": b"\x80\x02\x82\x01.",
    }
    return evil


@pytest.mark.parametrize("attack", malicious("x"))
def test_nothing_is_executed(tmp_path, write, attack):
    marker = tmp_path / "marker"
    write(tmp_path / "a.pth", None, [], data=malicious(marker)[attack])
    with pytest.raises(UserError, match=r"a\.pth") as error:
        pretrained.load_state_dict(tmp_path / "a.pth")
    assert not marker.exists()
    if attack != "extension":
        asked = r"it asks for (posix|nt|os|builtins|__builtin__|_?io|torch\._utils)\.\S+, which"
        assert error.match(asked) and error.match("no arbitrary pickle is executed")


def test_the_attacks_would_work_elsewhere(tmp_path):
    """Else the test above proves nothing."""
    marker = tmp_path / "marker"
    for attack in ("system", "protocol 4", "eval", "open", "instance"):
        pickle.loads(malicious(marker)[attack])
        assert marker.exists(), attack
        marker.unlink()


@pytest.mark.parametrize(
    "name", ["collections Counter", "argparse Namespace", "collections OrderedDict"]
)
def test_what_a_pickle_is_given_does_not_outlive_it(tmp_path, torch_names, name):
    """A pickle can set attributes of a class: here __init__ = None."""
    given = f"c{name}\n".replace(" ", "\n").encode()
    assignment = b"N}X\x08\x00\x00\x00__init__Ns\x86b."
    write_zip(tmp_path / "bad.pth", None, [], data=b"\x80\x02" + given + assignment)
    with pytest.raises(UserError, match="no state dict|immutable|__setstate__"):
        pretrained.load_state_dict(tmp_path / "bad.pth")
    module, _, attribute = name.partition(" ")
    assert getattr(sys.modules[module], attribute)(a=1)
    one = stored()
    content = {
        "model": collections.OrderedDict(w=View(one, 0, (24,), (1,))),
        "others": [collections.Counter("a"), argparse.Namespace(a=1)],
    }
    write_zip(tmp_path / "good.pth", content, [one])
    found = pretrained.load_state_dict(tmp_path / "good.pth")
    np.testing.assert_array_equal(found["w"], np.arange(24))


def test_truncated(tmp_path, torch_names, write):
    one = stored()
    path = tmp_path / "a.pth"
    write(path, {"w": View(one, 0, (24,), (1,))}, [one])
    whole = path.read_bytes()
    for length in (0, 1, 3, 20, len(whole) // 3, len(whole) // 2, len(whole) - 40, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"a\.pth is truncated or damaged, or no checkpoint"):
            pretrained.load_state_dict(path)
    path.write_bytes(whole)
    assert "w" in pretrained.load_state_dict(path)


def test_damaged_numbers_of_a_zip(tmp_path, torch_names):
    one = stored()
    path = tmp_path / "a.pth"
    write_zip(path, {"w": View(one, 0, (24,), (1,))}, [one])
    whole = bytearray(path.read_bytes())
    at = whole.index(one.numbers.tobytes())
    whole[at + 5] ^= 255
    path.write_bytes(whole)
    with pytest.raises(UserError, match="damaged.*CRC"):
        pretrained.load_state_dict(path)


@pytest.mark.parametrize(
    "offset,shape,strides",
    [(0, (25,), (1,)), (5, (4, 5), (5, 1)), (-1, (2,), (1,)), (3, (2,), (-1,))],
)
def test_tensors_beyond_their_storage(tmp_path, torch_names, write, offset, shape, strides):
    one = stored()
    write(tmp_path / "a.pth", {"w": View(one, offset, shape, strides)}, [one])
    with pytest.raises(UserError, match="beyond its storage|negative"):
        pretrained.load_state_dict(tmp_path / "a.pth")


def test_storage_with_fewer_numbers_than_announced(tmp_path, torch_names, write):
    one, fewer = stored(), stored(count=20)
    write(tmp_path / "a.pth", {"w": View(one, 0, (24,), (1,))}, [fewer])
    with pytest.raises(UserError, match="damaged"):
        pretrained.load_state_dict(tmp_path / "a.pth")


def test_no_state_dict(tmp_path, torch_names, write):
    path = tmp_path / "a.pth"
    write(path, {"epoch": 3, "net": {"w": 1}}, [])
    with pytest.raises(UserError, match=r"holds no state dict \(its keys: epoch, net\)"):
        pretrained.load_state_dict(path)
    write(path, [1, 2], [])
    with pytest.raises(UserError, match=r"holds no state dict \(list\)"):
        pretrained.load_state_dict(path)


def test_other_files(tmp_path, torch_names):
    path = tmp_path / "a.pth"
    with pytest.raises(UserError, match=r"a\.pth: there is no such file"):
        pretrained.load_state_dict(path)
    with pytest.raises(UserError, match="cannot be read"):
        pretrained.load_state_dict(tmp_path)
    for content in (b"<html>not found</html>", pickle.dumps({"w": 1}), bytes(100)):
        path.write_bytes(content)
        with pytest.raises(UserError, match="no checkpoint of PyTorch"):
            pretrained.load_state_dict(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("photo.jpg", b"")
    with pytest.raises(UserError, match="a zip archive, but not one of PyTorch"):
        pretrained.load_state_dict(path)
    write_zip(path, {}, [], more=[("constants.pkl", b"")])
    with pytest.raises(UserError, match=r"TorchScript program; save its state_dict\(\)"):
        pretrained.load_state_dict(path)
    damaged = tmp_path / "a.safetensors"
    damaged.write_bytes(b"12345678{")
    with pytest.raises(UserError, match="truncated or damaged"):
        pretrained.load_state_dict(damaged)
    with pytest.raises(UserError, match="no such file"):
        pretrained.load_state_dict(tmp_path / "b.safetensors")


STATE_DICT = {
    "conv.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    "conv.turned": np.arange(12, dtype=np.float64).reshape(3, 4).T,
    "bn.num_batches_tracked": np.zeros((), np.int64),
    "größe": np.arange(3).astype(jnp.bfloat16),
    "half": np.arange(3, dtype=np.float16),
    "big": np.arange(5, dtype=">i4"),
    "empty": np.zeros((0, 2), np.float32),
    "mask": np.array([True, False]),
    "five": np.arange(70000, dtype=np.float32).reshape(7, 10, 10, 10, 10),
}


def test_written_and_read_again(tmp_path):
    pretrained.save_torch(tmp_path / "a.pth", STATE_DICT)
    found = pretrained.load_state_dict(tmp_path / "a.pth")
    assert list(found) == list(STATE_DICT)
    for key, array in STATE_DICT.items():
        assert found[key].dtype == array.dtype.newbyteorder("="), key
        np.testing.assert_array_equal(found[key], array)
    assert [path.name for path in tmp_path.iterdir()] == ["a.pth"]


def test_written_as_torch_does(tmp_path, torch_names):
    """The pickle says the same as one that Python's pickler makes of the same tensors."""
    pretrained.save_torch(tmp_path / "a.pth", STATE_DICT)
    with zipfile.ZipFile(tmp_path / "a.pth") as archive:
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}
        assert archive.read("archive/version") == b"3\n"
        assert archive.read("archive/byteorder") == b"little"
        ours = Recorder(io.BytesIO(archive.read("archive/data.pkl"))).load()
        data = [archive.read(f"archive/data/{n}") for n in range(len(STATE_DICT))]
    kinds = {np.dtype(dtype): kind for kind, dtype in KINDS.items()}
    content = {}
    for number, (key, array) in enumerate(STATE_DICT.items()):
        plain = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"))
        plain = plain.reshape(array.shape)
        one = Stored(str(number), kinds[plain.dtype], plain.ravel())
        strides = tuple(np.cumprod((1, *array.shape[:0:-1]))[::-1].tolist())[: array.ndim]
        if array.size == 0:
            strides = tuple(stride // plain.itemsize for stride in plain.strides)
        content[key] = View(one, 0, array.shape, strides)
        assert data[number] == plain.tobytes()
    assert ours == Recorder(io.BytesIO(pickled(content))).load()


class Recorder(pickle.Unpickler):
    """Writes down the calls that a pickle asks for."""

    def find_class(self, module, name):
        return lambda *arguments: (f"{module}.{name}", arguments)

    def persistent_load(self, pid):
        tag, kind, *rest = pid
        return tag, kind()[0], *rest


def test_the_same_weights_make_the_same_file(tmp_path):
    for name in ("a.pth", "b.pth"):
        pretrained.save_torch(tmp_path / name, STATE_DICT)
    assert (tmp_path / "a.pth").read_bytes() == (tmp_path / "b.pth").read_bytes()


def test_nothing_half_written(tmp_path, monkeypatch):
    path = tmp_path / "a.pth"
    pretrained.save_torch(path, STATE_DICT)
    before = path.read_bytes()
    with pytest.raises(
        UserError, match="w is of dtype complex64, for which PyTorch has no storage"
    ):
        pretrained.save_torch(path, {"w": np.zeros(2, np.complex64)})

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(zipfile.ZipFile, "writestr", full)
    with pytest.raises(UserError, match=r"a\.pth cannot be written: No space left on device"):
        pretrained.save_torch(path, {"w": np.zeros(2)})
    assert path.read_bytes() == before
    assert [found.name for found in tmp_path.iterdir()] == ["a.pth"]
    with pytest.raises(UserError, match="cannot be written"):
        pretrained.save_torch(tmp_path / "no" / "a.pth", {})
