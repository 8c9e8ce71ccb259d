"""safetensors in and out, and files of the Hub from a server on this machine."""

import functools
import http.server
import os
import subprocess
import sys
import threading
import tracemalloc

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save
from support.pth_files import MAKERS

from dh2l_jax.models.weights.formats import read_weights, write_safetensors

DTYPES = ["float16", "bfloat16", "float32", "float64", "int64", "int32", "int16", "int8", "uint8"]


def tensors():
    """Of each dtype, and of shapes from a scalar to a kernel's; every bit pattern must survive."""
    generator, state = np.random.default_rng(0), {}
    for dtype in map(jnp.dtype, DTYPES):
        data = generator.integers(0, 256, 24 * dtype.itemsize, np.uint8)
        state[f"{dtype.name}.weight"] = data.view(dtype).reshape(2, 3, 4, 1)
    return state | {"scalar": np.array(7), "empty": np.zeros((3, 0)), "flag": np.array([True])}


def test_every_dtype_and_shape(tmp_path):
    path = write_safetensors(tmp_path / "file.safetensors", tensors(), {"format": "pt"})
    found = read_weights(path)
    assert found.keys() == tensors().keys()
    for name, value in tensors().items():
        assert (found[name].dtype, found[name].shape) == (value.dtype, value.shape), name
        assert found[name].tobytes() == value.tobytes(), name


@pytest.mark.parametrize("kind", MAKERS)
def test_other_endings_are_torch_s(tmp_path, kind):
    (tmp_path / "file.pt").write_bytes(MAKERS[kind]({"a": np.arange(3.0)}))
    np.testing.assert_array_equal(read_weights(tmp_path / "file.pt")["a"], np.arange(3.0))


def header(text):
    return len(text).to_bytes(8, "little") + text


WHOLE = save({"a": np.ones(3, np.float32), "b": np.zeros(2)})
ONE = b'{"a": {"dtype": "%b", "shape": %b, "data_offsets": [0, %d]}}'
DAMAGED = {
    "empty": b"",
    "page": b"<!DOCTYPE html><html>404",
    "pointer": b"version https://git-lfs.github.com/spec/v1\n",
    "pickle": MAKERS["zip"]({"a": np.ones(3)}),
    "cut short": WHOLE[:-1],
    "too long": WHOLE + b"1",
    "no JSON": header(b"{]"),
    "header of 2⁶³ bytes": b"\xff" * 7 + b"\x7f{}",
    "control characters": header(b'{"\\u001b\n": \x1b[31m}'),
    "more than the file": header(ONE % (b"F32", b"[1099511627776]", 2**42)),
    "shape of another size": header(ONE % (b"F32", b"[2]", 4)) + bytes(4),
    "product beyond 2⁶⁴": header(ONE % (b"F32", b"[4294967296, 4294967296, 4]", 0)),
    "negative": header(ONE % (b"F32", b"[-1]", 4)) + bytes(4),
    "dtype of eight bits": header(ONE % (b"F8_E4M3", b"[4]", 4)) + bytes(4),
    "no dtype": header(ONE % (b"F31", b"[1]", 4)) + bytes(4),
    "overlap": header(
        b'{"a": {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]},'
        b' "b": {"dtype": "U8", "shape": [2], "data_offsets": [1, 3]}}'
    )
    + bytes(3),
}


def check_refused(path, error):
    message = str(error)
    assert message.startswith(f"{path}: no safetensors file, or damaged: ")
    assert message.isprintable()
    assert len(message) < len(str(path)) + 200


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_files(tmp_path, name):
    path = tmp_path / "file.safetensors"
    path.write_bytes(DAMAGED[name])
    with pytest.raises(ValueError) as info:
        read_weights(path)
    check_refused(path, info.value)


def test_every_truncation_and_three_hundred_mutations(tmp_path):
    path, refused = tmp_path / "file.safetensors", 0
    generator = np.random.default_rng(0)
    damaged = [WHOLE[:size] for size in range(len(WHOLE))]
    for _ in range(300):
        data = bytearray(WHOLE)
        data[generator.integers(len(data))] = generator.integers(256)
        damaged.append(bytes(data))
    tracemalloc.start()
    try:
        for data in damaged:
            path.write_bytes(data)
            try:
                assert sum(value.nbytes for value in read_weights(path).values()) <= len(data)
            except ValueError as error:
                check_refused(path, error)
                refused += 1
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
    assert len(WHOLE) < refused < len(damaged)


def test_a_file_is_whole_or_not_written(tmp_path, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"older")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_safetensors(path, tensors(), {})
    assert path.read_bytes() == b"older"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("module", ["safetensors", "safetensors.numpy", "huggingface_hub"])
