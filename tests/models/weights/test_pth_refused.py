"""`.pth` files that are damaged or want to do harm: nothing runs or grows, one clear line."""

import io
import struct
import tarfile
import tracemalloc
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from support.pth_files import (
    MAKERS,
    Call,
    Global,
    Storage,
    Tensor,
    dump,
    stream_file,
    tar_archive,
    tar_file,
    zip_file,
)

from dh2l_jax.models.weights.pth import PthError, read_state_dict

every_format = pytest.mark.parametrize("kind", MAKERS)


def state_dict():
    """A kernel, statistics, a counter, and two tensors of one storage."""
    storage = Storage(np.arange(6, dtype=np.float32))
    return {
        "conv.weight": np.ones((2, 3, 2, 2), np.float32),
        "bn.running_mean": np.arange(3.0),
        "count": np.array(7),
        "a": Tensor(storage, 0, (2, 3), (3, 1)),
        "b": Tensor(storage, 3, (3,), (1,)),
    }


def read(folder, data):
    path = folder / "hostile.pth"
    path.write_bytes(data)
    return read_state_dict(path)


def check_refused(folder, data, match=""):
    """One clear line, and nothing else has happened."""
    with pytest.raises(PthError) as info:
        read(folder, data)
    check_clear(info.value, folder)
    assert match in str(info.value)


def check_clear(error, folder):
    """One short printable line that begins with the path; no file but the hostile one."""
    message = str(error)
    assert message.startswith(f"{folder / 'hostile.pth'}: ")
    assert message.isprintable()
    assert len(message) < len(str(folder)) + 400
    assert [path.name for path in folder.iterdir()] == ["hostile.pth"]


def with_pickle(kind, content):
    """A file of a format, right but for the pickle of its state dict."""
    return MAKERS[kind](state_dict(), pickles={"state": content})


# Pickles that want something run.


def gadgets(canary):
    """What would create the canary, or do other harm, if it ran."""
    touch, code = f"touch {canary}", f"open({str(canary)!r}, 'w').close()"
    call = Call("os system", touch)
    return {
        "os": call,
        "posix": Call("posix system", touch),
        "eval": Call("builtins eval", code),
        "exec": Call("builtins exec", code),
        "eval of Python 2": Call("__builtin__ eval", code),
        "open": Call("builtins open", str(canary), "w"),
        "import": Call("builtins __import__", "antigravity"),
        "getattr": Call("builtins getattr", Global("os", "system"), "__call__"),
        "subprocess": Call("subprocess Popen", ("touch", str(canary))),
        "method": Call("pathlib Path.touch", str(canary)),
        "shutil": Call("shutil rmtree", str(canary.parent)),
        "runpy": Call("runpy run_path", str(canary)),
        "pickle": Call("pickle loads", "cos\nsystem\n."),
        "operator": Call("operator methodcaller", "system", touch),
        "partial": Call("functools partial", Global("os", "system"), touch),
        "importlib": Call("importlib import_module", "os"),
        "ctypes": Call("ctypes CDLL", "libc.so.6"),
        "socket": Call("socket create_connection", ("localhost", 9)),
        "bytearray": Call("builtins bytearray", 2**31 - 1),
        "numpy": Call("numpy.core.multiarray _reconstruct", Global("numpy", "ndarray"), (0,), "b"),
        "torch.load": Call("torch load", str(canary)),
        "torch.hub": Call("torch.hub load", "owner/name", "model"),
        "torch.storage": Call("torch.storage _load_from_bytes", "x"),
        "quantised": Call("torch._utils _rebuild_qtensor"),
        "sparse": Call("torch._utils _rebuild_sparse_tensor"),
        "method of an allowed class": Call("collections OrderedDict.fromkeys", "ab"),
        "globals of an allowed function": Call("torch._utils _rebuild_tensor_v2.__globals__"),
        "this reader": Call("dh2l_jax.models.weights.pth read_state_dict", str(canary)),
        "argument": Call("collections OrderedDict", [("a", call)]),
        "argument of a parameter": Call("torch.nn.parameter Parameter", call),
        "state": Call("collections OrderedDict", state=call),
        "key": {call: 1},
    }


