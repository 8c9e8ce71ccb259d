"""The cache of decoded images: decoded once, checked always, never half-written."""

import dataclasses
import hashlib
import json
import logging
import os
import signal
import struct
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.folders import encoded, noise

import dh2l_jax as dh2l
from dh2l_jax.data.store import cache, filling
from dh2l_jax.data.store.cache import open_cached
from dh2l_jax.data.store.images import RaggedImages, digests
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


# Images that cannot be read.

BAD = b"<!DOCTYPE html>"


def test_bad_images_are_left_out_and_named(tmp_path, caplog):
    extra = [BAD, encoded(noise(4, 4, 9)), b"", b"", b""]
    for data in (source(extra=extra), source(extra=extra)):
        caplog.clear()
        split = open_cached(data, tmp_path, on_bad_image="skip")["train"]
        assert split.labels.tolist() == [0, 1, 2, 0]
        np.testing.assert_array_equal(split.images[3], noise(4, 4, 9))
        manifest = only(tmp_path) / "manifest.json"
        (record,) = caplog.records
        assert record.getMessage() == (
            "on_bad_image=skip leaves out images that cannot be read, 4: picture 3, picture 5, "
            f"picture 6 and 1 more; {manifest} has the reasons"
        )
    assert data.train.reads == 0
    left_out = json.loads(manifest.read_text())["splits"]["train"]["left_out"]
    assert [name for name, _ in left_out] == [f"picture {number}" for number in (3, 5, 6, 7)]
    assert left_out[0][1].endswith("found a web page")
    # The cache is whole, and still refused where nothing may be left out.
    with pytest.raises(
        ValueError,
        match=r"^picture 3: expected a .* a web page; data\.on_bad_image=skip",
    ):
        open_cached(source(extra=extra), tmp_path)
    open_cached(source(fingerprint="2"), tmp_path, on_bad_image="skip")
    assert len(caplog.records) == 1, "nothing is said where nothing is left out"


@pytest.mark.parametrize(
    ("labels", "images", "message"),
    [
        ((0, 1, 2), (0,), r"class '0' has no image that can be read: picture 0: expected a JPEG"),
        ((0, 0, 0), (0, 1, 2), r"some/images, train, has no image that can be read: picture 0"),
    ],
)
def test_a_class_that_would_be_lost_is_refused(tmp_path, labels, images, message):
    data = source(labels=labels)
    for index in images:
        data.train.images[index] = BAD
    with pytest.raises(ValueError, match=message):
        open_cached(data, tmp_path, on_bad_image="skip")
    assert list(tmp_path.iterdir()) == []


def test_files_that_cannot_be_read_are_never_left_out(tmp_path):
    """A disk that fails, or a folder that is not mounted, is no damaged image."""

    class Unreadable(Memory):
        def __getitem__(self, index):
            raise PermissionError(13, "Permission denied", "1.png")

    data = dataclasses.replace(source(), train=Unreadable([b""], [0]))
    with pytest.raises(PermissionError):
        open_cached(data, tmp_path, on_bad_image="skip")


# What the cache knows of its images.


@pytest.mark.parametrize("sizes", [SIZES, ((6, 7),) * 3])
def test_digests_are_those_of_the_arrays(tmp_path, sizes):
    split = open_cached(source(sizes=sizes), tmp_path)["train"]
    assert split.digests.dtype == np.uint64
    np.testing.assert_array_equal(split.digests, digests(split.images))
    expected = [
        int.from_bytes(
            hashlib.blake2b(
                struct.pack("<3q", *size, 3) + noise(*size, seed).tobytes(), digest_size=8
            ).digest(),
            "little",
        )
        for seed, size in enumerate(sizes)
    ]
    assert split.digests.tolist() == expected


def test_images_that_were_decoded_otherwise_are_known(tmp_path):
    assert open_cached(source(), tmp_path)["train"].first_new == ""
    for number, extra in enumerate((Image.new("RGBA", (4, 4)), encoded(noise(4, 4), "WEBP")), 2):
        data = extra if isinstance(extra, bytes) else encoded(extra)
        for _ in range(2):
            new = source(extra=[data], fingerprint=str(number))
            assert open_cached(new, tmp_path)["train"].first_new == "picture 3"