def test_extras_that_are_not_installed(tmp_path, monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    calls = {
        "safetensors": lambda: read_weights(tmp_path / "file.safetensors"),
        "safetensors.numpy": lambda: write_safetensors(tmp_path / "file.safetensors", {}, {}),
        "huggingface_hub": lambda: read_weights("hf://timm/resnet50.tv_in1k"),
    }
    package, extra = module.split(".")[0], "hub" if module == "huggingface_hub" else "export"
    with pytest.raises(ImportError, match=rf"^no {package}: pip install 'dh2l_jax\[{extra}\]'$"):
        calls[module]()


# The Hub.


@pytest.mark.parametrize(
    "address",
    [
        "hf://",
        "hf:timm/resnet50",
        "hf://resnet50",
        "hf://a/b/c",
        "hf://a/b@",
        "hf://a/../b",
    ],
)
def test_addresses_that_are_none(address):
    with pytest.raises(ValueError, match="expected hf://OWNER/NAME or hf://OWNER/NAME@REVISION, f"):
        read_weights(address)


@pytest.mark.parametrize("name", ["resnetblur50.bt_in1k", "resnet50d.ra2_in1k", "vit_base"])
def test_other_networks_of_timm(name):
    """Of resnetblur50, names and shapes are those of resnet50."""
    with pytest.raises(ValueError, match="unknown network"):
        read_weights(f"hf://timm/{name}")


class Hub(http.server.BaseHTTPRequestHandler):
    """Serves what a repository of the Hub does: HEAD and GET of one file, at two revisions."""

    log_message = staticmethod(lambda *_: None)

    def do_HEAD(self, body=False):
        self.server.requests.append((self.path, dict(self.headers)))
        data = self.server.files.get(self.path)
        self.send_response(200 if data else 404)
        if data:
            self.send_header("ETag", f'"{len(data)}"')
            self.send_header("X-Repo-Commit", f"{len(data):040x}")
        else:
            self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Length", str(len(data or b"")))
        self.end_headers()
        if body and data:
            self.wfile.write(data)

    do_GET = functools.partialmethod(do_HEAD, body=True)


@pytest.fixture
def hub():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.requests, server.files = [], {}
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def from_hub(tmp_path, hub, address, **variables):
    """The sum of a tensor "a" of the Hub, or the error, from a process of its own."""
    script = (
        "import sys; from dh2l_jax.models.weights.formats import read_weights\n"
        "try: print(read_weights(sys.argv[1])['a'].sum())\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    settings = {
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_address[1]}",
        "HF_HOME": str(tmp_path),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_TOKEN": "secret",
        "JAX_PLATFORMS": "cpu",
    }
    found = subprocess.run(
        [sys.executable, "-c", script, address],
        env={**os.environ, **settings, **variables},
        capture_output=True,
        text=True,
    )
    return found.stdout


def test_files_of_the_hub(tmp_path, hub):
    address = "hf://timm/resnet50.tv_in1k"
    for revision, value in (("main", 1), ("v2", 2)):
        path = f"/timm/resnet50.tv_in1k/resolve/{revision}/model.safetensors"
        hub.files[path] = save({"a": np.full(3 * value, value, np.float32)})
    assert from_hub(tmp_path, hub, address) == "3.0\n"
    assert from_hub(tmp_path, hub, f"{address}@v2") == "12.0\n"
    # One file at each revision is all that is asked for, and no token is sent.
    assert {path for path, _ in hub.requests} == set(hub.files)
    for _, headers in hub.requests:
        assert "secret" not in str(headers)
        assert "torch" not in str(headers)
    # What has been downloaded is there without the network too.
    assert from_hub(tmp_path, hub, address, HF_HUB_OFFLINE="1") == "3.0\n"


@pytest.mark.parametrize(
    ("where", "reason"),
    [
        ({}, "404"),
        ({"HF_HUB_OFFLINE": "1"}, "cannot find the requested files in the local cache"),
        # The Hub's own client tries again for 23 seconds.
        pytest.param({"HF_ENDPOINT": "http://127.0.0.1:9"}, "connection", marks=pytest.mark.slow),
    ],
)
def test_what_the_hub_does_not_give(tmp_path, hub, where, reason):
    line = from_hub(tmp_path, hub, "hf://timm/resnet18.tv_in1k", **where)
    assert line.startswith("OSError hf://timm/resnet18.tv_in1k: not downloaded: ")
    assert reason in line
    assert line.count("\n") == 1


def test_a_damaged_file_of_the_hub(tmp_path, hub):
    hub.files["/a/b/resolve/main/model.safetensors"] = b"<html>"
    line = from_hub(tmp_path, hub, "hf://a/b")
    assert "model.safetensors: no safetensors file, or damaged: " in line
    assert line.count("\n") == 1


def test_what_is_written_is_read_by_safetensors(tmp_path):
    path = write_safetensors(tmp_path / "file.safetensors", {"a": np.arange(3.0)}, {})
    np.testing.assert_array_equal(load_file(path)["a"], np.arange(3.0))
