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

from dh2l_jax.commands.data import main
from dh2l_jax.data.prepared import prepare
from dh2l_jax.data.prepared.originals import archives, matlab
from dh2l_jax.data.prepared.originals import images as images_module
from dh2l_jax.data.prepared.read import BUILDERS

C10, C100, CUB = "cifar-10-batches-bin/", "cifar-100-binary/", "CUB_200_2011/"
TEST = f"{C10}test_batch.bin"
PAGE = b"\n <!DOCTYPE html><html><body>404 Not Found</body></html>"


def check_refused(name, tmp_path, capsys, match):
    """The command fails with one line that holds `match`, and changes no folder."""
    manual, data = tmp_path / "manual", tmp_path / "data"
    before = {path: path.stat().st_mtime_ns for path in manual.rglob("*")}
    status = main(["prepare", name, "--data-dir", str(data), "--manual-dir", str(manual)])
    out, err = capsys.readouterr()
    assert (status, out) == (2, ""), err
    assert err.startswith("dh2l data prepare: error: ")
    assert err.count("\n") == 1
    assert match in err
    assert not data.exists()
    assert {path: path.stat().st_mtime_ns for path in manual.rglob("*")} == before
    assert {path.name for path in tmp_path.iterdir()} == {"manual"}


@pytest.fixture
def in_process(monkeypatch):
    """Reads tables without a child process, where the test is not about that; it takes 0.4 s."""
    monkeypatch.setattr(
        matlab,
        "read_table",
        lambda data, variable, fields, what: matlab._rows(data, variable, fields),
    )


# Archives that are damaged or hostile; the members are those of CIFAR-10.


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


def raw(*blocks):
    """CIFAR-10's archive behind blocks that tarfile itself would not write."""
    return lambda members: gzip.compress(b"".join(blocks) + make.tar(members), 1)


def block(name, kind, size, content=b""):
    """A header with any size, which TarInfo writes without asking; and content."""
    info = header(name, kind, size)
    return info.tobuf(tarfile.GNU_FORMAT) + content


def without(*names):
    return lambda members: make.tgz({k: v for k, v in members.items() if k not in names})


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


