"""The IDX reader: good files in every spelling, bad files refused in one line, bounded memory."""

import gzip
import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.idx_files import NAMES, encode, some_images, write_folder

from dh2l_jax.data.prepared.originals import idx

IMAGES, LABELS = some_images(3), np.array([0, 9, 4])
GOOD_IMAGES, GOOD_LABELS = encode(IMAGES), encode(LABELS)
ZIPPED = gzip.compress(GOOD_IMAGES, mtime=0)

BAD_IMAGES = {
    "empty": (b"", "magic number 00000803 .* found an empty file"),
    "one byte": (b"\0", "magic number"),
    "magic only": (GOOD_IMAGES[:4], "16 bytes of header, found 4"),
    "half a dimension": (GOOD_IMAGES[:14], "16 bytes of header, found 14"),
    "first byte not zero": (b"\1" + GOOD_IMAGES[1:], "found 01000803"),
    "second byte not zero": (b"\0\1" + GOOD_IMAGES[2:], "found 00010803"),
    "signed bytes": (encode(IMAGES, kind=0x09), "found 00000903"),
    "floats": (encode(IMAGES, kind=0x0D), "found 00000d03"),
    "little-endian magic": (b"\3\x08\0\0" + GOOD_IMAGES[4:], "found 03080000"),
    "two dimensions": (encode(IMAGES.reshape(3, -1)), "found 00000802"),
    "four dimensions": (encode(IMAGES[..., None]), "found 00000804"),
    "labels": (GOOD_LABELS, "found 00000801"),
    "no images": (encode(IMAGES[:0]), r"at least one entry .* found \(0, 28, 28\)"),
    "no rows": (encode(IMAGES[:, :0]), r"found \(3, 0, 28\)"),
    "wrong side": (encode(IMAGES[:, :27]), r"shape \(28, 28\), found \(27, 28\)"),
    "CIFAR's side": (encode(np.zeros((2, 32, 32))), r"found \(32, 32\)"),
    "little-endian dimensions": (
        GOOD_IMAGES[:4] + struct.pack("<3I", 3, 28, 28) + GOOD_IMAGES[16:],
        "at most 67108864 bytes",
    ),
    "one image too few": (GOOD_IMAGES[:-784], r"2352 bytes for .* found 1568"),
    "one byte too few": (GOOD_IMAGES[:-1], "found 2351"),
    "header without entries": (GOOD_IMAGES[:16], "found 0"),
    "one byte too many": (GOOD_IMAGES + b"\0", "found more"),
    "twice": (GOOD_IMAGES * 2, "found more"),
    "huge": (encode(IMAGES, shape=(2**32 - 1,) * 3), "at most 67108864 bytes"),
    "huge product": (encode(IMAGES, shape=(2**16, 2**16, 2**16)), "at most 67108864 bytes"),
    "zipped, cut": (ZIPPED[:-20], "a whole gzip file"),
    "zipped, no checksum": (ZIPPED[:-8], "a whole gzip file"),
    "zipped, wrong checksum": (ZIPPED[:-8] + b"\0\0\0\0" + ZIPPED[-4:], "a whole gzip file"),
    "zipped, wrong length": (ZIPPED[:-4] + b"\0\0\0\0", "a whole gzip file"),
    "zipped, header only": (ZIPPED[:10], "a whole gzip file"),
    "zipped, bad stream": (ZIPPED[:40] + b"\xff" * 40 + ZIPPED[80:], "a whole gzip file"),
    "zipped, text behind": (ZIPPED + b"text", "a whole gzip file"),
    "zipped twice": (gzip.compress(ZIPPED), "found 1f8b0800"),
    "two members": (ZIPPED + ZIPPED, "found more"),
    "a web page": (b"<!DOCTYPE html><html>Not found</html>", "found 3c21444f"),
}

BAD_LABELS = {
    "label 10": (encode(np.array([0, 10, 4])), "labels 0..9, found 10 at index 1"),
    "label 255": (encode(np.array([0, 1, 255])), "found 255 at index 2"),
    "images": (GOOD_IMAGES, "found 00000803"),
    "too few": (GOOD_LABELS[:-1], "expected 3 bytes"),
    "none": (encode(LABELS[:0]), "at least one entry"),
}


