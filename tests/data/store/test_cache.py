"""The cache of decoded images: decoded once, checked always, never half-written."""

import json
import logging
import threading

import numpy as np
import pytest
from support.folders import encoded, noise

import dh2l_jax as dh2l
from dh2l_jax.data.store import cache
from dh2l_jax.data.store.cache import open_cached
from dh2l_jax.data.store.images import RaggedImages
from dh2l_jax.data.store.source import Source


class Memory:
    """Examples in memory that count how often they are read."""

    def __init__(self, images, labels):
        self.images, self.labels, self.reads = images, labels, 0

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        self.reads += 1
        return self.images[index], self.labels[index]

    def describe(self, index):
        """What messages call it."""
        return f"picture {index}"


SIZES = ((7, 9), (12, 5), (8, 8))


def source(sizes=SIZES, fingerprint="1", labels=(0, 1, 2), extra=(), **options):
    images = [encoded(noise(*size, seed)) for seed, size in enumerate(sizes)] + list(extra)
    train = Memory(images, list(labels) + [0] * len(extra))
    test = Memory(images[:1], [2])
    return Source("some/images", fingerprint, dh2l.Hierarchy.flat(3), train, test, **options)


def test_decoded_once_and_exact(tmp_path):
    first = source()
    for data in (first, source()):
        splits = open_cached(data, tmp_path)
        images, labels, *_ = splits["train"]
        assert isinstance(images, RaggedImages)
        assert labels.tolist() == [0, 1, 2]
        assert labels.dtype == np.int32
        for seed, size in enumerate(SIZES):
            np.testing.assert_array_equal(images[seed], noise(*size, seed))
        assert splits["test"][0].shape == (1, 7, 9, 3)
    assert first.train.reads == 3
    assert data.train.reads == data.test.reads == 0
    assert isinstance(images.pixels, np.memmap)
    assert not images.pixels.flags.writeable
    assert [path.name[:12] for path in tmp_path.iterdir()] == ["some_images-"]


def test_images_of_one_size_are_one_array(tmp_path):
    images, _, *_ = open_cached(source(sizes=((6, 7),) * 3), tmp_path)["train"]
    assert images.shape == (3, 6, 7, 3)
    np.testing.assert_array_equal(images[2], noise(6, 7, 2))


@pytest.mark.parametrize(
    ("other", "resize"), [({"fingerprint": "2"}, 0), ({}, 4), ({"channels": 1}, 0)]
)
def test_another_source_or_size_is_another_cache(tmp_path, other, resize):
    open_cached(source(), tmp_path)
    images, _, *_ = open_cached(source(**other), tmp_path, resize=resize)["train"]
    assert len(list(tmp_path.iterdir())) == 2
    if resize:
        assert images.size.tolist() == [[4, 5], [9, 4], [4, 4]]
    if "channels" in other:
        assert images[0].shape == (7, 9, 1)


def only(folder):
    (path,) = folder.iterdir()
    return path


@pytest.mark.parametrize("name", ["train.pixels", "test.index", "manifest.json"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "longer", "delete"])
def test_damage_is_noticed_and_mended(tmp_path, caplog, name, damage):
    open_cached(source(), tmp_path)
    path = only(tmp_path) / name
    data = bytearray(path.read_bytes())
    middle = data.index(b"sha256") if name == "manifest.json" else len(data) // 2
    data[middle] ^= 4
    if damage == "delete":
        path.unlink()
    else:
        kept = {"flip": data, "truncate": data[:middle], "empty": b"", "longer": data + b"x"}
        path.write_bytes(kept[damage])
    again = source()
    with caplog.at_level(logging.WARNING):
        images, _, *_ = open_cached(again, tmp_path)["train"]
    np.testing.assert_array_equal(images[1], noise(*SIZES[1], 1))
    assert again.train.reads == 3
    assert "its images are decoded again" in caplog.text
    assert name in caplog.text


def test_every_flipped_bit_of_the_pixels_is_noticed(tmp_path):
    open_cached(source(sizes=((2, 2),) * 3), tmp_path)
    path = only(tmp_path) / "train.pixels"
    data = path.read_bytes()
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        with pytest.raises(ValueError, match="is damaged"):
            cache._read(path.parent, source())
    path.write_bytes(data)
    cache._read(path.parent, source())


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (b"", "expected a JPEG, PNG, WEBP, GIF, BMP or TIFF image, found an empty file"),
        (b"<!DOCTYPE html>\n404", "expected a .* image, found a web page"),
        (encoded(noise(40, 40), "JPEG")[:500], "expected a whole image, found: "),
        (encoded(noise(40, 40))[:900], "expected a whole image, found: "),
    ],
)
def test_a_bad_image_is_named_and_nothing_stays(tmp_path, bad, message):
    with pytest.raises(ValueError, match=f"picture 3: {message}"):
        open_cached(source(extra=[bad]), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_bad_labels_and_empty_splits(tmp_path):
    with pytest.raises(ValueError, match=r"picture 1: expected a label in 0\.\.2, found 3"):
        open_cached(source(labels=(0, 3, 2)), tmp_path)
    with pytest.raises(ValueError, match="picture 2: expected a label"):
        open_cached(source(labels=(0, 1, -1)), tmp_path)
    with pytest.raises(ValueError, match="a split holds no images"):
        open_cached(source(sizes=(), labels=()), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("fail_at", [1, 2, 3, 4])
def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch, fail_at):
    writes = iter(range(1, 100))
    write = cache._Checksummed.write

    def full(self, data):
        if next(writes) == fail_at:
            raise OSError(28, "No space left on device")
        write(self, data)

    monkeypatch.setattr(cache._Checksummed, "write", full)
    with pytest.raises(OSError, match="No space left"):
        open_cached(source(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_two_at_once_agree(tmp_path):
    results = []

    def run():
        images, _, *_ = open_cached(source(), tmp_path)["train"]
        results.append(np.array(images.pixels))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    for other in results:
        np.testing.assert_array_equal(other, results[0])
    assert len(list(tmp_path.iterdir())) == 1


def test_the_default_folder_is_the_users(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    open_cached(source())
    assert only(tmp_path).name == "dh2l_jax"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.default_folder() == tmp_path / ".cache" / "dh2l_jax"


def test_the_manifest_says_what_it_is(tmp_path):
    open_cached(source(), tmp_path, resize=4)
    manifest = json.loads((only(tmp_path) / "manifest.json").read_text())
    assert manifest["resize"] == 4
    assert set(manifest["files"]) == {
        f"{split}.{kind}" for split in ("train", "test") for kind in ("pixels", "index")
    }
    for name, entry in manifest["files"].items():
        assert entry["bytes"] == (only(tmp_path) / name).stat().st_size
