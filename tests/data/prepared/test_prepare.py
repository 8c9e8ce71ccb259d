"""Preparing through TFDS without TensorFlow, from tiny originals; reading the copies."""

import concurrent.futures
import hashlib
import http.server
import socket
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from support import archives
from tensorflow_datasets.core import hashing

from dh2l_jax.commands.data import main
from dh2l_jax.data.prepared import prepare, shuffle
from dh2l_jax.data.prepared.originals import files as files_module
from dh2l_jax.data.prepared.read import BUILDERS
from dh2l_jax.hierarchy.published import taxonomy

STOCK = {"cub200": "caltech_birds2011"}
VERSIONS = {
    "cifar10": "3.0.2",
    "cifar100": "3.0.2",
    "cub200": "0.2.0",
    "cars196": "2.1.0",
    "fashion_mnist": "3.0.1",
}
KEYS = {"cub200": "image/filename", "fashion_mnist": None}


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A function that writes the originals of a data set and returns its folders and examples."""

    def make(name):
        files, examples = archives.originals(name)
        manual = archives.write(files, tmp_path / "manual")
        archives.use_tiny(monkeypatch, name, manual)
        return manual, tmp_path / "data", examples

    return make


def run(name, data, manual, *, status=0):
    arguments = ["prepare", name, "--data-dir", str(data), "--manual-dir", str(manual)]
    assert main(arguments) == status


def check_stock_reader(name, data, examples):
    """Every example, read by TFDS itself, is what the maker wrote."""
    stock = STOCK.get(name, name)
    splits = tfds.data_source(stock, data_dir=data, download=False)
    for split, expected in examples.items():
        assert len(splits[split]) == len(expected)
        found = {key_of(name, example, expected): example for example in splits[split]}
        assert found.keys() == expected.keys()
        for key, want in expected.items():
            example = found[key]
            np.testing.assert_array_equal(example["image"], want.pixels)
            assert example["label"] == want.label
            for feature, value in want.features.items():
                check_feature(example[feature], value)
            if "segmentation_mask" in example:
                assert example["segmentation_mask"].shape == (*want.pixels.shape[:2], 1)
                assert not example["segmentation_mask"].any()


def check_feature(found, value):
    if isinstance(value, tuple):
        np.testing.assert_allclose(found, value, rtol=1e-6)
    else:
        assert (found.decode() if isinstance(found, bytes) else found) == value


def key_of(name, example, expected):
    key = KEYS.get(name, "id")
    if key:
        return example[key].decode()
    return next(i for i, e in expected.items() if np.array_equal(e.pixels, example["image"]))


def check_open_prepared(name, data, examples):
    source = prepare.open_prepared(name, data)
    assert source.name == name
    assert (
        source.hierarchy.num_classes
        == tfds.builder(STOCK.get(name, name)).info.features["label"].num_classes
    )
    for split, part in (("train", source.train), ("test", source.test)):
        left = list(examples[split].values())
        assert len(part) == len(left)
        for index in range(len(part)):
            data_bytes, label = part[index]
            pixels = archives.decoded(data_bytes)[..., : source.channels]
            hit = next(e for e in left if np.array_equal(e.pixels, pixels))
            assert (hit.label, type(label)) == (label, int)
            left.remove(hit)
    return source


@pytest.mark.parametrize("name", prepare.PREPARED)
def test_stock_reader_and_ours_find_every_example(tiny, name):
    manual, data, examples = tiny(name)
    run(name, data, manual)
    check_stock_reader(name, data, examples)
    check_open_prepared(name, data, examples)


@pytest.mark.parametrize("below", ["", "stanford_cars"])
def test_cars_from_the_extracted_folders(tmp_path, below):
    files, examples = archives.cars()
    archives.write(files, tmp_path / "manual" / below)
    run("cars196", tmp_path / "data", tmp_path / "manual")
    check_stock_reader("cars196", tmp_path / "data", examples)
    check_open_prepared("cars196", tmp_path / "data", examples)


@pytest.mark.parametrize("name", prepare.PREPARED)
def test_name_version_and_features_are_the_stock_ones(tiny, name, tmp_path):
    manual, data, _ = tiny(name)
    folder = prepare.prepare(name, data_dir=data, manual_dir=manual)
    stock = STOCK.get(name, name)
    assert folder == data / stock / VERSIONS[name]
    copy = tfds.builder_from_directory(folder)
    fresh = tfds.builder(stock, data_dir=tmp_path / "empty")
    assert repr(copy.info.features) == repr(fresh.info.features)
    assert (copy.info.name, str(copy.info.version)) == (fresh.info.name, str(fresh.info.version))


def test_examples_are_in_the_order_of_the_stock_builder(tiny):
    """TFDS orders by a hash of the key; the stock key of CIFAR is the index of the row."""
    manual, data, examples = tiny("cifar10")
    run("cifar10", data, manual)
    for split, records in tfds.data_source("cifar10", data_dir=data, download=False).items():
        hasher = hashing.Hasher(split)
        order = sorted(range(len(examples[split])), key=hasher.hash_key)
        assert [e["id"].decode() for e in records] == [f"{split}_{i:05d}" for i in order]


def test_large_splits_are_sorted_in_files(tiny, monkeypatch, tmp_path):
    manual, data, examples = tiny("cub200")
    small = prepare.open_prepared("cub200", prepare_into(data, manual)).train
    monkeypatch.setattr(shuffle, "MAX_IN_MEMORY", 0)
    large = prepare.open_prepared("cub200", prepare_into(tmp_path / "other", manual)).train
    assert len(large) == len(examples["train"])
    assert [large[i] for i in range(len(large))] == [small[i] for i in range(len(small))]
    assert not list((tmp_path / "other").rglob("*.tmp"))


def prepare_into(data, manual, name="cub200"):
    prepare.prepare(name, data_dir=data, manual_dir=manual)
    return data


def listing(folder):
    """Relative path → content and time of every file, for folders that must not change."""
    return {
        path.relative_to(folder): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_preparing_again_changes_nothing(tiny, capsys):
    manual, data, _ = tiny("cifar100")
    originals = listing(manual)
    run("cifar100", data, manual)
    assert "cifar100: prepared in" in capsys.readouterr().out
    before = listing(data)
    run("cifar100", data, manual)
    out, err = capsys.readouterr()
    assert out == f"cifar100: already prepared in {data / 'cifar100' / '3.0.2'}\n"
    assert (err, listing(data), listing(manual)) == ("", before, originals)


def test_tfds_own_name_is_accepted(tiny, capsys):
    manual, data, examples = tiny("cub200")
    run("caltech_birds2011", data, manual)
    assert capsys.readouterr().out.startswith("cub200: prepared in ")
    assert check_open_prepared("cub200", data, examples).hierarchy == taxonomy("cub200")
    assert prepare.open_prepared("caltech_birds2011", data).name == "cub200"


def test_default_folders_are_those_of_tfds(tiny, monkeypatch):
    manual, data, _ = tiny("cifar10")
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(data))
    manual.rename(data.parent / "moved")
    (data / "downloads").mkdir(parents=True)
    (data.parent / "moved").rename(data / "downloads" / "manual")
    assert main(["prepare", "cifar10"]) == 0
    assert len(prepare.open_prepared("cifar10").test) == 9


def test_the_source_describes_its_examples(tiny):
    manual, data, examples = tiny("cub200")
    run("cub200", data, manual)
    train = prepare.open_prepared("cub200", data).train
    described = {train.describe(i).split("(")[1].rstrip(")") for i in range(len(train))}
    assert described == examples["train"].keys()
    assert train.describe(0).startswith(f"{data / 'caltech_birds2011' / '0.2.0'}: train example 0")
    for index in (-1, len(train)):
        with pytest.raises(IndexError, match=f"0..{len(train) - 1}, found {index}"):
            train[index]


def test_a_split_is_read_from_several_threads(tiny):
    manual, data, _ = tiny("cifar100")
    run("cifar100", data, manual)
    train = prepare.open_prepared("cifar100", data).train
    index = [i % len(train) for i in range(20 * len(train))]
    expected = [train[i] for i in range(len(train))]
    fresh = prepare.open_prepared("cifar100", data).train
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = list(pool.map(fresh.__getitem__, index))
    assert found == [expected[i] for i in index]


def test_the_fingerprint_is_of_the_files(tiny, tmp_path):
    manual, data, _ = tiny("cifar10")
    run("cifar10", data, manual)
    first = prepare.open_prepared("cifar10", data).fingerprint
    assert prepare.open_prepared("cifar10", data).fingerprint == first
    shard = next(data.rglob("*train*"))
    shard.write_bytes(shard.read_bytes())
    assert prepare.open_prepared("cifar10", data).fingerprint != first


# TensorFlow seems to be installed, and stops whoever imports it.
SCRIPT = """
import importlib.machinery, sys