ARCHIVES = {
    "path traversal": (member("../../escape", b"x"), "'../../escape' points outside"),
    "path traversal inside": (member(f"{C10}../../../x", b"x"), "points outside of the archive"),
    "absolute name": (member("/tmp/escape", b"x"), "'/tmp/escape' points outside"),
    "symbolic link": (
        member(TEST, header(TEST, tarfile.SYMTYPE, linkname="/etc/passwd")),
        "is a symbolic link, expected a regular file",
    ),
    "hard link": (
        member(TEST, header(TEST, tarfile.LNKTYPE, linkname=f"{C10}data_batch_1.bin")),
        "is a hard link",
    ),
    "character device": (member(TEST, header(TEST, tarfile.CHRTYPE)), "is a device"),
    "block device": (member(TEST, header(TEST, tarfile.BLKTYPE)), "is a device"),
    "pipe": (member(TEST, header(TEST, tarfile.FIFOTYPE)), "is a pipe"),
    "folder": (member(TEST, header(TEST, tarfile.DIRTYPE)), "is a folder"),
    "unknown kind": (member(TEST, header(TEST, b"Z")), "is of a special kind"),
    "sparse file": (
        raw(block(TEST, tarfile.GNUTYPE_SPARSE, 0)),
        "is of a special kind, expected a regular file",
    ),
    "duplicate": (
        lambda members: make.tgz([*members.items(), (TEST, members[TEST])]),
        f"the member '{TEST}' occurs twice",
    ),
    "missing": (without(TEST), f"{TEST} missing in the archive"),
    "several missing": (
        without(*(f"{C10}data_batch_{i}.bin" for i in range(1, 6))),
        "data_batch_3.bin and 2 more missing",
    ),
    "name that is not UTF-8": (
        lambda members: make.tgz({k.replace("test", "te\udcffst"): v for k, v in members.items()}),
        f"{TEST} missing",
    ),
    "name with NUL": (
        lambda members: make.tgz({k.replace("test_", "test\0_"): v for k, v in members.items()}),
        f"{TEST} missing",
    ),
    "empty file": (lambda members: b"", "expected a tar archive, found an empty file"),
    "empty archive": (lambda members: make.tgz({}), "missing in the archive"),
    "gzip of nothing": (lambda members: gzip.compress(b""), "found: empty file"),
    "truncated gzip": (
        lambda members: make.tgz(members)[:-5000],
        "expected a whole tar archive, found: Compressed file ended",
    ),
    "no gzip checksum": (
        lambda members: make.tgz(members)[:-4],
        "expected a whole tar archive, found: Compressed file ended",
    ),
    "flipped bit": (flipped, "expected a whole tar archive, found: "),
    "truncated tar": (truncated_in(TEST), f"bytes of the member '{TEST}'"),
    "garbage": (lambda members: bytes(range(256)) * 9, "expected a whole tar archive"),
    "gzip of garbage": (
        lambda members: gzip.compress(bytes(range(1, 256)) * 9),
        "expected a whole tar archive",
    ),
    "web page": (lambda members: PAGE, "found a web page"),
    "XML page": (lambda members: b"<?xml version='1.0'?><Error/>", "found a web page"),
    "gzip of a web page": (lambda members: gzip.compress(PAGE * 99), "expected a whole tar"),
    "zip": (zipped, "expected a whole tar archive"),
    "bzip2": (lambda members: bz2.compress(make.tar(members)), "expected a whole tar archive"),
    "huge member": (raw(block(TEST, tarfile.REGTYPE, 2**40)), "declares 1099511627776 bytes"),
    "huge other member": (raw(block("x", tarfile.REGTYPE, 2**40)), "expected at most 4294967296"),
    "negative size": (raw(block(TEST, tarfile.REGTYPE, -512)), "declares -512 bytes"),
    "backward size": (raw(block("x", tarfile.REGTYPE, -1024)), "a header points back"),
    "huge long name": (raw(block("x", tarfile.GNUTYPE_LONGNAME, 2**31)), "a header asks for"),
    "huge pax header": (raw(block("x", tarfile.XHDTYPE, 2**31)), "a header asks for"),
    "pax header of nonsense": (
        raw(block("x", tarfile.XHDTYPE, 512, b"17 size=nonsense\n".ljust(512, b"\0"))),
        "cifar-10-binary.tar.gz: ",
    ),
    "many headers in a row": (
        raw(block("x", tarfile.GNUTYPE_LONGNAME, 1, b"a".ljust(512, b"\0")) * 3000),
        "expected a whole tar archive, found: maximum recursion",
    ),
}


@pytest.mark.parametrize("case", ARCHIVES)
def test_archives(tmp_path, monkeypatch, capsys, case):
    build, match = ARCHIVES[case]
    members, _ = make.cifar10()
    files = {"cifar-10-binary.tar.gz": build(members)}
    make.use_tiny(monkeypatch, "cifar10", make.write(files, tmp_path / "manual"))
    check_refused("cifar10", tmp_path, capsys, match)


def test_other_members_are_ignored(tmp_path, monkeypatch):
    members, examples = make.cifar10()
    odd = {
        "link": header("link", tarfile.SYMTYPE, linkname="/etc/passwd"),
        "device": header("device", tarfile.CHRTYPE),
        "name\udcff": b"x",
    }
    files = {"cifar-10-binary.tar.gz": make.tgz({**odd, **members})}
    manual = make.write(files, tmp_path / "manual")
    make.use_tiny(monkeypatch, "cifar10", manual)
    prepare.prepare("cifar10", data_dir=tmp_path / "data", manual_dir=manual)
    assert len(prepare.open_prepared("cifar10", tmp_path / "data").train) == len(examples["train"])
    assert not [path for path in tmp_path.rglob("*") if path.name in odd or path.is_symlink()]