@pytest.mark.parametrize("name", ["os", "posix", "eval", "exec", "argument", "key"])
def test_gadgets_work(tmp_path, name):
    """With Python's own unpickler: else the next test would prove nothing."""
    import pickle

    pickle.loads(dump(gadgets(tmp_path / "canary")[name])[0])
    assert (tmp_path / "canary").exists()


@every_format
@pytest.mark.parametrize("name", gadgets(Path("canary")))
def test_gadgets(tmp_path, kind, name):
    state = {"a": gadgets(tmp_path / "canary")[name]}
    for protocol in range(6):
        data = with_pickle(kind, dump(state, protocol)[0])
        check_refused(tmp_path, data, "refused ")


@pytest.mark.parametrize("part", ["magic", "protocol", "system", "keys"])
def test_gadgets_in_the_other_pickles_of_a_stream(tmp_path, part):
    content = dump(gadgets(tmp_path / "canary")["os"])[0]
    data = stream_file(state_dict(), pickles={part: content})
    check_refused(tmp_path, data, "refused 'os system', no part of a state dict")


@pytest.mark.parametrize("part", ["sys_info", "storages", "tensors"])
def test_gadgets_in_the_other_members_of_a_tar(tmp_path, part):
    content = dump(gadgets(tmp_path / "canary")["os"])[0]
    for data in (content, dump(1)[0] + content):
        members = {part: data if part != "sys_info" else content}
        check_refused(tmp_path, tar_file(state_dict(), members=members), "'os system'")


# Pickles by the opcode: what follows the protocol.

PROTO = b"\x80\x02"
DICT = b"ccollections\nOrderedDict\n"
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"
PARAMETER = b"ctorch.nn.parameter\nParameter\n"
FLOAT = b"ctorch\nFloatStorage\n"
ONE = b"X\x01\0\0\0a"