class Trap:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "tensorflow":
            return importlib.machinery.ModuleSpec(name, self)

    def create_module(self, spec):
        raise SystemExit(f"{spec.name} was imported")

sys.meta_path.insert(0, Trap())
from dh2l_jax.commands.data import main
from dh2l_jax.data.prepared import prepare
status = main(["prepare", "cars196", "--data-dir", sys.argv[1], "--manual-dir", sys.argv[2]])
train = prepare.open_prepared("cars196", sys.argv[1]).train
print(status, len(train), train[0][1] >= 0)
"""


def test_nothing_imports_tensorflow(tmp_path):
    files, examples = archives.cars()
    manual = archives.write(files, tmp_path / "manual")
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "data"), str(manual)]
    root = Path(__file__).parents[3]
    result = subprocess.run(command, capture_output=True, text=True, cwd=root)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == f"0 {len(examples['train'])} True"
    assert result.stderr == ""


def test_the_originals_are_those_of_tfds():
    sizes = {
        "cifar10": {"cifar-10-binary.tar.gz": 170052171},
        "cifar100": {"cifar-100-binary.tar.gz": 168513733},
        "cub200": {"CUB_200_2011.tgz": 1150585339},
        "cars196": {
            "cars_train.tgz": 979269282,
            "cars_test.tgz": 977350468,
            "car_devkit.tgz": 330960,
            "cars_test_annos_withlabels.mat": 185758,
        },
    }
    for name, files in sizes.items():
        infos = BUILDERS[name].url_infos.values()
        assert {info.filename: int(info.size) for info in infos} == files
        assert all(len(info.checksum) == 64 for info in infos)
    assert len(BUILDERS["fashion_mnist"].url_infos) == 4


# What the user is told.


def refused(capsys, *arguments):
    """The one line on stderr of a command that is refused."""
    assert main(["prepare", *map(str, arguments)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("dh2l data prepare: error: ")
    assert err.count("\n") == 1
    return err


def test_unknown_names(capsys):
    message = refused(capsys, "cifar11")
    assert "unknown data set 'cifar11': did you mean 'cifar10'?" in message
    with pytest.raises(ValueError, match="did you mean 'cub200'"):
        prepare.open_prepared("cub")


@pytest.mark.parametrize("name", prepare.PREPARED)
def test_a_missing_copy_names_the_command(tmp_path, name):
    with pytest.raises(ValueError, match="is not prepared in") as caught:
        prepare.open_prepared(name, tmp_path)
    command = f"run dh2l data prepare {name} --data-dir {tmp_path}"
    assert str(caught.value).endswith(command)
    assert not list(tmp_path.iterdir())


def test_missing_packages(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(prepare._PACKAGES, "no_such_module", "some-package")
    message = refused(capsys, "cifar10", "--data-dir", tmp_path / "data")
    assert "needs some-package, which is not installed: pip install 'dh2l_jax[data]'" in message


def test_a_manual_folder_that_is_none(tmp_path, capsys):
    where = tmp_path / "nowhere"
    message = refused(capsys, "cifar10", "--data-dir", tmp_path, "--manual-dir", where)
    assert f"expected a folder as manual_dir, found {where}" in message


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "cub200", "fashion_mnist"])
def test_without_network_it_says_what_to_fetch(tmp_path, monkeypatch, capsys, name):
    monkeypatch.setattr(files_module, "_refusal", lambda url: "cannot be reached")
    manual = archives.write({}, tmp_path / "manual")
    message = refused(
        capsys, name, "--data-dir", tmp_path / "data", "--manual-dir", tmp_path / "manual"
    )
    for url, info in BUILDERS[name].url_infos.items():
        assert f"fetch {url} by other means" in message
        assert f"{info.filename}, {int(info.size)} bytes, sha256 {info.checksum}" in message
        assert f"put it at {manual / info.filename}" in message
    assert not (tmp_path / "data").exists()


def test_only_missing_files_are_asked_for(tiny, monkeypatch, capsys):
    manual, data, _ = tiny("fashion_mnist")
    monkeypatch.setattr(files_module, "_refusal", lambda url: "cannot be reached")
    (manual / "t10k-labels-idx1-ubyte.gz").unlink()
    message = refused(capsys, "fashion_mnist", "--data-dir", data, "--manual-dir", manual)
    assert message.count("put it at") == 1
    assert f"put it at {manual / 't10k-labels-idx1-ubyte.gz'}" in message


def test_cars_say_both_ways_in(tmp_path, capsys):
    files, _ = archives.cars()
    del files["devkit/cars_train_annos.mat"]
    manual = archives.write(files, tmp_path / "manual")
    message = refused(capsys, "cars196", "--data-dir", tmp_path / "d", "--manual-dir", manual)
    assert "Stanford has not served Cars196 since 2023" in message
    assert f"missing in {manual}: devkit/cars_train_annos.mat)" in message
    assert "missing: cars_test.tgz, 977350468 bytes, sha256 bffea656" in message
    assert not (tmp_path / "d").exists()


# Loopback: a closed port, a server that says nothing, and one that sends what it likes.


@pytest.fixture
def served(monkeypatch, tmp_path):
    """A function that moves the original of CIFAR-10 to an address on this machine."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    def move(port, content=b""):
        folder = archives.write({"cifar-10-binary.tar.gz": content}, tmp_path / "expected")
        archives.use_tiny(monkeypatch, "cifar10", folder)
        builder = BUILDERS["cifar10"]
        url = f"http://127.0.0.1:{port}/cifar-10-binary.tar.gz"
        monkeypatch.setattr(builder, "url_infos", {url: next(iter(builder.url_infos.values()))})
        stock = builder._cifar_info
        monkeypatch.setattr(
            builder, "_cifar_info", property(lambda self: stock.fget(self)._replace(url=url))
        )
        return url

    return move