def test_the_number_of_members_is_limited(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MAX_MEMBERS", 3)
    path = tmp_path / "a.tar"
    path.write_bytes(make.tar({str(i): b"x" for i in range(4)}))
    with pytest.raises(ValueError, match="expected at most 3 members, found more"):
        archives.read_members(path, ["0"])


# The original files themselves, before they are opened.


def test_a_page_in_place_of_the_real_archive(tmp_path, capsys):
    make.write({"CUB_200_2011.tgz": PAGE}, tmp_path / "manual")
    match = f"expected the 1150585339 bytes of {next(iter(BUILDERS['cub200'].url_infos))}, found "
    check_refused("cub200", tmp_path, capsys, f"{match}{len(PAGE)} bytes, a web page: fetch")


def test_another_size(tmp_path, capsys):
    make.write(make.originals("cifar100")[0], tmp_path / "manual")
    check_refused("cifar100", tmp_path, capsys, "expected the 168513733 bytes of https://www.cs.")


def test_a_folder_in_place_of_the_archive(tmp_path, capsys):
    (tmp_path / "manual" / "cifar-100-binary.tar.gz").mkdir(parents=True)
    check_refused("cifar100", tmp_path, capsys, "found no regular file")


@pytest.mark.parametrize("name", prepare.PREPARED)
def test_another_checksum(tmp_path, monkeypatch, capsys, name):
    manual = make.write(make.originals(name)[0], tmp_path / "manual")
    make.use_tiny(monkeypatch, name, manual)
    infos = {
        url: dataclasses.replace(info, checksum=64 * "0")
        for url, info in BUILDERS[name].url_infos.items()
    }
    monkeypatch.setattr(BUILDERS[name], "url_infos", infos)
    check_refused(name, tmp_path, capsys, "has wrong checksum: Expected: UrlInfo(")


# CIFAR.


def edited(name, edit):
    """The original of a data set with one member edited."""

    def build():
        archive, maker = make.ARCHIVES[name[0]]
        members, _ = maker()
        return {archive: make.tgz({**members, name[1]: edit(members[name[1]])})}

    return build


def put(offset, *values):
    return lambda data: data[:offset] + bytes(values) + data[offset + len(values) :]


def replace(old, new, count=1):
    return lambda data: data.replace(old, new, count)


ROW = 2 + 3072
CIFAR = {
    "short row": (("cifar10", TEST), lambda data: data[:-1], "expected rows of 3073 bytes"),
    "long row": (("cifar100", f"{C100}train.bin"), lambda data: data + b"x", "rows of 3074 bytes"),
    "no row": (("cifar10", TEST), lambda data: b"", "expected rows of 3073 bytes, found 0 bytes"),
    "label 10": (("cifar10", TEST), put(0, 10), "expected label 0..9, found 10 in row 0"),
    "fine label 100": (
        ("cifar100", f"{C100}test.bin"),
        put(ROW + 1, 100),
        "test.bin: expected label 0..99, found 100 in row 1",
    ),
    "coarse label 20": (
        ("cifar100", f"{C100}train.bin"),
        put(2 * ROW, 20),
        "train.bin: expected coarse_label 0..19, found 20 in row 2",
    ),
    "another coarse label": (
        ("cifar100", f"{C100}train.bin"),
        put(2 * ROW, 0),
        "expected the published coarse label 14 for label 2, found 0 in row 2",
    ),
    "nine names": (
        ("cifar10", f"{C10}batches.meta.txt"),
        replace(b"cat\n", b""),
        "batches.meta.txt: expected 10 different names, found 9",
    ),
    "a name twice": (
        ("cifar10", f"{C10}batches.meta.txt"),
        replace(b"cat\n", b"dog\n"),
        "expected 10 different names, found 9",
    ),
    "binary names": (
        ("cifar10", f"{C10}batches.meta.txt"),
        replace(b"cat", b"c\xff\0"),
        "expected ASCII text",
    ),
    "another fine name": (
        ("cifar100", f"{C100}fine_label_names.txt"),
        replace(b"baby", b"babe"),
        "expected 'baby' as label 2, as published, found 'babe'",
    ),
    "another coarse name": (
        ("cifar100", f"{C100}coarse_label_names.txt"),
        replace(b"fish", b"fowl"),
        "expected 'fish' as coarse_label 1, as published, found 'fowl'",
    ),
}


@pytest.mark.parametrize("case", CIFAR)
def test_cifar(tmp_path, monkeypatch, capsys, case):
    where, edit, match = CIFAR[case]
    manual = make.write(edited(where, edit)(), tmp_path / "manual")
    make.use_tiny(monkeypatch, where[0], manual)
    check_refused(where[0], tmp_path, capsys, match)


# Fashion-MNIST.

IMAGES, LABELS = "train-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"
FASHION = {
    "web page": (IMAGES, lambda data: PAGE, "expected the magic number 00000803"),
    "truncated": (IMAGES, lambda data: data[:-9], "expected a whole gzip file"),
    "label 10": (
        LABELS,
        lambda data: make.idx_bytes(np.array([10] * 19, np.uint8)),
        "expected labels 0..9, found 10",
    ),
    "too few labels": (
        LABELS,
        lambda data: make.idx_bytes(np.zeros(18, np.uint8)),
        "expected 19 labels",
    ),
    "other images": (
        IMAGES,
        lambda data: make.idx_bytes(np.zeros((20, 32, 32), np.uint8)),
        "expected images of shape (28, 28), found (32, 32)",
    ),
    "gzip bomb": (
        IMAGES,
        lambda data: gzip.compress(gzip.decompress(data) + bytes(2**22)),
        "found more",
    ),
}


@pytest.mark.parametrize("case", FASHION)
def test_fashion_mnist(tmp_path, monkeypatch, capsys, case):
    file, edit, match = FASHION[case]
    files, _ = make.fashion_mnist()
    manual = make.write({**files, file: edit(files[file])}, tmp_path / "manual")
    make.use_tiny(monkeypatch, "fashion_mnist", manual)
    check_refused("fashion_mnist", tmp_path, capsys, match)


# CUB: tables.

FIRST = "001.Black_footed_Albatross/Black_footed_Albatross_0001_101.jpg"
TABLES = {
    "path outside": ("images", replace(FIRST.encode(), b"../../x.jpg"), "found '../../x.jpg'"),
    "absolute path": ("images", replace(FIRST.encode(), b"/etc/x.jpg"), "found '/etc/x.jpg'"),
    "path with NUL": ("images", replace(b"_0001_", b"_\0_"), "expected NUMBER.CLASS/FILE.jpg"),
    "binary table": ("images", replace(b"Black", b"Bl\xffck"), "expected ASCII text"),
    "blank in a path": ("images", replace(b"_0001_", b" "), "in line 1"),
    "number that is none": ("images", replace(b"1 ", b"one "), "in line 1"),
    "repeated number": ("images", replace(b"\n2 ", b"\n1 "), "image 1 occurs twice"),
    "number without class": (
        "image_class_labels",
        replace(b"3 2\n", b""),
        "found image 3 only in one of images.txt and image_class_labels.txt",
    ),
    "number without box": (
        "bounding_boxes",
        replace(b"\n3 ", b"\n33 "),
        "found image 3 only in one of images.txt and bounding_boxes.txt",
    ),
    "number without split": ("train_test_split", replace(b"4 0\n", b""), "found image 4 only in"),
    "empty table": ("images", lambda data: b"", "only in one of images.txt and image_class_labels"),
    "class 0": ("image_class_labels", replace(b"1 1", b"1 0"), "from 1 to 200, found '0'"),
    "class 201": ("image_class_labels", replace(b"1 1", b"1 201"), "from 1 to 200, found '201'"),
    "class that is none": ("image_class_labels", replace(b"1 1", b"1 x"), "found 'x'"),
    "another class": (
        "image_class_labels",
        replace(b"1 1", b"1 2"),
        "expected the folder 002.Laysan_Albatross of class 2, found 001.Black_footed_Albatross",
    ),
    "another spelling": (
        "images",
        replace(b"001.Black_footed", b"001.Blackfooted"),
        "expected the folder 001.Black_footed_Albatross of class 1",
    ),
    "split 2": ("train_test_split", replace(b"1 1", b"1 2"), "expected 0 or 1"),
    "no test": ("train_test_split", replace(b" 0\n", b" 1\n", -1), "for training and for the test"),
    "one file twice": (
        "images",
        lambda data: data.replace(b"_0002_102", b"_0001_101"),
        "found one file for several images",
    ),
    "box of text": ("bounding_boxes", replace(b"6.0", b"six"), "expected four numbers as a box"),
    "box of NaN": ("bounding_boxes", replace(b"6.0", b"nan"), "expected a box with 0 ≤ x1 ≤ x2"),
    "infinite box": ("bounding_boxes", replace(b"6.0", b"inf"), "expected a box with"),
    "negative box": ("bounding_boxes", replace(b"1.0", b"-1.0"), "expected a box with"),
    "box turned around": ("bounding_boxes", replace(b"6.0", b"-6.0"), "expected a box with"),
    "box outside": ("bounding_boxes", replace(b"1.0", b"99"), "expected a box inside of 13 × 10"),
    "missing column": ("bounding_boxes", replace(b" 5.5", b""), "in line 1"),
}


@pytest.mark.parametrize("case", TABLES)
def test_cub_tables(tmp_path, monkeypatch, capsys, case):
    table, edit, match = TABLES[case]
    files = edited(("cub200", f"{CUB}{table}.txt"), edit)()
    make.use_tiny(monkeypatch, "cub200", make.write(files, tmp_path / "manual"))
    check_refused("cub200", tmp_path, capsys, match)


# CUB: images.


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
BITMAP = {
    "truncated JPEG": (lambda data: data[:-80], "truncated"),
    "JPEG of a header": (lambda data: data[:30], "expected a whole image"),
    "text": (lambda data: b"Not found", "expected a JPEG or PNG image, found b'Not found'"),
    "web page": (lambda data: PAGE, "expected a JPEG or PNG image, found b'\\n <!DOCTYPE"),
    "zero bytes": (lambda data: b"", "expected a JPEG or PNG image, found an empty file"),
    "GIF": (lambda data: make.encoded(SMALL, "GIF"), "found b'GIF87a"),
    "TIFF": (lambda data: make.encoded(SMALL, "TIFF"), "expected a JPEG or PNG image"),
    "16-bit grey PNG": (
        lambda data: make.encoded(np.full((9, 9), 999, np.uint16), "PNG"),
        "of 16 bits, not one of RGB, L and CMYK of 8 bits",
    ),
    "16-bit RGB PNG": (lambda data: png_header(9, 9, 16), "mode RGB of 16 bits"),
    "transparent PNG": (
        lambda data: make.encoded(np.zeros((9, 9, 4), np.uint8), "PNG"),
        "mode RGBA",
    ),
    "PNG with a palette": (lambda data: make.encoded(PALETTE, "PNG"), "mode P"),
    "PNG without pixels": (lambda data: png_header(9, 9), "expected a whole image"),
    "truncated PNG": (lambda data: make.encoded(SMALL, "PNG")[:-60], "expected a whole image"),
    "PNG of 10 gigapixels": (lambda data: png_header(100_000, 100_000), "10000000000 pixels"),
    "PNG of 81 megapixels": (lambda data: png_header(9000, 9000), "9000 × 9000 pixels, more than"),
    "PNG of 100 megapixels": (lambda data: png_header(10**4, 10**4), "100000000 pixels"),
    "JPEG of 4 gigapixels": (huge_jpeg, "4225000000 pixels"),
}


@pytest.mark.parametrize("case", BITMAP)
def test_cub_images(tmp_path, monkeypatch, capsys, case):
    edit, match = BITMAP[case]
    files = edited(("cub200", f"{CUB}images/{FIRST}"), edit)()
    make.use_tiny(monkeypatch, "cub200", make.write(files, tmp_path / "manual"))
    check_refused("cub200", tmp_path, capsys, match)


def test_the_image_is_named(tmp_path, monkeypatch, capsys):
    files = edited(("cub200", f"{CUB}images/{FIRST}"), lambda data: data[:-80])()
    manual = make.write(files, tmp_path / "manual")
    make.use_tiny(monkeypatch, "cub200", manual)
    match = f"{manual / 'CUB_200_2011.tgz'}: {CUB}images/{FIRST}: expected a whole image, found: "
    check_refused("cub200", tmp_path, capsys, match)


def test_an_interrupt_leaves_nothing_behind(tmp_path, monkeypatch):
    def interrupt(data, what):
        if FIRST in what:
            raise KeyboardInterrupt
        return data, (9, 9)

    manual = make.write(make.originals("cub200")[0], tmp_path / "manual")
    make.use_tiny(monkeypatch, "cub200", manual)
    monkeypatch.setattr(images_module, "rgb_image", interrupt)
    with pytest.raises(KeyboardInterrupt):
        prepare.prepare("cub200", data_dir=tmp_path / "data", manual_dir=manual)
    assert not (tmp_path / "data").exists()


def test_missing_image(tmp_path, monkeypatch, capsys):
    members, _ = make.cub()
    files = {"CUB_200_2011.tgz": without(f"{CUB}images/{FIRST}")(members)}
    make.use_tiny(monkeypatch, "cub200", make.write(files, tmp_path / "manual"))
    check_refused("cub200", tmp_path, capsys, f"{CUB}images/{FIRST} missing in the archive")


COLOURS = [(200, 40, 90), (10, 240, 20), (128, 128, 128)]


def cmyk_jpeg(rgb):
    ink = [255 - value for value in rgb]
    pixels = np.broadcast_to(np.array([*ink, 0], np.uint8), (16, 24, 4))
    return make.encoded(Image.fromarray(np.ascontiguousarray(pixels), "CMYK"), quality=100)


GOOD = {
    "grey JPEG": lambda rgb: (make.encoded(np.full((16, 24), rgb[0], np.uint8)), [rgb[0]] * 3),
    "grey PNG": lambda rgb: (
        make.encoded(np.full((16, 24), rgb[0], np.uint8), "PNG"),
        [rgb[0]] * 3,
    ),
    "CMYK JPEG": lambda rgb: (cmyk_jpeg(rgb), rgb),
    "RGB PNG": lambda rgb: (make.encoded(np.full((16, 24, 3), rgb, np.uint8), "PNG"), rgb),
    "progressive JPEG": lambda rgb: (
        make.encoded(np.full((16, 24, 3), rgb, np.uint8), progressive=True, quality=100),
        rgb,
    ),
}


@pytest.mark.filterwarnings("ignore:'mode' parameter is deprecated:DeprecationWarning")
@pytest.mark.parametrize("kind", GOOD)
def test_odd_images_load_as_rgb(tmp_path, monkeypatch, kind):
    members, examples = make.cub()
    names = [name for split in examples.values() for name in split][: len(COLOURS)]
    images = [GOOD[kind](rgb) for rgb in COLOURS]
    for name, (data, _) in zip(names, images, strict=True):
        members[name] = data
    manual = make.write({"CUB_200_2011.tgz": make.tgz(members)}, tmp_path / "manual")
    make.use_tiny(monkeypatch, "cub200", manual)
    prepare.prepare("cub200", data_dir=tmp_path / "data", manual_dir=manual)
    splits = tfds.data_source("caltech_birds2011", data_dir=tmp_path / "data", download=False)
    found = {e["image/filename"].decode(): e["image"] for s in splits.values() for e in s}
    for name, (_, rgb) in zip(names, images, strict=True):
        assert found[name].shape == (16, 24, 3)
        assert np.abs(found[name].astype(int) - np.array(rgb)).max() <= 2


def test_rgb_files_are_kept_byte_for_byte(tmp_path, monkeypatch):
    members, _ = make.cub()
    manual = make.write({"CUB_200_2011.tgz": make.tgz(members)}, tmp_path / "manual")
    make.use_tiny(monkeypatch, "cub200", manual)
    prepare.prepare("cub200", data_dir=tmp_path / "data", manual_dir=manual)
    source = prepare.open_prepared("cub200", tmp_path / "data")
    kept = {part[i][0] for part in (source.train, source.test) for i in range(len(part))}
    assert kept == {data for name, data in members.items() if name.endswith(".jpg")}


# Cars.

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


MAT = {
    "text": (b"no MAT file at all", "expected a MATLAB 5 file, found b'no MAT file at all'"),
    "empty": (b"", "expected a MATLAB 5 file, found b''"),
    "web page": (PAGE, "expected a MATLAB 5 file, found b'\\n <!DOCTYPE"),
    "HDF5": (b"MATLAB 7.3 MAT-file, Platform".ljust(512), "expected a MATLAB 5 file, found b'MAT"),
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
}


@pytest.mark.parametrize("case", MAT)
def test_cars_tables(tmp_path, capsys, case):
    table, match = MAT[case]
    files, _ = make.cars()
    make.write({**files, "devkit/cars_train_annos.mat": table}, tmp_path / "manual")
    check_refused("cars196", tmp_path, capsys, match)


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
}


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("case", CAR_ROWS)
def test_cars_rows(tmp_path, capsys, case):
    changes, match = CAR_ROWS[case]
    files, _ = make.cars()
    make.write({**files, "devkit/cars_train_annos.mat": row(**changes)}, tmp_path / "manual")
    check_refused("cars196", tmp_path, capsys, match)


