"""The reader of `.pth` files: three formats, all dtypes, views, and the checksum in the name."""

import hashlib
import io
import pickle
import tracemalloc
from collections import OrderedDict

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import pth_files
from support.pth_files import KINDS, MAKERS, Global, Parameter, Storage, Tensor

from dh2l_jax.models.weights.pth import PthError, read_state_dict

every_format = pytest.mark.parametrize("maker", MAKERS.values(), ids=MAKERS)


def numbers(dtype, size=24):
    """Random bytes of a dtype, with 0 and 1 for bool; every bit pattern must survive."""
    dtype = np.dtype(jnp.bfloat16 if dtype == "bfloat16" else dtype)
    high = 2 if dtype.kind == "b" else 256
    data = np.random.default_rng(0).integers(0, high, size * dtype.itemsize, np.uint8)
    return data.view(dtype)


def state_dict():
    """A state dict of each dtype, and of shapes from a scalar to a kernel's."""
    state = OrderedDict((f"{dtype}.bias", numbers(dtype)) for dtype in KINDS)
    state["conv.weight"] = numbers("float32", 2 * 3 * 5 * 7).reshape(2, 3, 5, 7)
    state["num_batches_tracked"] = np.array(7)
    state["empty"] = np.zeros((3, 0, 2), np.float32)
    return state


def read(folder, data, name="weights.pth"):
    path = folder / name
    path.write_bytes(data)
    return read_state_dict(path)


def check_equal(actual, expected):
    """The same names in the same order, and the same bits."""
    assert list(actual) == list(expected)
    for name, value in expected.items():
        assert (actual[name].dtype, actual[name].shape) == (value.dtype, value.shape), name
        assert actual[name].tobytes() == value.tobytes(), name


@every_format
@pytest.mark.parametrize("protocol", range(2, 6))
def test_every_dtype_and_shape(tmp_path, maker, protocol):
    actual = read(tmp_path, maker(state_dict(), protocol=protocol))
    check_equal(actual, state_dict())
    assert not any(value.flags.writeable for value in actual.values() if value.size)


@every_format
def test_metadata_and_hooks_are_ignored(tmp_path, maker):
    state = state_dict()
    state._metadata = OrderedDict({"": {"version": 1}, "conv": {"version": 2}})
    check_equal(read(tmp_path, maker(state)), state_dict())


@pytest.mark.parametrize("kind", ["zip", "stream"])
@pytest.mark.parametrize("name", ["state_dict", "model"])
def test_checkpoint_of_a_training(tmp_path, kind, name):
    group = {"lr": 0.1, "betas": (0.9, 0.999), "params": (0, 1)}
    checkpoint = {
        "epoch": 90,
        "arch": "resnet18",
        "best": 69.76,
        name: state_dict(),
        "optimizer": {"param_groups": [group, dict(group)], "state": {0: None}},
    }
    check_equal(read(tmp_path, MAKERS[kind](checkpoint)), state_dict())


@every_format
def test_shared_storage_stays_shared(tmp_path, maker):
    storage = Storage(np.arange(12, dtype=np.float32))
    state = {
        "a": Tensor(storage, 0, (3, 4), (4, 1)),
        "transposed": Tensor(storage, 0, (4, 3), (1, 4)),
        "last.weight": Tensor(storage, 8, (4,), (1,)),
        "own": np.arange(12, dtype=np.float32),
    }
    actual = read(tmp_path, maker(state))
    expected = np.arange(12, dtype=np.float32).reshape(3, 4)
    np.testing.assert_array_equal(actual["a"], expected)
    np.testing.assert_array_equal(actual["transposed"], expected.T)
    np.testing.assert_array_equal(actual["last.weight"], expected[2])
    assert np.shares_memory(actual["a"], actual["last.weight"])
    assert not np.shares_memory(actual["a"], actual["own"])


