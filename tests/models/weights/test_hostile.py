"""Malicious pickles in `.pth` files of each format: nothing runs, nothing grows, one clear line."""

import pickle
import struct
import tracemalloc
from pathlib import Path

import pytest
from support import pth_files
from support.pth_checks import check_refused, state_dict
from support.pth_files import MAKERS, Call, Global, dump

every_format = pytest.mark.parametrize("kind", MAKERS)


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
    pickle.loads(dump(gadgets(tmp_path / "canary")[name], 2)[0])
    assert (tmp_path / "canary").exists()


@every_format
@pytest.mark.parametrize("name", gadgets(Path("canary")))
def test_gadgets(tmp_path, kind, name):
    state = {"a": gadgets(tmp_path / "canary")[name]}
    for protocol in range(6):
        check_refused(tmp_path, with_pickle(kind, dump(state, protocol)[0]), "refused ")


@pytest.mark.parametrize("part", ["magic", "protocol", "system", "keys"])
def test_gadgets_in_the_other_pickles_of_a_stream(tmp_path, part):
    content = dump(gadgets(tmp_path / "canary")["os"], 2)[0]
    data = pth_files.stream_file(state_dict(), pickles={part: content})
    check_refused(tmp_path, data, "refused 'os system', no part of a state dict")


@pytest.mark.parametrize("part", ["sys_info", "storages", "tensors"])
def test_gadgets_in_the_other_members_of_a_tar(tmp_path, part):
    content = dump(gadgets(tmp_path / "canary")["os"], 2)[0]
    for data in (content, dump(1, 2)[0] + content):
        members = {part: data if part != "sys_info" else content}
        check_refused(tmp_path, pth_files.tar_file(state_dict(), members=members), "'os system'")


# Pickles by the opcode: what follows the protocol.

PROTO = b"\x80\x02"
DICT = b"ccollections\nOrderedDict\n"
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"
PARAMETER = b"ctorch.nn.parameter\nParameter\n"
FLOAT = b"ctorch\nFloatStorage\n"

OPCODES = {
    "text call of protocol 0": (b"cos\nsystem\n(S'touch canary'\ntR.", "refused 'os system'"),
    "INST": (b"(X\x01\0\0\0xios\nsystem\n.", r"refused the pickle opcode b'i' at byte 9"),
    "OBJ": (b"(ccollections\nOrderedDict\no.", "opcode b'o'"),
    "EXT1": (b"\x82\x01.", r"opcode b'\x82'"),
    "EXT2": (b"\x83\x01\0.", r"opcode b'\x83'"),
    "EXT4": (b"\x84\x01\0\0\0.", r"opcode b'\x84'"),
    "NEWOBJ_EX": (DICT + b")}\x92.", r"opcode b'\x92'"),
    "PERSID": (b"Pstorage\n.", "opcode b'P'"),
    "GET": (b"g0\n.", "opcode b'g'"),
    "DUP": (b"N2.", "opcode b'2'"),
    "STRING with an expression": (b"S'a'*9\n.", "opcode b'S'"),
    "BYTEARRAY8": (b"\x96" + b"\xff" * 8 + b".", r"opcode b'\x96'"),
    "BINUNICODE8": (b"\x8d" + b"\xff" * 7 + b"\x0f.", r"opcode b'\x8d'"),
    "LONG4": (b"\x8b\xff\xff\xff\x7f.", r"opcode b'\x8b'"),
    "no opcode": (b"\xfe.", r"opcode b'\xfe'"),
    "LONG1 of 255 bytes": (b"\x8a\xff" + b"1" * 255 + b".", "at most 16 bytes, found 255"),
    "INT of many digits": (b"I" + b"9" * 200 + b"\n.", "expected an int of at most 20 digits"),
    "INT that is none": (b"I0x7f\n.", "expected an int of at most 20 digits, found '0x7f'"),
    "text of 4 GB": (b"X\xff\xff\xff\xffa.", "cut short"),
    "bytes of negative length": (b"T\xff\xff\xff\xffa.", "cut short"),
    "text not in UTF-8": (b"X\x01\0\0\0\xff.", "expected text in UTF-8"),
    "surrogate": (b"X\x03\0\0\0\xed\xa0\x80.", "expected text in UTF-8"),
    "global without end": (b"c" + b"a" * 999 + b"\n", "a name in a pickle has no end"),
    "global named by numbers": (b"K\x01K\x02\x93.", "refused a global named by int and int"),
    "global named in colour": (b"X\x01\0\0\0\x1bX\x01\0\0\0\n\x93.", r"refused '\x1b \n'"),
    "protocol 255": (b"\x80\xff.", "expected a pickle of protocol 2 to 5, found 255"),
    "empty stack": (b".", "takes more than it has put on its stack"),
    "pop below a mark": (b"N(\x85.", "takes more than it has put on its stack"),
    "no mark": (b"Nt.", "takes more than it has put on its stack"),
    "memo of nothing": (b"q\0.", "takes more than it has put on its stack"),
    "slot never stored": (b"h\x07.", "recalls what it never stored, slot 7"),
    "append to a tuple": (b")Na.", "expected a list to append to, found tuple"),
    "append to a dict subclass": (DICT + b"Na.", "expected a list to append to"),
    "item of a list": (b"]NNs.", "expected pairs for a dict, found 2 for list"),
    "half a pair": (b"}(Nu.", "expected pairs for a dict, found 1 for dict"),
    "list as key": (b"}]Ns.", "expected a str or a small int as key, found list"),
    "float as key": (b"}G" + b"\x7f" * 8 + b"Ns.", "as key, found float"),
    "bool as key": (b"}\x88Ns.", "as key, found bool"),
    "large int as key": (b"}\x8a\x08" + b"\x7f" * 8 + b"Ns.", "as key, found int"),
    "tuple that holds itself as key": (b"}(](\x86q\0h\0t", "takes more"),
    "call of a text": (b"X\x01\0\0\0a)R.", "refused a call of str with tuple"),
    "call of a type of storage": (FLOAT + b")R.", "refused a call of Float32DType with tuple"),
    "call without a tuple": (DICT + b"]R.", "refused a call of function with list"),
    "state of a function": (DICT + b"}b.", "refused to set the state of function"),
    "state of a list": (b"]}b.", "refused to set the state of list"),
    "setstate for a parameter": (
        PARAMETER + b")\x81}X\x0c\0\0\0__setstate__Nsb.",
        "in the state of",
    ),
    "OrderedDict of pairs of three": (DICT + b"](NNNta\x85R.", "expected pairs in the list"),
    "OrderedDict of a list as key": (DICT + b"]]N\x86a\x85R.", "as key, found list"),
    "OrderedDict of a dict": (DICT + b"}\x85R.", "expected a list of pairs in an OrderedDict"),
    "tensor of nothing": (REBUILD + b")R.", "expected a storage, an offset, a shape and strides"),
    "tensor of a number": (REBUILD + b"(K\x01K\0))tR.", "expected a storage, an offset"),
    "persistent id None": (b"NQ.", "refused a persistent id"),
    "persistent id of a module": (b"(X\x06\0\0\0modulecos\nsystem\nNNtQ.", "refused"),
    "no STOP": (b"N", ""),
}


@every_format
@pytest.mark.parametrize("name", OPCODES)
def test_opcodes(tmp_path, kind, name):
    content, message = OPCODES[name]
    check_refused(tmp_path, with_pickle(kind, PROTO + content), message)


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