@pytest.fixture
def silent_port():
    """A port that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def serve(content, status=200):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def test_a_closed_port(served, silent_port, tmp_path, capsys):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    url = served(port)
    message = refused(capsys, "cifar10", "--data-dir", tmp_path / "data")
    assert f"{url}: cannot be reached (ConnectionError); fetch {url} by other means" in message
    manual = tmp_path / "data" / "downloads" / "manual" / "cifar-10-binary.tar.gz"
    assert f"put it at {manual}" in message
    assert not (tmp_path / "data").exists()


def test_a_server_that_does_not_answer(served, silent_port, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(files_module, "PROBE_SECONDS", 0.2)
    url = served(silent_port)
    message = refused(capsys, "cifar10", "--data-dir", tmp_path / "data")
    assert f"{url}: " in message
    assert "put it at" in message


def test_a_look_up_that_hangs(monkeypatch):
    release = threading.Event()
    monkeypatch.setattr(files_module, "PROBE_SECONDS", 0.2)
    monkeypatch.setattr(files_module, "_refusal", lambda url: release.wait(60) and "")
    assert files_module.unreachable(["http://a", "http://b"]) == "http://a: no answer within 0.2 s"
    release.set()


@pytest.mark.parametrize("status", [404, 503])
def test_an_address_that_is_dead(served, tmp_path, capsys, status):
    with serve(b"gone", status) as server:
        served(server.server_port)
        message = refused(capsys, "cifar10", "--data-dir", tmp_path / "data")
        server.shutdown()
    assert f"HTTP status {status}; fetch http://127.0.0.1" in message


def test_a_download(served, tmp_path, capsys):
    files, examples = archives.originals("cifar10")
    content = files["cifar-10-binary.tar.gz"]
    with serve(content) as server:
        served(server.server_port, content)
        run("cifar10", tmp_path / "data", archives.write({}, tmp_path / "manual"))
        server.shutdown()
    check_stock_reader("cifar10", tmp_path / "data", examples)
    cached = list((tmp_path / "data" / "downloads" / "cifar10").glob("*.tar.gz"))
    assert [hashlib.sha256(path.read_bytes()).digest() for path in cached] == [
        hashlib.sha256(content).digest()
    ]
    # From the cache, with the server gone.
    (tmp_path / "data" / "cifar10").rename(tmp_path / "aside")
    run("cifar10", tmp_path / "data", tmp_path / "manual")


def test_a_download_of_something_else(served, tmp_path, capsys):
    with serve(b"<html>Please log in</html>") as server:
        served(server.server_port, b"the real archive")
        message = refused(capsys, "cifar10", "--data-dir", tmp_path / "data")
        server.shutdown()
    assert "has wrong checksum: Expected: UrlInfo(" in message
    assert not (tmp_path / "data").exists()


# Copies that are damaged.


def damage_info(folder):
    (folder / "dataset_info.json").write_text("{")


def lose_shard(folder):
    next(folder.glob("*test*")).unlink()


def lose_everything(folder):
    for file in folder.iterdir():
        file.unlink()


def wrong_format(folder):
    info = folder / "dataset_info.json"
    info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))


def lose_split(folder):
    info = folder / "dataset_info.json"
    info.write_text(info.read_text().replace('"name": "test"', '"name": "validation"'))


def rename_class(folder):
    names = folder / "label.labels.txt"
    names.write_text(names.read_text().replace("apple", "pear tart"))


DAMAGE = {
    "info that is no JSON": (damage_info, "the prepared copy is damaged"),
    "an empty folder": (lose_everything, "is not whole"),
    "no shard": (lose_shard, "is missing"),
    "tfrecord": (wrong_format, "expected array_record files, found tfrecord"),
    "no test split": (lose_split, "is not whole"),
    "another class": (rename_class, "expected the 100 classes of the tree of cifar100"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damaged_copies_are_refused(tiny, case):
    damage, match = DAMAGE[case]
    manual, data, _ = tiny("cifar100")
    run("cifar100", data, manual)
    damage(data / "cifar100" / "3.0.2")
    with pytest.raises(ValueError, match=match) as caught:
        prepare.open_prepared("cifar100", data)
    assert str(data) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_damaged_shard_is_named(tiny):
    manual, data, _ = tiny("cifar100")
    run("cifar100", data, manual)
    shard = next(data.rglob("*train.array_record*"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 4 : len(content) // 2] = bytes(len(content) // 4)
    shard.write_bytes(content)
    train = prepare.open_prepared("cifar100", data).train
    with pytest.raises(ValueError, match=r"train example .* damaged"):
        list(map(train.__getitem__, range(len(train))))