@given(
    kind=st.sampled_from(sorted(MAKERS)),
    offset=st.integers(0, 5),
    axes=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 9)), max_size=4),
)
def test_strides_mean_what_they_say_or_are_refused(tmp_path_factory, kind, offset, axes):
    """By enumeration: entry (i, j, …) is number offset + i·s₁ + j·s₂ + … of its storage."""
    storage = Storage(np.arange(20, dtype=np.int64))
    shape, strides = (tuple(column) for column in zip(*axes, strict=True)) if axes else ((), ())
    data = MAKERS[kind]({"a": Tensor(storage, offset, shape, strides)})
    positions = np.full(shape, offset)
    for index in np.ndindex(*shape):
        positions[index] += sum(i * stride for i, stride in zip(index, strides, strict=True))
    folder = tmp_path_factory.mktemp("strides")
    if positions.max(initial=0) < 20 and positions.size <= 20:
        np.testing.assert_array_equal(read(folder, data)["a"], positions)
    else:
        with pytest.raises(PthError, match="does not fit in its storage of 20 numbers"):
            read(folder, data)


def test_an_axis_of_one_entry_may_have_any_stride(tmp_path):
    data = pth_files.zip_file({"a": Tensor(Storage(np.arange(3.0)), 0, (1, 3), (2**60, 1))})
    np.testing.assert_array_equal(read(tmp_path, data)["a"], [[0, 1, 2]])


@pytest.mark.parametrize("kind", ["zip", "stream"])
def test_parameters(tmp_path, kind):
    value = numbers("float32")
    actual = read(tmp_path, MAKERS[kind]({"weight": Parameter(Tensor.of(value))}))
    check_equal(actual, {"weight": value})


@pytest.mark.parametrize(("module", "device"), [(b"torch", b"cpu"), (b"torch.cuda", b"cuda:0")])
def test_records_of_older_versions(tmp_path, module, device):
    """`_rebuild_tensor` of torch 0.2, and Parameter(tensor) with its state behind it."""
    storage = b"(X\x07\0\0\0storagec%b\nFloatStorage\nX\x01\0\0\x000X%c\0\0\0%bK\x06NtQ"
    storage %= module, len(device), device
    tensor = b"ctorch._utils\n_rebuild_tensor\n(%bK\x00K\x02K\x03\x86K\x03K\x01\x86tR" % storage
    parameter = b"ctorch.nn.parameter\nParameter\n%b\x85R\x88\x89N\x87b" % tensor
    content = b"\x80\x02}(X\x01\0\0\0a%bX\x01\0\0\0b%bu." % (tensor, parameter)
    expected = np.arange(6, dtype=np.float32).reshape(2, 3)
    members = {"data/0": expected.tobytes()}
    actual = read(tmp_path, pth_files.zip_file({}, pickles={"state": content}, members=members))
    check_equal(actual, {"a": expected, "b": expected})


def test_python_2_writes_ints_above_four_bytes_in_decimal():
    assert b"I8589934592\n" in pth_files.tar_file(state_dict())
    assert b"U\x04arch" in pth_files.tar_file({"arch": numbers("int8")})


@every_format
def test_memory_is_the_file_once(tmp_path, maker):
    data = maker({"a": np.zeros(2**21, np.float32), "b": np.zeros(2**21, np.float32)})
    (tmp_path / "file").write_bytes(data)
    tracemalloc.start()
    try:
        assert len(read_state_dict(tmp_path / "file")) == 2
        assert tracemalloc.get_traced_memory()[1] < 1.05 * len(data)
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("digits", [8, 12, 64])
def test_name_with_the_checksum(tmp_path, digits):
    data = pth_files.tar_file(state_dict())
    promise = hashlib.sha256(data).hexdigest()[:digits]
    check_equal(read(tmp_path, data, f"resnet18-{promise}.pth"), state_dict())
    wrong = promise[:-1] + ("0" if promise[-1] != "0" else "1")
    message = f"begins with {wrong}, as the name says, found {promise}: the file is damaged"
    with pytest.raises(PthError, match=message):
        read(tmp_path, data, f"resnet18-{wrong}.pth")
    data = bytearray(data)
    data[-1] ^= 1
    with pytest.raises(PthError, match=f"begins with {promise}, as"):
        read(tmp_path, data, f"resnet18-{promise}.pth")