def test_another_background_is_another_cache(tmp_path):
    data = source(extra=[encoded(Image.new("RGBA", (4, 4)))])
    for background, colour in (("white", 255), ("black", 0), ("#000", 0)):
        images, *_ = open_cached(data, tmp_path, background=background)["train"]
        assert np.all(images[3] == colour)
    assert len(list(tmp_path.iterdir())) == 2
    with pytest.raises(ValueError, match="must be a colour"):
        open_cached(data, tmp_path, background="blak")


# Others' files, and those of dead processes.

DECODE_SLOWLY = """
import time
import test_cache
class Slow(test_cache.Memory):
    def __getitem__(self, index):
        if index == 2:
            print("half", flush=True)
            time.sleep(100)
        return super().__getitem__(index)
data = test_cache.source(fingerprint={fingerprint!r})
data.train.__class__ = Slow
test_cache.open_cached(data, {folder!r})
"""


def half_cache(folder, fingerprint):
    """A process that has decoded a part."""
    code = DECODE_SLOWLY.format(folder=str(folder), fingerprint=fingerprint)
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": path}
    )
    assert process.stdout.readline() == b"half\n"
    return process


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_half_caches_of_dead_processes_go(tmp_path, end):
    dead, alive = half_cache(tmp_path, "dead"), half_cache(tmp_path, "alive")
    try:
        assert len(list(tmp_path.iterdir())) == 4, "two folders with a lock each"
        dead.send_signal(end)
        dead.wait()
        (tmp_path / ".some_images-0123456789abcdef.abcd_123").mkdir()  # as earlier versions did
        (tmp_path / ".notes").mkdir()
        open_cached(source(), tmp_path)
        left = sorted(path.name for path in tmp_path.iterdir())
        assert left[0] == ".notes"
        assert len(left) == 4
        assert left[2] == f"{left[1]}.lock"
        assert left[3].startswith("some_images-")
    finally:
        for process in (dead, alive):
            process.kill()
            process.wait()
            process.stdout.close()


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    """Images are decoded all the same; nobody can tell whose the half caches are."""

    def refuse(self, **options):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(filling.filelock.FileLock, "acquire", refuse)
    other = tmp_path / ".some_images-0123456789abcdef.abcd_123"
    other.mkdir()
    open_cached(source(), tmp_path)
    assert other.is_dir()
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("name", ["", "manifest.json", "train.pixels", "test.index"])
def test_no_link_is_followed(tmp_path, caplog, name):
    """Planted in the place of a cache or of a file of one: it goes, and what it led to stays."""
    folder, elsewhere = tmp_path / "caches", tmp_path / "elsewhere"
    open_cached(source(), folder)
    path = only(folder) / name
    path.rename(elsewhere)
    path.symlink_to(elsewhere)
    precious = sorted(
        (file, file.stat().st_mtime_ns) for file in (elsewhere, *elsewhere.rglob("*"))
    )
    again = source()
    images, *_ = open_cached(again, folder)["train"]
    assert again.train.reads == 3
    np.testing.assert_array_equal(images[1], noise(*SIZES[1], 1))
    assert "decoded again" in caplog.text
    assert not any(file.is_symlink() for file in (only(folder), *only(folder).iterdir()))
    found = sorted((file, file.stat().st_mtime_ns) for file in (elsewhere, *elsewhere.rglob("*")))
    assert found == precious


def test_a_pipe_is_not_waited_for(tmp_path):
    open_cached(source(), tmp_path)
    path = only(tmp_path) / "train.index"
    path.unlink()
    os.mkfifo(path)
    open_cached(source(), tmp_path)
    assert path.is_file()


def test_a_link_to_nothing_in_the_place_of_a_cache(tmp_path):
    open_cached(source(), tmp_path / "a")
    name = only(tmp_path / "a").name
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / name).symlink_to(tmp_path / "nowhere")
    open_cached(source(), tmp_path / "b")
    assert not (tmp_path / "nowhere").exists()
    assert only(tmp_path / "b").is_dir()


def test_an_error_of_writing_names_the_path(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"file/caches cannot be written: Not a directory"):
        open_cached(source(), tmp_path / "file" / "caches")
    names = iter(["full"])
    monkeypatch.setattr(filling.secrets, "token_hex", lambda size: next(names))
    original = Path.open

    def full(path, *options):
        return (
            original(Path("/dev/full"), "r+b")
            if path.name == "train.pixels"
            else original(path, *options)
        )

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(OSError, match=r"full/train\.pixels cannot be written: No space left"):
        open_cached(source(sizes=((200, 200),) * 3), tmp_path)