@pytest.mark.parametrize("data", [GOOD_IMAGES, ZIPPED], ids=["plain", "zipped"])
def test_reads_images(tmp_path, data):
    path = tmp_path / "any name"
    path.write_bytes(data)
    np.testing.assert_array_equal(idx.read_images(path), IMAGES)


def test_reads_labels(tmp_path):
    path = tmp_path / "labels"
    path.write_bytes(GOOD_LABELS)
    labels = idx.read_labels(path)
    assert labels.dtype == np.int32
    np.testing.assert_array_equal(labels, LABELS)


@pytest.mark.parametrize("case", BAD_IMAGES)
def test_refuses_bad_images(tmp_path, case):
    check_refused(tmp_path, idx.read_images, *BAD_IMAGES[case])


@pytest.mark.parametrize("case", BAD_LABELS)
def test_refuses_bad_labels(tmp_path, case):
    check_refused(tmp_path, idx.read_labels, *BAD_LABELS[case])


def check_refused(folder, read, data, match):
    path = folder / "file"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=match) as caught:
        read(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "expected" in message
    assert "\n" not in message


def test_counts_must_agree(tmp_path):
    images, labels = tmp_path / "images", tmp_path / "labels"
    images.write_bytes(GOOD_IMAGES)
    labels.write_bytes(encode(np.arange(4)))
    with pytest.raises(ValueError, match=r"expected 3 labels, .* found 4"):
        idx.read_split(images, labels)


def test_a_gzip_bomb_is_not_inflated(tmp_path):
    path = tmp_path / "bomb.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(encode(IMAGES))
        for _ in range(64):
            file.write(bytes(2**20))
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="found more"):
            idx.read_images(path)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_the_limit_is_an_option(tmp_path):
    path = tmp_path / "images"
    path.write_bytes(GOOD_IMAGES)
    assert idx.read_images(path, max_bytes=IMAGES.size).shape == IMAGES.shape
    with pytest.raises(ValueError, match="at most 2351 bytes"):
        idx.read_images(path, max_bytes=IMAGES.size - 1)


mutations = st.lists(st.tuples(st.integers(0, 10**4), st.integers(0, 255)), max_size=4)


@pytest.fixture(scope="module")
def fuzz_path(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz") / "file"


@given(zipped=st.booleans(), end=st.integers(0, 10**4), changes=mutations, tail=st.binary())
def test_mutations_raise_nothing_else(fuzz_path, zipped, end, changes, tail):
    data = bytearray((ZIPPED if zipped else GOOD_IMAGES)[:end])
    for position, value in changes:
        if data:
            data[position % min(len(data), 64)] = value
    fuzz_path.write_bytes(data + tail)
    try:
        result = idx.read_images(fuzz_path)
    except (ValueError, OSError) as error:
        result = error
    if isinstance(result, Exception):
        assert str(fuzz_path) in str(result)
    else:
        assert result.shape[1:] == (28, 28)
        assert result.dtype == np.uint8


SPELLINGS = {
    "official": (lambda name: name, lambda data: data),
    "dotted": (lambda name: name.replace("-idx", ".idx"), lambda data: data),
    "official, zipped": (lambda name: name + ".gz", gzip.compress),
    "dotted, zipped": (lambda name: name.replace("-idx", ".idx") + ".gz", gzip.compress),
    "unpacked under the old name": (lambda name: name + ".gz", lambda data: data),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_finds_every_spelling(tmp_path, spelling):
    rename, pack = SPELLINGS[spelling]
    arrays = write_folder(tmp_path, rename=rename, pack=pack)
    for split, (images, labels) in idx.read_folder(tmp_path).items():
        np.testing.assert_array_equal(images, arrays[f"{split}_images"])
        np.testing.assert_array_equal(labels, arrays[f"{split}_labels"])


def test_missing_files_are_named(tmp_path):
    write_folder(tmp_path)
    for key in ("train_labels", "test_images"):
        (tmp_path / NAMES[key]).unlink()
    with pytest.raises(FileNotFoundError) as caught:
        idx.find_files(tmp_path)
    message = str(caught.value)
    assert str(tmp_path) in message
    assert [name for name in NAMES.values() if name in message] == [
        "train-labels-idx1-ubyte",
        "t10k-images-idx3-ubyte",
    ]


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere is no folder; .*train-images-idx3-ubyte"):
        idx.find_files(tmp_path / "nowhere")