@pytest.mark.parametrize(
    "name",
    ["resnet18.pth", "r-5c106cd.pth", "r-5C106CDE.pth", "r-5c106cde.pt", "r-5c106cde.pth.old"],
)
def test_other_names_promise_nothing(tmp_path, name):
    check_equal(read(tmp_path, pth_files.zip_file(state_dict()), name), state_dict())


# What is no state dict.

FORMATS = "expected a zip, stream or tar file of torch.save, found "
BIG = {"members": {"byteorder": b"big"}}, {"pickles": {"system": pickle.dumps({}, 2)}}
OTHERS = {
    "empty": (b"", FORMATS + "b''"),
    "page": (b"<!DOCTYPE html><html>404", FORMATS + "b'<!DOCTYPE ht'"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\n", FORMATS + "b'version http'"),
    "HDF": (b"\x89HDF\r\n\x1a\n", FORMATS + r"b'\x89HDF\r\n\x1a\n'"),
    "list": ([numbers("int8")], "expected a state dict, found list"),
    "tensor": (numbers("int8"), "expected a state dict, found Tensor"),
    "epoch": ({"epoch": 3}, "expected a tensor under 'epoch', found int"),
    "nested": ({"a": {"b": numbers("int8")}}, "expected a tensor under 'a', found Dict"),
    "number": ({3: numbers("int8")}, "expected printable names, found '3'"),
    "long": ({"a" * 999: None}, f"expected a tensor under '{'a' * 77}...', found NoneType"),
    "parameter": ({"a": Parameter(None)}, "expected a tensor under 'a', found Parameter"),
    "type": ({"a": Global("torch", "FloatStorage")}, "under 'a', found Float32DType"),
    "storage": ({"a": Storage(numbers("int8"))}, "expected a tensor under 'a', found Storage"),
    "big-endian zip": (pth_files.zip_file({}, **BIG[0]), "from a little-endian system"),
    "big-endian stream": (pth_files.stream_file({}, **BIG[1]), "from a little-endian system"),
    "big-endian tar": (pth_files.tar_file({}, **BIG[1]), "from a little-endian system"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_others(tmp_path, name):
    value, message = OTHERS[name]
    with pytest.raises(PthError) as info:
        read(tmp_path, value if isinstance(value, bytes) else pth_files.zip_file(value))
    assert str(info.value).startswith(f"{tmp_path / 'weights.pth'}: ")
    assert str(info.value).endswith(message)


def test_paths(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.pth"):
        read_state_dict(tmp_path / "none.pth")
    with pytest.raises(PthError, match="expected a regular file"):
        read_state_dict(tmp_path)
    with (tmp_path / "large.pth").open("wb") as file:
        file.truncate(2**32 + 1)  # sparse
    with pytest.raises(PthError, match="expected at most 4294967296 bytes, found 4294967297"):
        read_state_dict(tmp_path / "large.pth")


# torch itself, where it is installed.


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "stream"])
def test_files_that_torch_writes(tmp_path, zipped):
    torch = pytest.importorskip("torch")
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    state = network.state_dict()
    for name in KINDS:
        state[name] = torch.arange(24).reshape(4, 6).to(getattr(torch, name))
        state[f"{name}.part"] = state[name][1:, ::2].T
    state["parameter"] = torch.nn.Parameter(torch.rand(3))
    file = io.BytesIO()
    torch.save(state, file, _use_new_zipfile_serialization=zipped)
    expected = {
        name: value.detach().float().numpy().astype(jnp.bfloat16)
        if value.dtype == torch.bfloat16
        else value.detach().numpy()
        for name, value in state.items()
    }
    check_equal(read(tmp_path, file.getvalue()), expected)


@every_format
def test_torch_reads_what_these_tests_write(tmp_path, maker):
    torch = pytest.importorskip("torch")
    (tmp_path / "weights.pth").write_bytes(maker(state_dict()))
    state = torch.load(tmp_path / "weights.pth", weights_only=False)
    assert list(state) == list(state_dict())
    for name, value in state_dict().items():
        theirs = state[name].detach()
        theirs = theirs.view(torch.uint8) if theirs.numel() and theirs.ndim else theirs
        assert tuple(state[name].shape) == value.shape
        assert theirs.numpy().tobytes() == value.tobytes()
