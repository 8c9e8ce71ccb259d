"""The three formats of `.pth` files with a part that is missing, lies, or asks for too much."""

import io
import struct
import tarfile
import zipfile

import pytest
from support import pth_files
from support.pth_checks import check_refused, read, state_dict
from support.pth_files import Global, dump, tar_archive, tar_members

# The zip format.


def zip_with(member, position, layout, value):
    """A zip file with one field of a member's header in the directory replaced."""
    data = bytearray(pth_files.zip_file(state_dict()))
    struct.pack_into(layout, data, data.rindex(f"archive/{member}".encode()) - 46 + position, value)
    return bytes(data)


def deflated(size):
    """A zip file whose state dict is compressed, and behind it a number of zeros."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", dump({}, 2)[0] + bytes(size))
    return file.getvalue()


ZIP = pth_files.zip_file(state_dict())
ZIPS = {
    "no state dict": (pth_files.zip_file({}, members={"data.pkl": None}), "found 0"),
    "two state dicts": (ZIP.replace(b"archive/version", b"archiv/data.pkl"), "found 2"),
    "twice the same name": (ZIP.replace(b"data/0", b"data/1"), "have the same name"),
    "no such storage": (ZIP.replace(b"data/0", b"data/9"), "no member 'archive/data/0'"),
    "short storage": (
        pth_files.zip_file(state_dict(), members={"data/0": b"1234"}),
        "expected 24 numbers of 4 bytes in 'archive/data/0', found 4 bytes",
    ),
    "compressed": (
        deflated(0),
        "expected 'archive/data.pkl' as torch stores it, found it compressed",
    ),
    "bomb": (deflated(2**24), "larger than the file: compressed?"),
    "bomb that calls itself stored": (
        zip_with("data.pkl", 24, "<I", 2**32 - 2),
        "larger than the file: compressed?",
    ),
    "encrypted": (zip_with("data/0", 8, "<H", 1), "compressed or encrypted"),
    "other compression": (zip_with("data/0", 10, "<H", 99), "compressed or encrypted"),
    "wrong checksum": (zip_with("data/0", 16, "<I", 1), "the checksum of 'archive/data/0'"),
    "size too small": (zip_with("data/0", 24, "<I", 92), "the checksum of 'archive/data/0'"),
    "header elsewhere": (zip_with("data/0", 42, "<I", 7), "no header of 'archive/data/0'"),
    "header outside": (zip_with("data/0", 42, "<I", 2**31), "no header of 'archive/data/0'"),
    "header of 64 bits without its field": (
        zip_with("data/0", 42, "<I", 2**32 - 1),
        "no header of 'archive/data/0'",
    ),
    "another member's bytes": (zip_with("data/0", 42, "<I", 0), "the checksum of 'archive/data/0'"),
    "newer version": (zip_with("data/0", 6, "<H", 99), "damaged zip file: zip file version 9.9"),
    "no directory": (ZIP[: ZIP.index(b"PK\1\2")], "damaged zip file: File is not a zip file"),
    "name in colour": (ZIP.replace(b"data/0", b"\x1b[31m\n"), "no member 'archive/data/0'"),
    "too many members": (
        pth_files.zip_file({}, members={"extra": b"PK\1\2" * 2**16}),
        "expected at most 65536 members",
    ),
}


@pytest.mark.parametrize("name", ZIPS)
def test_zip(tmp_path, name):
    data, message = ZIPS[name]
    check_refused(tmp_path, data, message)


@pytest.mark.parametrize("name", ["../../canary", "/tmp/canary", "a/../../canary", "C:\\canary"])
def test_names_that_lead_out_lead_nowhere(tmp_path, name):
    folder = tmp_path / "a/b"
    folder.mkdir(parents=True)
    files = [
        pth_files.zip_file(state_dict(), members={name: b"x"}),
        tar_archive(tar_members(pth_files.tar_file(state_dict())) | {name: b"x"}),
    ]
    for data in files:
        assert len(read(folder, data)) == 5
        assert [path for path in tmp_path.rglob("*") if path.is_file()] == [folder / "hostile.pth"]


# The stream format.

STREAMS = {
    "magic number": ({"magic": 1}, "expected the magic number 0x1950a86a20f9469cfc6c"),
    "magic word": ({"magic": "torch"}, "expected the magic number"),
    "magic list": ({"magic": []}, "expected the magic number"),
    "protocol": ({"protocol": 1000}, "expected the protocol 0x3e9"),
    "system": ({"system": [True]}, "little-endian"),
    "no byte order": ({"system": {}}, "little-endian"),
    "byte order 1": ({"system": {"little_endian": 1}}, "little-endian"),
    "keys no list": ({"keys": {"0": 0}}, "expected a list of the keys"),
    "keys of numbers": ({"keys": [0, 1, 2, 3]}, "expected a list of the keys"),
    "no keys": ({"keys": []}, "are not those that its tensors need"),
    "a key too many": ({"keys": ["0", "1", "2", "3", "4"]}, "are not those that"),
    "a key twice": ({"keys": ["0", "0", "1", "2"]}, "are not those that"),
    "keys in another order": (
        {"keys": ["3", "2", "1", "0"]},
        "expected 6 numbers in a storage, found 24",
    ),
}


@pytest.mark.parametrize("name", STREAMS)
def test_stream(tmp_path, name):
    parts, message = STREAMS[name]
    pickles = {part: dump(value, 2)[0] for part, value in parts.items()}
    check_refused(tmp_path, pth_files.stream_file(state_dict(), pickles=pickles), message)


@pytest.mark.parametrize("size", [0, 23, 25, 2**40, 2**63 - 1, -1, -(2**63)])
def test_stream_with_another_size(tmp_path, size):
    data = pth_files.stream_file(state_dict(), sizes={"0": size})
    check_refused(tmp_path, data, f"expected 24 numbers in a storage, found {size}")


# The tar format.


def tar_with(**members):
    content = tar_members(pth_files.tar_file(state_dict())) | members
    return tar_archive({name: data for name, data in content.items() if data is not None})


def tar_header(name="extra", kind=tarfile.REGTYPE, size=b"", **fields):
    """A header; `size` replaces its field, and the checksum fits nevertheless."""
    info = tarfile.TarInfo(name)
    info.type = kind
    for field, value in fields.items():
        setattr(info, field, value)
    header = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
    header[124 : 124 + len(size)] = size
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def record(key, root, kind, *numbers):
    """A member "tensors" with one tensor."""
    axes = (len(numbers) - 2) // 2
    return (
        dump(1, 2)[0]
        + dump((key, root, Global("torch", kind)), 2)[0]
        + struct.pack(f"<ii{2 * axes}q", *numbers[:2], *numbers[2:])
    )


def storages(*records):
    """A member "storages": of (key, type, size, bytes); the last record is the list of views."""
    *records, views = records
    data = dump(len(records), 2)[0]
    for key, kind, size, content in records:
        data += dump((key, "cpu", Global("torch", kind)), 2)[0] + struct.pack("<q", size) + content
    return data + dump(views, 2)[0]


TYPES = {
    "link": tarfile.SYMTYPE,
    "hard link": tarfile.LNKTYPE,
    "device": tarfile.CHRTYPE,
    "block device": tarfile.BLKTYPE,
    "pipe": tarfile.FIFOTYPE,
    "folder": tarfile.DIRTYPE,
    "long name of GNU": tarfile.GNUTYPE_LONGNAME,
    "long link of GNU": tarfile.GNUTYPE_LONGLINK,
    "sparse file of GNU": tarfile.GNUTYPE_SPARSE,
    "contiguous file": tarfile.CONTTYPE,
    "unknown": b"\xff",
}


@pytest.mark.parametrize("name", TYPES)
def test_tar_with_another_type_of_member(tmp_path, name):
    header = tar_header("storages", TYPES[name], linkname="/etc/passwd")
    message = f"of type {TYPES[name]!r}"
    check_refused(tmp_path, header + pth_files.tar_file(state_dict()), message)


@pytest.mark.parametrize("name", ["sys_info", "storages", "tensors", "pickle"])
def test_tar_without_a_member(tmp_path, name):
    check_refused(tmp_path, tar_with(**{name: None}), f"no member {name} in the tar file")


TARS = {
    "twice the same name": (
        tar_header("tensors") + pth_files.tar_file({}),
        "have the name 'tensors'",
    ),
    "names that lead out": (
        tar_with(**{"storages": None, "../storages": b""}),
        "no member storages",
    ),
    "name in colour": (
        tar_header("\x1b[31m\n") * 2,
        r"two members of the tar file have the name '\x1b",
    ),
    "65 members": (
        tar_archive({str(i): b"" for i in range(65)}),
        "expected at most 64 members",
    ),
    "size of 8 GB": (
        tar_header(size=b"7" * 11),
        "cut short: expected 8589934591 bytes of 'extra'",
    ),
    "size in base 256": (
        tar_header(size=b"\x80" + b"\0" * 10 + b"\1"),
        "without size and checksum",
    ),
    "negative size": (tar_header(size=b"-0000000001"), "without size and checksum"),
    "size of spaces": (tar_header(size=b" " * 12), "without size and checksum"),
    "wrong checksum": (tar_header()[:-1] + b"x", "the checksum of a header does not fit"),
    "system": (tar_with(sys_info=dump([], 2)[0]), "little-endian"),
    "fewer storages": (tar_with(storages=storages([])), "expected a key, a storage and a type"),
    "−1 storages": (tar_with(storages=dump(-1, 2)[0]), "at most 65536 storages and tensors"),
    "2³⁰ storages": (
        tar_with(storages=dump(2**30, 2)[0]),
        "at most 65536 storages and tensors",
    ),
    "a storage of words": (
        tar_with(storages=dump(1, 2)[0] + dump("a", 2)[0]),
        "expected a key, a device",
    ),
    "a storage of 2⁶⁰": (
        tar_with(storages=storages((1, "FloatStorage", 2**60, b""), [])),
        "cut short",
    ),
    "a storage of −1": (
        tar_with(storages=storages((1, "FloatStorage", -1, b""), [])),
        "cut short",
    ),
    "views": (
        tar_with(storages=storages([(1, 2, 0, 3)])),
        "views of storages are not supported",
    ),
    "a tensor of −1 axes": (
        tar_with(tensors=record(2**33, 2**34, "FloatTensor", -1, 0)),
        "a tensor's record does not fit its storage",
    ),
    "a tensor of 2³¹ axes": (
        tar_with(tensors=record(2**33, 2**34, "FloatTensor", 2**31 - 1, 0)),
        "a tensor's record does not fit its storage",
    ),
    "a tensor of another type": (
        tar_with(tensors=record(2**33, 2**34, "DoubleTensor", 0, 0)),
        "a tensor's record does not fit its storage",
    ),
    "a tensor of no storage": (
        tar_with(tensors=record(2**33, 1, "FloatTensor", 0, 0)),
        "expected a key, a storage and a type for each tensor",
    ),
    "a tensor cut short": (
        tar_with(tensors=record(2**33, 2**34, "FloatTensor", 3, 0)),
        "cut short",
    ),
    "no tensors": (tar_with(tensors=dump(0, 2)[0]), "a persistent id that names no tensor"),
    "persistent id in the system": (
        tar_with(sys_info=b"\x80\2NQ."),
        "outside the pickle of the state",
    ),
    "persistent id 0": (
        tar_with(pickle=b"\x80\2K\0Q."),
        "a persistent id that names no tensor",
    ),
    "persistent id ()": (tar_with(pickle=b"\x80\2)Q."), "a persistent id that names no tensor"),
}


@pytest.mark.parametrize("name", TARS)
def test_tar(tmp_path, name):
    data, message = TARS[name]
    check_refused(tmp_path, data, message)


def test_records_of_pax_are_skipped(tmp_path):
    """Whatever they say: of another size, another name, or of a link."""
    lies = b"".join(
        b"%d %b=%b\n" % (len(k) + len(v) + 5, k, v)
        for k, v in ((b"path", b"pickle"), (b"size", b"999999"), (b"linkpath", b"/etc/x"))
    )
    header = tar_header("x", tarfile.XHDTYPE, size=b"%011o" % len(lies))
    extra = header + lies.ljust(512, b"\0") + tar_header("extra")
    assert len(read(tmp_path, extra + pth_files.tar_file(state_dict()))) == 5