@pytest.mark.usefixtures("in_process")
def test_a_table_without_rows(tmp_path, capsys):
    files, _ = make.cars()
    table = make.annotations([])
    make.write({**files, "devkit/cars_train_annos.mat": table}, tmp_path / "manual")
    check_refused("cars196", tmp_path, capsys, "cars_train_annos.mat: expected a row an image")


def test_the_size_and_time_of_a_table_are_limited(monkeypatch):
    data = row()
    monkeypatch.setattr(matlab, "TIMEOUT_SECONDS", 0.001)
    with pytest.raises(ValueError, match=r"^x: not read within 0.001 s"):
        matlab.read_table(data, "annotations", make.FIELDS, "x")
    monkeypatch.setattr(matlab, "MAX_BYTES", 100)
    with pytest.raises(ValueError, match=f"^x: expected at most 100 bytes, found {len(data)}"):
        matlab.read_table(data, "annotations", make.FIELDS, "x")


CAR_IMAGES = {
    "missing image": (None, "00002.jpg missing"),
    "truncated JPEG": (lambda data: data[:-80], "00002.jpg: expected a whole image, found: "),
    "text": (lambda data: b"text", "00002.jpg: expected a JPEG or PNG image, found b'text'"),
    "zero bytes": (lambda data: b"", "found an empty file"),
}


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("packed", [False, True], ids=["folders", "archives"])
@pytest.mark.parametrize("case", CAR_IMAGES)
def test_cars_images(tmp_path, monkeypatch, capsys, case, packed):
    edit, match = CAR_IMAGES[case]
    files, _ = make.cars()
    data = files.pop("cars_test/00002.jpg")
    if edit is not None:
        files["cars_test/00002.jpg"] = edit(data)
    files = make.cars_archives(files) if packed else files
    manual = make.write(files, tmp_path / "manual")
    if packed:
        make.use_tiny(monkeypatch, "cars196", manual)
    check_refused("cars196", tmp_path, capsys, match)


def test_a_devkit_without_its_table(tmp_path, monkeypatch, capsys):
    files = make.cars_archives(make.cars()[0]) | {"car_devkit.tgz": make.tgz({"devkit/x": b""})}
    make.use_tiny(monkeypatch, "cars196", make.write(files, tmp_path / "manual"))
    check_refused("cars196", tmp_path, capsys, "devkit/cars_train_annos.mat missing in the archive")


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