OPCODES = {
    "text call of protocol 0": (b"cos\nsystem\n(S'touch canary'\ntR.", "refused 'os system'"),
    "INST": (b"(X\x01\0\0\0xios\nsystem\n.", "refused the pickle opcode b'i'"),
    "OBJ": (b"(ccollections\nOrderedDict\no.", "opcode b'o'"),
    "EXT1": (b"\x82\x01.", r"opcode b'\x82'"),
    "EXT2": (b"\x83\x01\0.", r"opcode b'\x83'"),
    "EXT4": (b"\x84\x01\0\0\0.", r"opcode b'\x84'"),
    "NEWOBJ_EX": (DICT + b")}\x92.", r"opcode b'\x92'"),
    "PERSID": (b"Pstorage\n.", "opcode b'P'"),
    "GET": (b"g0\n.", "opcode b'g'"),
    "PUT": (b"Np99999999\n.", "opcode b'p'"),
    "DUP": (b"N2.", "opcode b'2'"),
    "POP": (b"N0.", "opcode b'0'"),
    "FROZENSET": (b"(\x91.", r"opcode b'\x91'"),
    "STRING with an expression": (b"S'a'*9\n.", "opcode b'S'"),
    "BINBYTES": (b"B\xff\xff\xff\xff.", "opcode b'B'"),
    "BYTEARRAY8": (b"\x96" + b"\xff" * 8 + b".", r"opcode b'\x96'"),
    "BINUNICODE8": (b"\x8d" + b"\xff" * 7 + b"\x0f.", r"opcode b'\x8d'"),
    "LONG4": (b"\x8b\xff\xff\xff\x7f.", r"opcode b'\x8b'"),
    "no opcode": (b"\xfe.", r"opcode b'\xfe'"),
    "LONG1 of 255 bytes": (b"\x8a\xff" + b"1" * 255 + b".", "expected a state dict, found int"),
    "storage of 10⁶⁰⁰ numbers": (
        b"(X\x07\0\0\0storage%b%bN\x8a\xff%btQ." % (FLOAT, ONE, b"1" * 255), "names no"
    ),
    "INT of many digits": (b"I" + b"9" * 200 + b"\n.", "expected a state dict, found int"),
    "INT without end": (b"I" + b"9" * 2**20, "a name in a pickle has no end"),
    "INT that is none": (b"I0xx\n.", "damaged pickle: \"invalid literal for int()"),
    "text of 4 GB": (b"X\xff\xff\xff\xffa.", "cut short: expected 4294967295 bytes"),
    "bytes of negative length": (b"T\xff\xff\xff\xffa.", "BINSTRING pickle has negative byte"),
    "text not in UTF-8": (b"X\x01\0\0\0\xff.", "damaged pickle: \"'utf-8' codec can't decode"),
    "surrogate": (b"}X\x03\0\0\0\xed\xa0\x80Ns.", r"expected printable names, found '\ud800'"),
    "name in colour": (b"}X\x02\0\0\0\x1b\nNs.", r"expected printable names, found '\x1b"),
    "global without end": (b"c" + b"a" * 999 + b"\n", "a name in a pickle has no end"),
    "global named by numbers": (b"K\x01K\x02\x93.", "STACK_GLOBAL requires str"),
    "global named in colour": (b"X\x01\0\0\0\x1bX\x01\0\0\0\n\x93.", r"refused '\x1b \n'"),
    "protocol 255": (b"\x80\xff.", "unsupported pickle protocol: 255"),
    "empty stack": (b".", "damaged pickle: 'pop from empty list'"),
    "pop below a mark": (b"N(\x85.", "damaged pickle: 'list index out of range'"),
    "no mark": (b"Nt.", "damaged pickle: 'pop from empty list'"),
    "memo of nothing": (b"q\0.", "damaged pickle: 'list index out of range'"),
    "slot never stored": (b"h\x07.", "Memo value not found at index 7"),
    "append to a tuple": (b")Na.", "'tuple' object has no attribute 'append'"),
    "append to a dict": (DICT + b")RNa.", "'Dict' object has no attribute 'append'"),
    "append to a function": (DICT + b"Na.", "'function' object has no attribute 'append'"),
    "item of a list": (b"]NNs.", "list indices must be integers"),
    "half a pair": (b"}(Nu.", "damaged pickle: 'list index out of range'"),
    "list as key": (b"}]Ns.", "expected a str or a small int as key, found list"),
    "float as key": (b"}G" + b"\x7f" * 8 + b"Ns.", "as key, found float"),
    "bool as key": (b"}\x88Ns.", "as key, found bool"),
    "large int as key": (b"}\x8a\x08" + b"\x7f" * 8 + b"Ns.", "as key, found int"),
    "tuple that holds itself as key": (b"}(](\x86q\0h\0t", "damaged pickle"),
    "deep tuple as key": (b"}N" + b"\x85" * 10**5 + b"Ns.", "as key, found tuple"),
    "doubled tuple as key": (b"})" + b"q\0h\0\x86" * 99 + b"Ns.", "as key, found tuple"),
    "call of a text": (b"X\x01\0\0\0a)R.", "'str' object is not callable"),
    "call of a type of storage": (FLOAT + b")R.", "object is not callable"),
    "call without a tuple": (DICT + b"]R.", "refused a call with list"),
    "call with many arguments": (DICT + b"(" + b"N" * 99 + b"tR.", "takes from 0 to 1 positional"),
    "object of no class": (DICT + b"]\x81.", "refused a call with list"),
    "state of a function": (DICT + b"}b.", "refused to set the state of function"),
    "state of a dtype": (FLOAT + b"(K\x01tb.", "refused to set the state of Float32DType"),
    "state of a list": (b"]}b.", "refused to set the state of list"),
    "setstate for a parameter": (
        PARAMETER + b")\x81}X\x0c\0\0\0__setstate__Nsb.", "refused to set the state of Parameter"
    ),
    "OrderedDict of pairs of three": (DICT + b"](NNNta\x85R.", "too many values to unpack"),
    "OrderedDict of a list as key": (DICT + b"]]N\x86a\x85R.", "as key, found list"),
    "OrderedDict of a dict": (DICT + b"}\x85R.", "expected a list of pairs in an OrderedDict"),
    "tensor of nothing": (REBUILD + b")R.", "missing 4 required positional arguments"),
    "tensor of a number": (REBUILD + b"(K\x01K\0))tR.", "expected a storage, an offset"),
    "parameter of a number": (PARAMETER + b"K\x01\x85R.", "expected a tensor in a parameter"),
    "persistent id None": (b"NQ.", "refused a persistent id"),
    "persistent id of a module": (b"(X\x06\0\0\0modulecos\nsystem\nNNtQ.", "refused"),
    "no STOP": (b"N", ""),
}  # fmt: skip


