"""Preparing through TFDS without TensorFlow, from tiny originals; reading the copies."""

import concurrent.futures
import contextlib
import http.server
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from support import archives
from support.folders import encoded, noise
from tensorflow_datasets.core import hashing

from dh2l_jax.commands.data import main
from dh2l_jax.data.facts import FACTS
from dh2l_jax.data.prepared import prepare, shuffle
from dh2l_jax.data.prepared.originals import files as files_module
from dh2l_jax.data.prepared.originals.images import rgb_image
from dh2l_jax.data.prepared.read import BUILDERS
from dh2l_jax.data.store.decode import decode
from dh2l_jax.hierarchy.published import taxonomy

VERSIONS = {
    "cifar10": "3.0.2",
    "cifar100": "3.0.2",
    "cub200": "0.2.0",
    "cars196": "2.1.0",
    "fashion_mnist": "3.0.1",
}
KEYS = {"cub200": "image/filename", "fashion_mnist": None}
SIZES = {
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


def stock(name):
    return FACTS[name].tfds_name or name


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A function of a data set's name → the folder of all prepared copies; not to be changed."""
    root = tmp_path_factory.mktemp("prepared")

    def make(name):
        if not (root / name).exists():
            with pytest.MonkeyPatch.context() as monkeypatch:
                archives.prepare_tiny(monkeypatch, name, root / name)
        return root / name / "data"

    return make


@pytest.fixture
def copied(prepared, tmp_path):
    """A prepared copy that may be changed."""
    return lambda name: Path(shutil.copytree(prepared(name), tmp_path / "data"))


def check_stock_reader(name, data):
    """Every example, read by TFDS itself, is what the maker wrote."""
    splits = tfds.data_source(stock(name), data_dir=data, download=False)
    for split, expected in archives.examples(name).items():
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


def check_open_prepared(name, data):
    source = prepare.open_prepared(name, data)
    assert source.name == name
    assert source.hierarchy.num_classes == FACTS[name].classes
    for split, part in (("train", source.train), ("test", source.test)):
        left = list(archives.examples(name)[split].values())
        assert len(part) == len(left)
        for index in range(len(part)):
            data_bytes, label = part[index]
            pixels = archives.decoded(data_bytes)[..., : source.channels]
            hit = next(e for e in left if np.array_equal(e.pixels, pixels))
            assert (hit.label, type(label)) == (label, int)
            left.remove(hit)


@pytest.mark.parametrize("name", prepare.PREPARED)
def test_a_copy_is_the_stock_one(prepared, name, tmp_path):
    data = prepared(name)
    check_stock_reader(name, data)
    check_open_prepared(name, data)
    copy = tfds.builder_from_directory(data / stock(name) / VERSIONS[name])
    fresh = tfds.builder(stock(name), data_dir=tmp_path)
    assert repr(copy.info.features) == repr(fresh.info.features)
    assert (copy.info.name, str(copy.info.version)) == (fresh.info.name, str(fresh.info.version))


@pytest.mark.parametrize("below", ["", "stanford_cars"])
def test_cars_from_the_extracted_folders(tmp_path, below):
    archives.write(archives.members("cars196"), tmp_path / "manual" / below)
    prepare.prepare("cars196", data_dir=tmp_path / "data", manual_dir=tmp_path / "manual")
    check_stock_reader("cars196", tmp_path / "data")


def test_examples_are_in_the_order_of_the_stock_builder(prepared):
    """TFDS orders by a hash of the key; the stock key of CIFAR is the index of the row."""
    for split, records in tfds.data_source(
        "cifar10", data_dir=prepared("cifar10"), download=False
    ).items():
        hasher = hashing.Hasher(split)
        order = sorted(range(len(records)), key=hasher.hash_key)
        assert [e["id"].decode() for e in records] == [f"{split}_{i:05d}" for i in order]


def test_large_splits_are_sorted_in_files(prepared, monkeypatch, tmp_path):
    small = prepare.open_prepared("cub200", prepared("cub200")).train
    monkeypatch.setattr(shuffle, "MAX_IN_MEMORY", 0)
    large = archives.prepare_tiny(monkeypatch, "cub200", tmp_path).train
    assert [large[i] for i in range(len(large))] == [small[i] for i in range(len(small))]
    assert not list(tmp_path.rglob("*.tmp"))


def listing(folder):
    """Relative path → content and time of every file, for folders that must not change."""
    return {
        path.relative_to(folder): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_the_command_prepares_once(tmp_path, monkeypatch, capsys):
    manual = archives.write(archives.originals("cub200"), tmp_path / "manual")
    archives.use_tiny(monkeypatch, "cub200", manual)
    data, originals = tmp_path / "data", listing(manual)
    words = ["prepare", "caltech_birds2011", "--data-dir", str(data), "--manual-dir", str(manual)]
    assert main(words) == 0
    before = listing(data)
    assert main(words) == 0
    where = data / "caltech_birds2011" / "0.2.0"
    out, err = capsys.readouterr()
    assert out == f"cub200: prepared in {where}\ncub200: already prepared in {where}\n"
    assert (err, listing(data), listing(manual)) == ("", before, originals)
    source = prepare.open_prepared("caltech_birds2011", data)
    assert (source.name, source.hierarchy) == ("cub200", taxonomy("cub200"))


def test_default_folders_are_those_of_tfds(tmp_path, monkeypatch):
    manual = tmp_path / "downloads" / "manual"
    archives.use_tiny(monkeypatch, "cifar10", archives.write(archives.originals("cifar10"), manual))
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(tmp_path))
    prepare.prepare("cifar10")
    assert len(prepare.open_prepared("cifar10").test) == 9


def test_the_source_describes_its_examples(prepared):
    data = prepared("cub200")
    train = prepare.open_prepared("cub200", data).train
    described = {train.describe(i).split("(")[1].rstrip(")") for i in range(len(train))}
    assert described == archives.examples("cub200")["train"].keys()
    assert train.describe(0).startswith(f"{data / 'caltech_birds2011' / '0.2.0'}: train example 0")
    for index in (-1, len(train)):
        with pytest.raises(IndexError, match=f"0..{len(train) - 1}, found {index}"):
            train[index]


def test_a_split_is_read_from_several_threads(prepared):
    train, fresh = (prepare.open_prepared("cifar100", prepared("cifar100")).train for _ in "ab")
    expected = [train[i] for i in range(len(train))]
    index = [i % len(train) for i in range(5 * len(train))]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = list(pool.map(fresh.__getitem__, index))
    assert found == [expected[i] for i in index]


def test_the_fingerprint_is_of_the_files(copied):
    data = copied("cifar10")
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
from dh2l_jax.data.prepared import prepare
prepare.prepare("cars196", data_dir=sys.argv[1], manual_dir=sys.argv[2])
train = prepare.open_prepared("cars196", sys.argv[1]).train
print(len(train), train[0][1] >= 0)
"""


def test_nothing_imports_tensorflow(tmp_path):
    manual = archives.write(archives.members("cars196"), tmp_path / "manual")
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "data"), str(manual)]
    root = Path(__file__).parents[3]
    result = subprocess.run(command, capture_output=True, text=True, cwd=root)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == f"{len(archives.examples('cars196')['train'])} True\n"


@pytest.mark.parametrize("name", SIZES)
def test_the_originals_are_those_of_tfds(name):
    infos = BUILDERS[name].url_infos.values()
    assert {info.filename: int(info.size) for info in infos} == SIZES[name]
    assert all(len(info.checksum) == 64 for info in infos)


# What the user is told.


def refused(name, root, manual=None, error=(ValueError, OSError, ImportError)):
    """The one line of a preparation that is refused and leaves no folder."""
    with pytest.raises(error) as caught:
        prepare.prepare(name, data_dir=root / "data", manual_dir=manual)
    assert "\n" not in str(caught.value)
    assert not (root / "data").exists()
    return str(caught.value)


def test_bad_names_are_one_line_of_the_command(capsys):
    assert main(["prepare", "cifar11"]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "prepare: error: unknown data set 'cifar11': did you mean 'cifar10'?" in err
    with pytest.raises(ValueError, match="did you mean 'cub200'"):
        prepare.open_prepared("cub")


@pytest.mark.parametrize("name", prepare.PREPARED)
def test_a_missing_copy_names_the_command(tmp_path, name):
    with pytest.raises(ValueError, match="is not prepared in") as caught:
        prepare.open_prepared(name, tmp_path)
    assert str(caught.value).endswith(f"data prepare {name} --data-dir {tmp_path}")
    assert not list(tmp_path.iterdir())


def test_missing_packages_and_folders(tmp_path, monkeypatch):
    where = tmp_path / "nowhere"
    assert f"expected a folder as manual_dir, found {where}" in refused("cifar10", tmp_path, where)
    monkeypatch.setitem(prepare._PACKAGES, "no_such_module", "some-package")
    message = refused("cifar10", tmp_path)
    assert "needs some-package, which is not installed: pip install 'dh2l_jax[data]'" in message


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "cub200", "fashion_mnist"])
def test_without_network_it_says_what_to_fetch(tmp_path, monkeypatch, name):
    monkeypatch.setattr(files_module, "_refusal", lambda url: "cannot be reached")
    manual = archives.write({}, tmp_path / "manual")
    message = refused(name, tmp_path, manual)
    for url, info in BUILDERS[name].url_infos.items():
        assert f"fetch {url} by other means" in message
        assert f"{info.filename}, {int(info.size)} bytes, sha256 {info.checksum}" in message
        assert f"put it at {manual / info.filename}" in message


def test_only_missing_files_are_asked_for(tmp_path, monkeypatch):
    manual = archives.write(archives.originals("fashion_mnist"), tmp_path / "manual")
    archives.use_tiny(monkeypatch, "fashion_mnist", manual)
    monkeypatch.setattr(files_module, "_refusal", lambda url: "cannot be reached")
    (manual / "t10k-labels-idx1-ubyte.gz").unlink()
    message = refused("fashion_mnist", tmp_path, manual)
    assert message.count("put it at") == 1
    assert f"put it at {manual / 't10k-labels-idx1-ubyte.gz'}" in message


def test_cars_say_both_ways_in(tmp_path):
    files = dict(archives.members("cars196"))
    del files["devkit/cars_train_annos.mat"]
    manual = archives.write(files, tmp_path / "manual")
    message = refused("cars196", tmp_path, manual)
    assert "Stanford has not served Cars196 since 2023" in message
    assert f"missing in {manual}: devkit/cars_train_annos.mat)" in message
    assert "missing: cars_test.tgz, 977350468 bytes, sha256 bffea656" in message


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


@contextlib.contextmanager
def serve(content, status=200):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server.server_port
        server.shutdown()


@pytest.mark.parametrize("answers", [False, True])
def test_a_server_that_is_no_server(served, tmp_path, monkeypatch, answers):
    """A port that is closed, and one that takes connections and never answers."""
    monkeypatch.setattr(files_module, "PROBE_SECONDS", 0.2 if answers else 5)
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        url = served(server.getsockname()[1])
        if not answers:
            stack.close()
        message = refused("cifar10", tmp_path)
    reason = "" if answers else f"cannot be reached (ConnectionError); fetch {url} by other means"
    assert f"{url}: {reason}" in message
    manual = tmp_path / "data" / "downloads" / "manual" / "cifar-10-binary.tar.gz"
    assert f"put it at {manual}" in message


def test_a_look_up_that_hangs(monkeypatch):
    release = threading.Event()
    monkeypatch.setattr(files_module, "PROBE_SECONDS", 0.2)
    monkeypatch.setattr(files_module, "_refusal", lambda url: release.wait(60) and "")
    assert files_module.unreachable(["http://a", "http://b"]) == "http://a: no answer within 0.2 s"
    release.set()


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (404, "HTTP status 404; fetch http://127.0.0.1"),
        (503, "HTTP status 503; fetch http://127.0.0.1"),
        (200, "has wrong checksum: Expected: UrlInfo("),
    ],
)
def test_a_server_that_sends_something_else(served, tmp_path, status, message):
    with serve(b"<html>Please log in</html>", status) as port:
        served(port, b"the real archive")
        assert message in refused("cifar10", tmp_path)


def test_a_download_is_kept(served, tmp_path):
    content = archives.originals("cifar10")["cifar-10-binary.tar.gz"]
    with serve(content) as port:
        served(port, content)
        prepare.prepare("cifar10", data_dir=tmp_path / "data")
    check_stock_reader("cifar10", tmp_path / "data")
    (tmp_path / "data" / "cifar10").rename(tmp_path / "aside")
    prepare.prepare("cifar10", data_dir=tmp_path / "data")  # the server is gone


# Copies that are damaged.


def change(name, old, new):
    return lambda folder: (folder / name).write_text((folder / name).read_text().replace(old, new))


DAMAGE = {
    "info that is no JSON": (
        lambda folder: (folder / "dataset_info.json").write_text("{"),
        "the prepared copy is damaged",
    ),
    "an empty folder": (
        lambda folder: [file.unlink() for file in folder.iterdir()],
        "is not whole",
    ),
    "no shard": (lambda folder: next(folder.glob("*test*")).unlink(), "is missing"),
    "tfrecord": (
        change("dataset_info.json", '"array_record"', '"tfrecord"'),
        "expected array_record files, found tfrecord",
    ),
    "no test split": (
        change("dataset_info.json", '"name": "test"', '"name": "validation"'),
        "is not whole",
    ),
    "another class": (
        change("label.labels.txt", "apple", "pear tart"),
        "expected the 100 classes of the tree of cifar100",
    ),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damaged_copies_are_refused(copied, case):
    damage, match = DAMAGE[case]
    data = copied("cifar100")
    damage(data / "cifar100" / "3.0.2")
    with pytest.raises(ValueError, match=match) as caught:
        prepare.open_prepared("cifar100", data)
    assert str(data) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_damaged_shard_is_named(copied):
    data = copied("cifar100")
    shard = next(data.rglob("*train.array_record*"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 4 : len(content) // 2] = bytes(len(content) // 4)
    shard.write_bytes(content)
    train = prepare.open_prepared("cifar100", data).train
    with pytest.raises(ValueError, match=r"train example .* damaged"):
        list(map(train.__getitem__, range(len(train))))


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_what_is_prepared_still_says_where_its_top_is(mode):
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.fromarray(noise(20, 30)).convert(mode)
    original = encoded(image, "JPEG", exif=exif)
    kept, size = rgb_image(original, "1.jpg")
    assert size == (30, 20)
    np.testing.assert_array_equal(decode(kept), decode(original))
    assert decode(kept).shape == (30, 20, 3)
