"""Originals that are damaged or hostile: one clear line each, and nothing half-written."""

import bz2
import dataclasses
import gzip
import io
import struct
import tarfile
import zipfile
import zlib

import numpy as np
import pytest
import scipy.io
import tensorflow_datasets as tfds
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from support import archives as make

from dh2l_jax.data.prepared import prepare
from dh2l_jax.data.prepared.originals import archives, matlab
from dh2l_jax.data.prepared.originals import images as images_module
from dh2l_jax.data.prepared.read import BUILDERS

C10, C100, CUB = "cifar-10-batches-bin/", "cifar-100-binary/", "CUB_200_2011/"
TEST = f"{C10}test_batch.bin"
FIRST = "001.Black_footed_Albatross/Black_footed_Albatross_0001_101.jpg"
PAGE = b"\n <!DOCTYPE html><html><body>404 Not Found</body></html>"


def check_refused(name, files, tmp_path, monkeypatch, match, *, tiny=True):
    """Preparing fails with one line that holds `match`, and changes no folder."""
    manual, data = make.write(files, tmp_path / "manual"), tmp_path / "data"
    if tiny:
        make.use_tiny(monkeypatch, name, manual)
    before = {path: path.stat().st_mtime_ns for path in manual.rglob("*")}
    with pytest.raises((ValueError, OSError)) as caught:
        prepare.prepare(name, data_dir=data, manual_dir=manual)
    assert match in str(caught.value)
    assert "\n" not in str(caught.value)
    assert {path: path.stat().st_mtime_ns for path in manual.rglob("*")} == before
    assert {path.name for path in tmp_path.iterdir()} == {"manual"}
    return str(caught.value)


def edited(name, member, edit):
    """The members of a data set's originals with one of them edited; None leaves it out."""
    files = make.members(name)
    kept = {k: v for k, v in files.items() if edit or k != member}
    return {**kept, member: edit(files[member])} if edit else kept


def put(offset, *values):
    return lambda data: data[:offset] + bytes(values) + data[offset + len(values) :]


def replace(old, new, count=1):
    return lambda data: data.replace(old, new, count)


def to(content):
    return lambda data: content


def cut(end):
    return lambda data: data[:end]


def run_cases(table):
    """Parametrizes a test by the names of a table's cases."""
    return pytest.mark.parametrize("case", table)


# Archives; the members are those of CIFAR-10.


def header(name, kind=tarfile.REGTYPE, size=0, **fields):
    """A member that is all header."""
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, size
    for field, value in fields.items():
        setattr(info, field, value)
    return info


def member(name, content):
    """CIFAR-10's archive with one more or another member."""
    return lambda members: make.tgz({**members, name: content})


def kind(kind, **fields):
    return member(TEST, header(TEST, kind, **fields))


def block(name, kind, size, content=b"", *, times=1):
    """CIFAR-10's archive behind headers of any size, which tarfile itself would not write."""
    raw = header(name, kind, size).tobuf(tarfile.GNU_FORMAT) + content
    return lambda members: gzip.compress(times * raw + make.tar(members), 1)


def without(*names):
    return lambda members: make.tgz({k: v for k, v in members.items() if k not in names})


def renamed(old, new):
    return lambda members: make.tgz({k.replace(old, new): v for k, v in members.items()})


def truncated_in(name):
    """The archive ends in the middle of a member."""

    def build(members):
        content = make.tar({**{k: v for k, v in members.items() if k != name}, name: members[name]})
        return gzip.compress(content[: content.rindex(members[name][-512:])], 1)

    return build