@every_format
@pytest.mark.parametrize("name", OPCODES)
def test_opcodes(tmp_path, kind, name):
    content, message = OPCODES[name]
    pickles = {"state": PROTO + content, "keys": dump([])[0]}
    check_refused(tmp_path, MAKERS[kind](state_dict(), pickles=pickles), message)


# Pickles of few bytes that want much: time, memory or depth.

MANY = 10_000
PAIRS = b"](" + b"".join(b"J%bN\x86" % struct.pack("<i", i) for i in range(MANY)) + b"e"
PID = b"(X\x07\0\0\0storage%bX\x01\0\0\x000NK\x06" % FLOAT
TEXT = b"X" + struct.pack("<I", 2**19) + b"Q" * 2**19

BOMBS = {
    "nested lists": b"]" * MANY + b"a" * (MANY - 1),
    "nested tuples": b"N" + b"\x85" * 3 * MANY,
    "nested dicts": b"}K\0" * MANY + b"N" + b"s" * MANY,
    "list that holds itself": b"]q\0h\0a",
    "list that holds itself, doubled": b"]q\0" + b"(h\0h\0e" * MANY,
    "far slots of the memo": b"]r\xff\xff\xff\xffr\xfe\xff\xff\xff",
    "frame of 2⁶³ bytes": b"\x95" + b"\xff" * 7 + b"\x7f]",
    "dict of many pairs, recalled": DICT + b"q\0" + PAIRS + b"\x85q\1" + b"h\0h\1R" * MANY + b"N",
    "long persistent id, recalled": PID + b"N" * MANY + b"tq\0" + b"h\0Q" * MANY,
    "long arguments, recalled": REBUILD + b"q\0(" + b"N" * MANY + b"tq\1" + b"h\0h\1R" * MANY,
    "long state, recalled": b"](" + b"N" * MANY + b"tq\0" + (PARAMETER + b")Rh\0b") * 99,
    "global of a long name": TEXT + TEXT + b"\x93",
    "empty containers": b"}]" * MANY,
    "marks": b"(" * 3 * MANY + b"N",
    "larger than the pickle of any network": b"X" + struct.pack("<I", 2**21) + b"a" * 2**21,
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs(tmp_path, name):
    """The test would not end, or not fit in memory, if one of them worked."""
    data = with_pickle("zip", PROTO + BOMBS[name] + b".")
    tracemalloc.start()
    try:
        check_refused(tmp_path, data)
        assert tracemalloc.get_traced_memory()[1] < 100 * len(data)
    finally:
        tracemalloc.stop()


# Records: storages and tensors that are not what they say.

OUTSIDE = "does not fit in its storage of 6 numbers"
INTS = "expected ints ≥ 0 as offset, shape and strides of a tensor"
TENSORS = [
    (0, (7,), (1,), OUTSIDE),
    (1, (2, 3), (3, 1), OUTSIDE),
    (6, (), (), OUTSIDE),
    (0, (2, 3), (4, 1), OUTSIDE),
    (0, (2,), (2**62,), OUTSIDE),
    (0, (6, 6), (0, 0), OUTSIDE),  # more entries than numbers, all of them inside
    (0, (2**31, 2**31, 4), (0, 0, 0), OUTSIDE),  # 0 entries modulo 2⁶⁴
    (0, (2**62, 0), (1, 1), "an empty tensor has axes too long"),
    (2**62, (1,), (1,), OUTSIDE),
    (-1, (2,), (1,), INTS),
    (0, (-2,), (1,), INTS),
    (0, (-2, -3), (3, 1), INTS),
    (5, (6,), (-1,), INTS),
    (0, (1,) * 33, (1,) * 33, "tensor"),
]
UNTYPED = [  # for which the tar format has no room
    (0.0, (6,), (1,), INTS),
    (True, (2,), (1,), INTS),
    (0, ("6",), (1,), INTS),
    (0, (None,), (1,), INTS),
    (0, ((6,),), (1,), INTS),
    (0, (2, 3), (1,), "expected at most 32 axes of a tensor, and as many strides"),
    (0, [2, 3], (3, 1), "expected a storage, an offset, a shape and strides"),
    (0, (2, 3), None, "expected a storage, an offset, a shape and strides"),
]


@pytest.mark.parametrize(
    ("kind", "record"),
    [(kind, case) for kind in MAKERS for case in TENSORS + UNTYPED * (kind != "tar")],
)
def test_records_of_tensors(tmp_path, kind, record):
    offset, shape, strides, message = record
    tensor = Tensor(Storage(np.arange(6, dtype=np.float32)), offset, shape, strides)
    check_refused(tmp_path, MAKERS[kind]({"a": tensor}), message)


@every_format
@pytest.mark.parametrize("size", [0, 5, 7, 2**40, 2**62, -1])
def test_storages_of_another_size(tmp_path, kind, size):
    storage = Storage(np.arange(6, dtype=np.float32), size=size)
    check_refused(tmp_path, MAKERS[kind]({"a": Tensor(storage, 0, (1,), (1,))}))


@every_format
@pytest.mark.parametrize("storage_type", ["QInt8Storage", "ComplexFloatStorage", "UntypedStorage"])
def test_storages_of_another_type(tmp_path, kind, storage_type):
    storage = Storage(np.arange(6, dtype=np.float32), kind=storage_type)
    message = f"refused 'torch {storage_type}', no part of a state dict"
    check_refused(tmp_path, MAKERS[kind]({"a": Tensor(storage, 0, (6,), (1,))}), message)


@pytest.mark.parametrize("kind", ["zip", "stream"])
def test_storages_that_contradict_each_other(tmp_path, kind):
    numbers = np.arange(6, dtype=np.float32)
    for other in (Storage(numbers[:5], key="0"), Storage(numbers.astype(int), key="0")):
        state = {"a": numbers, "b": Tensor(other, 0, (5,), (1,))}
        check_refused(tmp_path, MAKERS[kind](state), "storage '0' is declared twice, differently")
    view = Storage(numbers, view=("1", 0, 6))
    data = MAKERS[kind]({"a": Tensor(view, 0, (6,), (1,))})
    check_refused(tmp_path, data, "views of storages are not supported")


# Containers with a part that is missing, lies, or asks for too much.


def zip_with(member, position, layout, value):
    """A zip file with one field of a member's header in the directory replaced."""
    data = bytearray(zip_file(state_dict()))
    struct.pack_into(layout, data, data.rindex(f"archive/{member}".encode()) - 46 + position, value)
    return bytes(data)


def deflated(size):
    """A zip file whose state dict is compressed, and behind it a number of zeros."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", dump({})[0] + bytes(size))
    return file.getvalue()


def stream_with(**parts):
    pickles = {part: dump(value)[0] for part, value in parts.items()}
    return stream_file(state_dict(), pickles=pickles)


def tar_members(data):
    """The members of a tar archive: name → bytes."""
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return {info.name: archive.extractfile(info).read() for info in archive}


def tar_with(**members):
    return tar_file(state_dict(), members=members)


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


def record(root, kind, axes):
    """A member "tensors" with one tensor."""
    return dump(1)[0] + dump((2**33, root, Global("torch", kind)))[0] + struct.pack("<ii", axes, 0)


def storages(*records, views=()):
    """A member "storages": of (type, size) without numbers, and the list of views."""
    data = dump(len(records))[0]
    for kind, size in records:
        data += dump((1, "cpu", Global("torch", kind)))[0] + struct.pack("<q", size)
    return data + dump(list(views))[0]


def typed(kind):
    return tar_header("storages", kind, linkname="/etc/passwd") + tar_file(state_dict())


ZIP, ROOT = zip_file(state_dict()), 2**34
CONTAINERS = {
    "zip": {
        "no state dict": (zip_file({}, members={"data.pkl": None}), "found 0"),
        "two state dicts": (ZIP.replace(b"archive/version", b"archiv/data.pkl"), "found 2"),
        "same name": (ZIP.replace(b"data/0", b"data/1"), "have the same name"),
        "no such storage": (ZIP.replace(b"data/0", b"data/9"), "no member 'archive/data/0'"),
        "short storage": (
            zip_file(state_dict(), members={"data/0": b"1234"}),
            "4 bytes in 'archive/data/0' for 24 numbers",
        ),
        "compressed": (deflated(0), "expected 'archive/data.pkl' as torch stores it, found it"),
        "bomb": (deflated(2**24), "larger than the file: compressed?"),
        "bomb called stored": (zip_with("data.pkl", 24, "<I", 2**32 - 2), "larger than the file"),
        "encrypted": (zip_with("data/0", 8, "<H", 1), "compressed or encrypted"),
        "other compression": (zip_with("data/0", 10, "<H", 99), "compressed or encrypted"),
        "wrong checksum": (zip_with("data/0", 16, "<I", 1), "the checksum of 'archive/data/0'"),
        "size too small": (zip_with("data/0", 24, "<I", 92), "the checksum of 'archive/data/0'"),
        "header elsewhere": (zip_with("data/0", 42, "<I", 7), "no header of 'archive/data/0'"),
        "header outside": (zip_with("data/0", 42, "<I", 2**31), "no header of 'archive/data/0'"),
        "header of 64 bits": (zip_with("data/0", 42, "<I", 2**32 - 1), "no header of 'archive/da"),
        "other's bytes": (zip_with("data/0", 42, "<I", 0), "the checksum of 'archive/data/0'"),
        "newer version": (zip_with("data/0", 6, "<H", 99), "damaged zip file: zip file version 9"),
        "no directory": (ZIP[: ZIP.index(b"PK\1\2")], "damaged zip file: File is not a zip file"),
        "name in colour": (ZIP.replace(b"data/0", b"\x1b[31m\n"), "no member 'archive/data/0'"),
        "too many members": (
            zip_file({}, members={"extra": b"PK\1\2" * 2**16}), "expected at most 65536 members"
        ),
    },
    "stream": {
        "magic number": (stream_with(magic=1), "expected the magic number"),
        "magic word": (stream_with(magic="torch"), "expected the magic number"),
        "magic list": (stream_with(magic=[]), "expected the magic number"),
        "protocol": (stream_with(protocol=1000), "and the protocol 1001"),
        "system": (stream_with(system=[True]), "little-endian"),
        "no byte order": (stream_with(system={}), "little-endian"),
        "byte order 1": (stream_with(system={"little_endian": 1}), "little-endian"),
        "keys no list": (stream_with(keys={"0": 0}), "expected a list of the keys"),
        "keys of numbers": (stream_with(keys=[0, 1, 2, 3]), "expected a list of the keys"),
        "no keys": (stream_with(keys=[]), "are not those that its tensors need"),
        "a key too many": (stream_with(keys=list("01234")), "are not those that"),
        "a key twice": (stream_with(keys=list("0012")), "are not those that"),
        "keys in another order": (stream_with(keys=list("3210")), "expected 6 numbers in"),
    } | {
        f"size {size}": (
            stream_file(state_dict(), sizes={"0": size}),
            f"expected 24 numbers in a storage, found {size}",
        )
        for size in (0, 23, 25, 2**40, 2**63 - 1, -1, -(2**63))
    },
    "tar": {
        "link": (typed(tarfile.SYMTYPE), "of type b'2'"),
        "hard link": (typed(tarfile.LNKTYPE), "of type b'1'"),
        "device": (typed(tarfile.CHRTYPE), "of type b'3'"),
        "block device": (typed(tarfile.BLKTYPE), "of type b'4'"),
        "pipe": (typed(tarfile.FIFOTYPE), "of type b'6'"),
        "folder": (typed(tarfile.DIRTYPE), "of type b'5'"),
        "long name of GNU": (typed(tarfile.GNUTYPE_LONGNAME), "of type b'L'"),
        "long link of GNU": (typed(tarfile.GNUTYPE_LONGLINK), "of type b'K'"),
        "sparse file of GNU": (typed(tarfile.GNUTYPE_SPARSE), "of type b'S'"),
        "contiguous file": (typed(tarfile.CONTTYPE), "of type b'7'"),
        "unknown": (typed(b"\xff"), r"of type b'\xff'"),
        "no sys_info": (tar_with(sys_info=None), "no member sys_info in the tar file"),
        "no storages": (tar_with(storages=None), "no member storages in the tar file"),
        "no tensors": (tar_with(tensors=None), "no member tensors in the tar file"),
        "no pickle": (tar_with(pickle=None), "no member pickle in the tar file"),
        "same name": (tar_header("tensors") + tar_file({}), "have the name 'tensors'"),
        "path": (tar_with(**{"storages": None, "../storages": b""}), "no member storages"),
        "colour": (tar_header("\x1b[31m\n") * 2, r"tar file have the name '\x1b"),
        "65 members": (tar_archive({str(i): b"" for i in range(65)}), "at most 64 members"),
        "size of 8 GB": (tar_header(size=b"7" * 11), "cut short: expected 8589934591 bytes of 'ex"),
        "base 256": (tar_header(size=b"\x80" + b"\0" * 10 + b"\1"), "without size and checksum"),
        "negative size": (tar_header(size=b"-0000000001"), "without size and checksum"),
        "size of spaces": (tar_header(size=b" " * 12), "without size and checksum"),
        "wrong checksum": (tar_header()[:-1] + b"x", "the checksum of a header does not fit"),
        "system": (tar_with(sys_info=dump([])[0]), "little-endian"),
        "fewer storages": (tar_with(storages=storages()), "does not fit its storage"),
        "−1 storages": (tar_with(storages=dump(-1)[0]), "at most 65536 storages and tensors"),
        "2³⁰ storages": (tar_with(storages=dump(2**30)[0]), "at most 65536 storages and tensors"),
        "words": (tar_with(storages=dump(1)[0] + dump("a")[0]), "expected a key, a device or"),
        "storage of 2⁶⁰": (tar_with(storages=storages(("FloatStorage", 2**60))), "cut short"),
        "storage of −1": (tar_with(storages=storages(("FloatStorage", -1))), "cut short"),
        "views": (tar_with(storages=storages(views=[(1, 2, 0, 3)])), "views of storages are not"),
        "−1 axes": (tar_with(tensors=record(ROOT, "FloatTensor", -1)), "does not fit its storage"),
        "2³¹ axes": (tar_with(tensors=record(ROOT, "FloatTensor", 2**31 - 1)), "does not fit its"),
        "type": (tar_with(tensors=record(ROOT, "DoubleTensor", 0)), "does not fit its storage"),
        "storage": (tar_with(tensors=record(1, "FloatTensor", 0)), "does not fit its storage"),
        "short tensor": (tar_with(tensors=record(ROOT, "FloatTensor", 3)), "cut short"),
        "0 tensors": (tar_with(tensors=dump(0)[0]), "a persistent id that names no tensor"),
        "id in the system": (tar_with(sys_info=b"\x80\2NQ."), "outside the pickle of the state"),
        "id 0": (tar_with(pickle=b"\x80\2K\0Q."), "a persistent id that names no tensor"),
        "id ()": (tar_with(pickle=b"\x80\2)Q."), "a persistent id that names no tensor"),
    },
}  # fmt: skip


@pytest.mark.parametrize(("kind", "name"), [(k, n) for k, v in CONTAINERS.items() for n in v])
def test_containers(tmp_path, kind, name):
    check_refused(tmp_path, *CONTAINERS[kind][name])


@pytest.mark.parametrize("name", ["../../canary", "/tmp/canary", "a/../../canary", "C:\\canary"])
def test_names_that_lead_out_lead_nowhere(tmp_path, name):
    folder = tmp_path / "a/b"
    folder.mkdir(parents=True)
    for data in (zip_file(state_dict(), members={name: b"x"}), tar_with(**{name: b"x"})):
        assert len(read(folder, data)) == 5
        assert [path for path in tmp_path.rglob("*") if path.is_file()] == [folder / "hostile.pth"]


def test_records_of_pax_are_skipped(tmp_path):
    """Whatever they say: of another size, another name, or of a link."""
    lies = b"".join(
        b"%d %b=%b\n" % (len(k) + len(v) + 5, k, v)
        for k, v in ((b"path", b"pickle"), (b"size", b"999999"), (b"linkpath", b"/etc/x"))
    )
    header = tar_header("x", tarfile.XHDTYPE, size=b"%011o" % len(lies))
    extra = header + lies.ljust(512, b"\0") + tar_header("extra")
    assert len(read(tmp_path, extra + tar_file(state_dict()))) == 5


# Any damage.


@every_format
def test_every_truncation(tmp_path, kind):
    data = MAKERS[kind](state_dict())
    # A tar archive is whole with the first of the blocks of zeros behind its members.
    end = len(data.rstrip(b"\0")) // 512 * 512 + 1024 if kind == "tar" else len(data)
    # Of a tar file, mostly zeros: the first and last bytes of each block, and a part of the others.
    for size in range(end):
        if kind != "tar" or size % 512 in (0, 1, 511) or size % 5 == 0:
            check_refused(tmp_path, data[:size])
    assert len(read(tmp_path, data[:end])) == 5


def mutate(data, generator):
    """Bytes changed, numbers made extreme, parts cut out, doubled or moved: once or twice."""
    data = bytearray(data)
    for _ in range(generator.integers(1, 3)):
        start, size = generator.integers(len(data)), generator.integers(1, 17)
        part = data[start : start + size]
        match generator.integers(5):
            case 0:
                data[start] ^= 1 << generator.integers(8)
            case 1:
                data[start] = generator.integers(256)
            case 2:
                data[start : start + 8] = generator.choice([b"\xff", b"\0", b"\x7f"]) * 8
            case 3:
                del data[start : start + size]
            case 4:
                at = generator.integers(len(data))
                data[at:at] = part
    return bytes(data)


def mutation(kind, seed, canary):
    """A damaged file, every other one with a call in it; or damage in its main pickle alone."""
    generator = np.random.default_rng(seed)
    if seed % 2:
        call = {"x": Call("posix system", f"touch {canary}")} if seed % 4 == 1 else {}
        return mutate(MAKERS[kind](call | state_dict() | {"numbers": np.arange(400.0)}), generator)
    data = MAKERS[kind](state_dict())
    content = tar_members(data)["pickle"] if kind == "tar" else dump(state_dict())[0]
    return with_pickle(kind, mutate(content, generator))


def test_a_thousand_mutations(tmp_path):
    outcomes = Counter()
    for seed in range(1000):
        kind = list(MAKERS)[seed % 3]
        data = mutation(kind, seed, tmp_path / "canary")
        tracemalloc.start()
        try:
            # All entries can be read, and none comes from outside the file.
            assert all(value.copy().nbytes <= len(data) for value in read(tmp_path, data).values())
            outcomes[kind, "read"] += 1
        except PthError as error:
            check_clear(error, tmp_path)
            outcomes[kind, "refused"] += 1
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert peak < 2**20
    assert [path.name for path in tmp_path.iterdir()] == ["hostile.pth"]
    assert len(outcomes) == 2 * len(MAKERS)