def zipped(members):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def flipped(members):
    data = bytearray(make.tgz(members))
    data[len(data) // 2] ^= 4
    return bytes(data)


BATCHES = [f"{C10}data_batch_{i}.bin" for i in range(1, 6)]
WHOLE = "expected a whole tar archive"
ARCHIVES = {
    "path traversal": (member("../../escape", b"x"), "'../../escape' points outside"),
    "path traversal inside": (member(f"{C10}../../../x", b"x"), "points outside of the archive"),
    "absolute name": (member("/tmp/escape", b"x"), "'/tmp/escape' points outside"),
    "symbolic link": (
        kind(tarfile.SYMTYPE, linkname="/etc/passwd"),
        "is a symbolic link, expected a regular file",
    ),
    "hard link": (kind(tarfile.LNKTYPE, linkname=BATCHES[0]), "is a hard link"),
    "character device": (kind(tarfile.CHRTYPE), "is a device"),
    "block device": (kind(tarfile.BLKTYPE), "is a device"),
    "pipe": (kind(tarfile.FIFOTYPE), "is a pipe"),
    "folder": (kind(tarfile.DIRTYPE), "is a folder"),
    "unknown kind": (kind(b"Z"), "is of a special kind"),
    "sparse file": (block(TEST, tarfile.GNUTYPE_SPARSE, 0), "is of a special kind, expected a reg"),
    "duplicate": (
        lambda members: make.tgz([*members.items(), (TEST, members[TEST])]),
        f"the member '{TEST}' occurs twice",
    ),
    "missing": (without(TEST), f"{TEST} missing in the archive"),
    "several missing": (without(*BATCHES), "data_batch_3.bin and 2 more missing"),
    "name that is not UTF-8": (renamed("test", "te\udcffst"), f"{TEST} missing"),
    "name with NUL": (renamed("test_", "test\0_"), f"{TEST} missing"),
    "empty file": (to(b""), "expected a tar archive, found an empty file"),
    "empty archive": (lambda members: make.tgz({}), "missing in the archive"),
    "gzip of nothing": (to(gzip.compress(b"")), "found: empty file"),
    "truncated gzip": (lambda m: make.tgz(m)[:-5000], f"{WHOLE}, found: Compressed file ended"),
    "no gzip checksum": (lambda m: make.tgz(m)[:-4], f"{WHOLE}, found: Compressed file ended"),
    "flipped bit": (flipped, f"{WHOLE}, found: "),
    "truncated tar": (truncated_in(TEST), f"bytes of the member '{TEST}'"),
    "garbage": (to(bytes(range(256)) * 9), WHOLE),
    "gzip of garbage": (to(gzip.compress(bytes(range(1, 256)) * 9)), WHOLE),
    "web page": (to(PAGE), "found a web page"),
    "XML page": (to(b"<?xml version='1.0'?><Error/>"), "found a web page"),
    "gzip of a web page": (to(gzip.compress(PAGE * 99)), WHOLE),
    "zip": (zipped, WHOLE),
    "bzip2": (lambda members: bz2.compress(make.tar(members)), WHOLE),
    "huge member": (block(TEST, tarfile.REGTYPE, 2**40), "declares 1099511627776 bytes"),
    "huge other member": (block("x", tarfile.REGTYPE, 2**40), "expected at most 4294967296"),
    "negative size": (block(TEST, tarfile.REGTYPE, -512), "declares -512 bytes"),
    "backward size": (block("x", tarfile.REGTYPE, -1024), "a header points back"),
    "huge long name": (block("x", tarfile.GNUTYPE_LONGNAME, 2**31), "a header asks for"),
    "huge pax header": (block("x", tarfile.XHDTYPE, 2**31), "a header asks for"),
    "pax header of nonsense": (
        block("x", tarfile.XHDTYPE, 512, b"17 size=nonsense\n".ljust(512, b"\0")),
        "cifar-10-binary.tar.gz: ",
    ),
    "many headers in a row": (
        block("x", tarfile.GNUTYPE_LONGNAME, 1, b"a".ljust(512, b"\0"), times=3000),
        f"{WHOLE}, found: maximum recursion",
    ),
}


@run_cases(ARCHIVES)
def test_archives(tmp_path, monkeypatch, case):
    build, match = ARCHIVES[case]
    files = {"cifar-10-binary.tar.gz": build(make.members("cifar10"))}
    check_refused("cifar10", files, tmp_path, monkeypatch, match)


def test_other_members_are_ignored(tmp_path, monkeypatch):
    odd = {
        "link": header("link", tarfile.SYMTYPE, linkname="/etc/passwd"),
        "device": header("device", tarfile.CHRTYPE),
        "name\udcff": b"x",
    }
    files = make.packed("cifar10", {**odd, **make.members("cifar10")})
    train = make.prepare_tiny(monkeypatch, "cifar10", tmp_path, files).train
    assert len(train) == len(make.examples("cifar10")["train"])
    assert not [path for path in tmp_path.rglob("*") if path.name in odd or path.is_symlink()]


def test_the_number_of_members_is_limited(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MAX_MEMBERS", 3)
    path = tmp_path / "a.tar"
    path.write_bytes(make.tar({str(i): b"x" for i in range(4)}))
    with pytest.raises(ValueError, match="expected at most 3 members, found more"):
        archives.read_members(path, ["0"])


# The original files themselves, before they are opened.

UNOPENED = {
    "page": (
        "cub200",
        {"CUB_200_2011.tgz": PAGE},
        f"expected the 1150585339 bytes of {next(iter(BUILDERS['cub200'].url_infos))}, found "
        f"{len(PAGE)} bytes, a web page: fetch",
    ),
    "another size": (
        "cifar100",
        {"cifar-100-binary.tar.gz": b"x"},
        "expected the 168513733 bytes of https://www.cs.",
    ),
    "folder": ("cifar100", {"cifar-100-binary.tar.gz/x": b""}, "found no regular file"),
}


@run_cases(UNOPENED)
def test_files_that_are_not_opened(tmp_path, monkeypatch, case):
    name, files, match = UNOPENED[case]
    check_refused(name, files, tmp_path, monkeypatch, match, tiny=False)


@pytest.mark.parametrize("name", prepare.PREPARED)
def test_another_checksum(tmp_path, monkeypatch, name):
    files = make.originals(name)
    make.use_tiny(monkeypatch, name, make.write(files, tmp_path / "manual"))
    infos = {
        url: dataclasses.replace(info, checksum=64 * "0")
        for url, info in BUILDERS[name].url_infos.items()
    }
    monkeypatch.setattr(BUILDERS[name], "url_infos", infos)
    match = "has wrong checksum: Expected: UrlInfo("
    check_refused(name, files, tmp_path, monkeypatch, match, tiny=False)


# What is in the members: data set, member, edit, message.

ROW = 2 + 3072
TRAIN100, TEST100, NAMES10 = f"{C100}train.bin", f"{C100}test.bin", f"{C10}batches.meta.txt"
FINE, COARSE = f"{C100}fine_label_names.txt", f"{C100}coarse_label_names.txt"
CIFAR = {
    "short row": (TEST, cut(-1), "expected rows of 3073 bytes"),
    "long row": (TRAIN100, lambda data: data + b"x", "rows of 3074 bytes"),
    "no row": (TEST, to(b""), "expected rows of 3073 bytes, found 0 bytes"),
    "label 10": (TEST, put(0, 10), "expected label 0..9, found 10 in row 0"),
    "fine label 100": (TEST100, put(ROW + 1, 100), "expected label 0..99, found 100 in row 1"),
    "coarse label 20": (TRAIN100, put(2 * ROW, 20), "coarse_label 0..19, found 20 in row 2"),
    "another coarse label": (
        TRAIN100,
        put(2 * ROW, 0),
        "published coarse label 14 for label 2, found 0 in row 2",
    ),
    "nine names": (NAMES10, replace(b"cat\n", b""), "expected 10 different names, found 9"),
    "a name twice": (NAMES10, replace(b"cat\n", b"dog\n"), "10 different names, found 9"),
    "binary names": (NAMES10, replace(b"cat", b"c\xff\0"), "expected ASCII text"),
    "another fine name": (
        FINE,
        replace(b"baby", b"babe"),
        "expected 'baby' as label 2, as published, found 'babe'",
    ),
    "another coarse name": (
        COARSE,
        replace(b"fish", b"fowl"),
        "'fish' as coarse_label 1, as published, found 'fowl'",
    ),
}

IMAGES, LABELS = "train-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"
FASHION = {
    "web page": (IMAGES, to(PAGE), "expected the magic number 00000803"),
    "truncated": (IMAGES, cut(-9), "expected a whole gzip file"),
    "other images": (
        IMAGES,
        to(make.idx_bytes(np.zeros((20, 32, 32), np.uint8))),
        "expected images of shape (28, 28), found (32, 32)",
    ),
    "gzip bomb": (
        IMAGES,
        lambda data: gzip.compress(gzip.decompress(data) + bytes(2**22)),
        "found more",
    ),
    "label 10": (
        LABELS,
        to(make.idx_bytes(np.array([10] * 19, np.uint8))),
        "expected labels 0..9, found 10",
    ),
    "too few labels": (LABELS, to(make.idx_bytes(np.zeros(18, np.uint8))), "expected 19 labels"),
}

NAMES, CLASSES, SPLITS, BOXES = (
    "images",
    "image_class_labels",
    "train_test_split",
    "bounding_boxes",
)
TABLES = {
    "path outside": (NAMES, replace(FIRST.encode(), b"../../x.jpg"), "found '../../x.jpg'"),
    "absolute path": (NAMES, replace(FIRST.encode(), b"/etc/x.jpg"), "found '/etc/x.jpg'"),
    "path with NUL": (NAMES, replace(b"_0001_", b"_\0_"), "expected NUMBER.CLASS/FILE.jpg"),
    "binary table": (NAMES, replace(b"Black", b"Bl\xffck"), "expected ASCII text"),
    "blank in a path": (NAMES, replace(b"_0001_", b" "), "in line 1"),
    "number that is none": (NAMES, replace(b"1 ", b"one "), "in line 1"),
    "repeated number": (NAMES, replace(b"\n2 ", b"\n1 "), "image 1 occurs twice"),
    "number without class": (
        CLASSES,
        replace(b"3 2\n", b""),
        "found image 3 only in one of images.txt and image_class_labels.txt",
    ),
    "number without box": (
        BOXES,
        replace(b"\n3 ", b"\n33 "),
        "found image 3 only in one of images.txt and bounding_boxes.txt",
    ),
    "number without split": (SPLITS, replace(b"4 0\n", b""), "found image 4 only in"),
    "empty table": (NAMES, to(b""), "only in one of images.txt and image_class_labels"),
    "class 0": (CLASSES, replace(b"1 1", b"1 0"), "from 1 to 200, found '0'"),
    "class 201": (CLASSES, replace(b"1 1", b"1 201"), "from 1 to 200, found '201'"),
    "class that is none": (CLASSES, replace(b"1 1", b"1 x"), "found 'x'"),
    "another class": (
        CLASSES,
        replace(b"1 1", b"1 2"),
        "expected the folder 002.Laysan_Albatross of class 2, found 001.Black_footed_Albatross",
    ),
    "another spelling": (
        NAMES,
        replace(b"001.Black_footed", b"001.Blackfooted"),
        "expected the folder 001.Black_footed_Albatross of class 1",
    ),
    "split 2": (SPLITS, replace(b"1 1", b"1 2"), "expected 0 or 1"),
    "no test": (SPLITS, replace(b" 0\n", b" 1\n", -1), "for training and for the test"),
    "one file twice": (
        NAMES,
        replace(b"_0002_102", b"_0001_101", -1),
        "found one file for several images",
    ),
    "box of text": (BOXES, replace(b"6.0", b"six"), "expected four numbers as a box"),
    "box of NaN": (BOXES, replace(b"6.0", b"nan"), "expected a box with 0 ≤ x1 ≤ x2"),
    "infinite box": (BOXES, replace(b"6.0", b"inf"), "expected a box with"),
    "negative box": (BOXES, replace(b"1.0", b"-1.0"), "expected a box with"),
    "box turned around": (BOXES, replace(b"6.0", b"-6.0"), "expected a box with"),
    "box outside": (BOXES, replace(b"1.0", b"99"), "expected a box inside of 13 × 10"),
    "missing column": (BOXES, replace(b" 5.5", b""), "in line 1"),
}


def png_header(width, height, depth=8, color=2):
    ihdr = b"IHDR" + struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    chunk = struct.pack(">I", 13) + ihdr + struct.pack(">I", zlib.crc32(ihdr))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 9) + b"IDAT"


def huge_jpeg(data):
    """The same JPEG with another size in its frame header."""
    start = data.index(b"\xff\xc0") + 5
    return data[:start] + struct.pack(">HH", 65_000, 65_000) + data[start + 4 :]


SMALL = make.photo(1)
PALETTE = Image.fromarray(SMALL).quantize(8)
GREY16, RGBA = np.full((9, 9), 999, np.uint16), np.zeros((9, 9, 4), np.uint8)
NO_IMAGE, NOT_WHOLE = "expected a JPEG or PNG image, found ", "expected a whole image, found"
BITMAPS = {
    "truncated JPEG": (cut(-80), f"{CUB}images/{FIRST}: {NOT_WHOLE}: "),
    "JPEG of a header": (cut(30), NOT_WHOLE),
    "text": (to(b"Not found"), f"{NO_IMAGE}b'Not found'"),
    "web page": (to(PAGE), f"{NO_IMAGE}a web page"),
    "zero bytes": (to(b""), f"{NO_IMAGE}an empty file"),
    "GIF": (to(make.encoded(SMALL, "GIF")), f"{NO_IMAGE}a GIF image"),
    "TIFF": (to(make.encoded(SMALL, "TIFF")), f"{NO_IMAGE}a TIFF image"),
    "16-bit grey PNG": (to(make.encoded(GREY16, "PNG")), "of 16 bits, not one of RGB, L and CMYK"),
    "16-bit RGB PNG": (to(png_header(9, 9, 16)), "mode RGB of 16 bits"),
    "transparent PNG": (to(make.encoded(RGBA, "PNG")), "mode RGBA"),
    "PNG with a palette": (to(make.encoded(PALETTE, "PNG")), "mode P"),
    "PNG without pixels": (to(png_header(9, 9)), NOT_WHOLE),
    "truncated PNG": (to(make.encoded(SMALL, "PNG")[:-60]), NOT_WHOLE),
    "PNG of 10 gigapixels": (to(png_header(100_000, 100_000)), "10000000000 pixels"),
    "PNG of 81 megapixels": (to(png_header(9000, 9000)), "9000 × 9000 pixels, more than"),
    "PNG of 100 megapixels": (to(png_header(10**4, 10**4)), "100000000 pixels"),
    "JPEG of 4 gigapixels": (huge_jpeg, "4225000000 pixels"),
    "no image": (None, f"{CUB}images/{FIRST} missing in the archive"),
}

CARS_TEST, CARS_DEVKIT = "cars_test/00002.jpg", "devkit/cars_train_annos.mat"
CAR_IMAGES = {
    "missing image": (None, "00002.jpg missing"),
    "truncated JPEG": (cut(-80), "00002.jpg: expected a whole image, found: "),
    "text": (to(b"text"), "00002.jpg: expected a JPEG or PNG image, found b'text'"),
    "zero bytes": (to(b""), "found an empty file"),
}

# {case: (data set, member, edit, message)}
MEMBERS = {
    f"{name}, {case}": (name, *row)
    for name, table in {
        "cifar10": {k: row for k, row in CIFAR.items() if row[0].startswith(C10)},
        "cifar100": {k: row for k, row in CIFAR.items() if row[0].startswith(C100)},
        "fashion_mnist": FASHION,
        "cub200": {k: (f"{CUB}{row[0]}.txt", *row[1:]) for k, row in TABLES.items()}
        | {k: (f"{CUB}images/{FIRST}", *row) for k, row in BITMAPS.items()},
        "cars196": {k: (CARS_TEST, *row) for k, row in CAR_IMAGES.items()}
        | {"no table": (CARS_DEVKIT, None, f"{CARS_DEVKIT} missing in the archive")},
    }.items()
    for case, row in table.items()
}
assert len(MEMBERS) == sum(map(len, (CIFAR, FASHION, TABLES, BITMAPS, CAR_IMAGES))) + 1


@pytest.fixture
def in_process(monkeypatch):
    """Reads tables without a child process, where the test is not about that; it takes 0.4 s."""
    monkeypatch.setattr(matlab, "read_table", lambda data, *words: matlab._rows(data, *words[:-1]))


@pytest.mark.usefixtures("in_process")
@run_cases(MEMBERS)
def test_members(tmp_path, monkeypatch, case):
    name, changed, edit, match = MEMBERS[case]
    files = make.packed(name, edited(name, changed, edit))
    message = check_refused(name, files, tmp_path, monkeypatch, match)
    assert message.startswith(str(tmp_path / "manual"))


def test_an_interrupt_leaves_nothing_behind(tmp_path, monkeypatch):
    def interrupt(data, what):
        if FIRST in what:
            raise KeyboardInterrupt
        return data, (9, 9)

    monkeypatch.setattr(images_module, "rgb_image", interrupt)
    with pytest.raises(KeyboardInterrupt):
        make.prepare_tiny(monkeypatch, "cub200", tmp_path)
    assert not (tmp_path / "data").exists()


# Images that are kept.

COLOURS = [(200, 40, 90), (10, 240, 20), (128, 128, 128)]


def flat(value, shape=(16, 24)):
    return np.broadcast_to(np.array(value, np.uint8), shape + np.shape(value)).copy()


def cmyk_jpeg(rgb):
    ink = flat([*(255 - value for value in rgb), 0])
    return make.encoded(Image.fromarray(ink, "CMYK"), quality=100)


GOOD = {
    "grey JPEG": lambda rgb: (make.encoded(flat(rgb[0])), rgb[:1] * 3),
    "grey PNG": lambda rgb: (make.encoded(flat(rgb[0]), "PNG"), rgb[:1] * 3),
    "CMYK JPEG": lambda rgb: (cmyk_jpeg(rgb), rgb),
    "RGB PNG": lambda rgb: (make.encoded(flat(rgb), "PNG"), rgb),
    "progressive JPEG": lambda rgb: (make.encoded(flat(rgb), progressive=True, quality=100), rgb),
}


@pytest.mark.filterwarnings("ignore:'mode' parameter is deprecated:DeprecationWarning")
@pytest.mark.parametrize("kind", GOOD)
def test_odd_images_load_as_rgb(tmp_path, monkeypatch, kind):
    members = make.members("cub200")
    names = [name for name in members if name.endswith(".jpg")][: len(COLOURS)]
    images = {name: GOOD[kind](rgb) for name, rgb in zip(names, COLOURS, strict=True)}
    changed = {**members, **{name: data for name, (data, _) in images.items()}}
    make.prepare_tiny(monkeypatch, "cub200", tmp_path, make.packed("cub200", changed))
    splits = tfds.data_source("caltech_birds2011", data_dir=tmp_path / "data", download=False)
    found = {e["image/filename"].decode(): e["image"] for s in splits.values() for e in s}
    for name, (_, rgb) in images.items():
        assert found[name].shape == (16, 24, 3)
        assert np.abs(found[name].astype(int) - np.array(rgb)).max() <= 2


def test_rgb_files_are_kept_byte_for_byte(tmp_path, monkeypatch):
    source = make.prepare_tiny(monkeypatch, "cub200", tmp_path)
    kept = {part[i][0] for part in (source.train, source.test) for i in range(len(part))}
    assert kept == {v for name, v in make.members("cub200").items() if name.endswith(".jpg")}


# Tables of Cars.

ROWS = [(2, 3, 16, 11, 5, "00001.jpg"), (2, 3, 16, 11, 196, "00002.jpg")]


def row(**changes):
    """The table with another first row."""
    first = dict(zip(make.FIELDS, ROWS[0], strict=True)) | changes
    return make.annotations([tuple(first.values()), ROWS[1]])


def saved(**variables):
    file = io.BytesIO()
    scipy.io.savemat(file, variables)
    return file.getvalue()


def nested_cells(depth):
    """A cell in a cell in a cell …, which recursion cannot survive."""

    def cell(name):
        flags = struct.pack("<IIII", 6, 8, 1, 0) + struct.pack("<IIii", 5, 8, 1, 1)
        label = struct.pack("<II", 1, len(name)) + name.ljust(-(-len(name) // 8) * 8, b"\0")
        return struct.pack("<II", 14, 2**20) + flags + label

    return saved(x=1)[:128] + cell(b"annotations") + cell(b"") * depth


# These reach SciPy in a child process, which may crash.
MAT = {
    "header alone": (row()[:128], "no variable 'annotations'"),
    "truncated": (row()[:-40], "expected a whole MATLAB file, found: "),
    "another variable": (saved(x=1), "no variable 'annotations'"),
    "a number": (saved(annotations=1.0), "without the fields bbox_x1, bbox_y1"),
    "other fields": (
        make.annotations(ROWS, [*make.FIELDS[:-1], "name"]),
        "'annotations' without the fields fname",
    ),
    "two numbers": (row(**{"class": [1, 2]}), "a field 'class' that is not one number or text"),
    "nested cells": (nested_cells(60_000), "expected a whole MATLAB file, found: "),
    "text": (b"no MAT file at all", "expected a MATLAB 5 file, found b'no MAT file at all'"),
    "empty": (b"", "expected a MATLAB 5 file, found b''"),
    "web page": (PAGE, "expected a MATLAB 5 file, found b'\\n <!DOCTYPE"),
    "HDF5": (b"MATLAB 7.3 MAT-file, Platform".ljust(512), "expected a MATLAB 5 file, found b'MAT"),
}


def cars_with(table):
    return {**make.members("cars196"), CARS_DEVKIT: table}


@run_cases(MAT)
def test_cars_tables(tmp_path, monkeypatch, case):
    table, match = MAT[case]
    check_refused("cars196", cars_with(table), tmp_path, monkeypatch, match, tiny=False)


CAR_ROWS = {
    "class 0": ({"class": 0}, "from 1 to 196 in row 1, found 0"),
    "class 197": ({"class": 197}, "from 1 to 196 in row 1, found 197"),
    "class 1.5": ({"class": 1.5}, "from 1 to 196 in row 1, found 1.5"),
    "class NaN": ({"class": np.nan}, "from 1 to 196 in row 1, found nan"),
    "class of text": ({"class": "one"}, "from 1 to 196 in row 1, found 'one'"),
    "fname with a slash": ({"fname": "a/b.jpg"}, "as fname of row 1, found 'a/b.jpg'"),
    "fname outside": ({"fname": "../x.jpg"}, "as fname of row 1, found '../x.jpg'"),
    "fname of a number": ({"fname": [7]}, "as fname of row 1, found 7"),
    "fname of another kind": ({"fname": "a.mat"}, "as fname of row 1, found 'a.mat'"),
    "fname twice": ({"fname": "00002.jpg"}, "the fname 00002.jpg occurs twice"),
    "box of text": ({"bbox_x1": "left"}, "expected four numbers as a box, found ['left', 3, 16"),
    "box outside": ({"bbox_x1": 99, "bbox_x2": 99}, "expected a box inside of 21 × 15"),
    "box turned around": ({"bbox_y2": 1}, "expected a box with 0 ≤ x1 ≤ x2, 0 ≤ y1 ≤ y2"),
    "box of NaN": ({"bbox_y2": np.nan}, "expected a box with 0 ≤ x1 ≤ x2, 0 ≤ y1 ≤ y2"),
    "no rows": (None, "cars_train_annos.mat: expected a row an image"),
}


@pytest.mark.usefixtures("in_process")
@run_cases(CAR_ROWS)
def test_cars_rows(tmp_path, monkeypatch, case):
    changes, match = CAR_ROWS[case]
    files = cars_with(make.annotations([]) if changes is None else row(**changes))
    check_refused("cars196", files, tmp_path, monkeypatch, match, tiny=False)


@pytest.mark.usefixtures("in_process")
@run_cases(CAR_IMAGES)
def test_cars_images_in_folders(tmp_path, monkeypatch, case):
    edit, match = CAR_IMAGES[case]
    files = edited("cars196", CARS_TEST, edit)
    check_refused("cars196", files, tmp_path, monkeypatch, match, tiny=False)


def test_the_size_and_time_of_a_table_are_limited(monkeypatch):
    data = row()
    monkeypatch.setattr(matlab, "TIMEOUT_SECONDS", 0.001)
    with pytest.raises(ValueError, match=r"^x: not read within 0.001 s"):
        matlab.read_table(data, "annotations", make.FIELDS, "x")
    monkeypatch.setattr(matlab, "MAX_BYTES", 100)
    with pytest.raises(ValueError, match=f"^x: expected at most 100 bytes, found {len(data)}"):
        matlab.read_table(data, "annotations", make.FIELDS, "x")


# Random damage.

GOOD_TAR = make.tar({"a": b"x" * 700, "b": b"y" * 10, "c": header("c", tarfile.SYMTYPE)})
changes = st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 255)), max_size=6)


@pytest.fixture(scope="module")
def fuzz_path(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz") / "file"


@given(zipped=st.booleans(), end=st.integers(0, 12_000), changes=changes, tail=st.binary())
def test_mutated_archives_raise_nothing_else(fuzz_path, zipped, end, changes, tail):
    data = bytearray(GOOD_TAR)
    for position, value in changes:
        data[position] = value
    content = gzip.compress(bytes(data), 1) if zipped else bytes(data)
    fuzz_path.write_bytes(content[:end] + tail)
    try:
        found = archives.read_members(fuzz_path, ["a", "b"])
    except ValueError as error:
        found = error
    if isinstance(found, ValueError):
        assert str(found).startswith(f"{fuzz_path}: ")
    else:
        assert found.keys() == {"a", "b"}
        assert sum(map(len, found.values())) <= len(data)
