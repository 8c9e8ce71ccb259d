"""Makers of `.pth` files in the three formats, without torch and without the reader's code."""

import io
import pickle
import struct
import tarfile
import zipfile
from collections import OrderedDict
from typing import ClassVar, NamedTuple

import numpy as np

KINDS = {
    "float32": "Float", "float64": "Double", "float16": "Half", "bfloat16": "BFloat16",
    "int64": "Long", "int32": "Int", "int16": "Short", "int8": "Char", "uint8": "Byte",
    "bool": "Bool",
}  # fmt: skip
SYSTEM = {"little_endian": True, "protocol_version": 1001, "type_sizes": {"int": 4, "long": 4}}
MAGIC = 0x1950A86A20F9469CFC6C


class Global:
    """Pickles as the global of that module and name, whether it exists or not."""

    def __init__(self, module, name):
        self.module, self.name = module, name

    def __call__(self):
        """Callable, since pickle demands it of what it is to call."""


class Storage:
    """The numbers of one storage; options lie about them."""

    def __init__(self, numbers, *, kind=None, size=None, key=None, view=None):
        self.numbers = np.asarray(numbers).reshape(-1)
        self.kind = kind or KINDS[self.numbers.dtype.name] + "Storage"
        self.size = len(self.numbers) if size is None else size
        self.key, self.view = key, view


class Tensor:
    """A tensor's record as it goes into the file, right or wrong."""

    def __init__(self, storage, offset, shape, strides):
        self.storage, self.offset, self.shape, self.strides = storage, offset, shape, strides

    @classmethod
    def of(cls, array):
        """A tensor in a storage of its own, in C order."""
        return cls(Storage(array), 0, array.shape, np.empty(array.shape, np.int8).strides)


class Parameter(NamedTuple):
    """A `torch.nn.Parameter`."""

    tensor: Tensor


class Call:
    """Pickles as a call of a global with arguments."""

    def __init__(self, name, *arguments, state=None):
        self.reduction = (Global(*name.split()), arguments, state)

    def __reduce__(self):
        return self.reduction


class _Pickler(pickle._Pickler):
    """Knows the classes above; `storages` collects those that it met, by key."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def __init__(self, file, protocol, *, view=()):
        super().__init__(file, protocol)
        self.storages, self.view = OrderedDict(), view

    def persistent_id(self, obj):
        if not isinstance(obj, Storage):
            return None
        known = next((key for key, value in self.storages.items() if value is obj), None)
        key = obj.key or known or str(len(self.storages))
        self.storages[key] = obj
        view = self.view if obj.view is None else (obj.view,)
        return ("storage", Global("torch", obj.kind), key, "cpu", obj.size, *view)

    def save_global_by_name(self, obj):
        if self.proto >= 4:
            self.save(obj.module)
            self.save(obj.name)
            self.write(pickle.STACK_GLOBAL)
        else:
            self.write(pickle.GLOBAL + f"{obj.module}\n{obj.name}\n".encode())

    def save_tensor(self, obj):
        arguments = (obj.storage, obj.offset, obj.shape, obj.strides, False, OrderedDict())
        self.save_reduce(Global("torch._utils", "_rebuild_tensor_v2"), arguments, obj=obj)

    def save_parameter(self, obj):
        arguments = (obj.tensor, True, OrderedDict())
        self.save_reduce(Global("torch._utils", "_rebuild_parameter"), arguments, obj=obj)

    def save_array(self, obj):
        self.save(Tensor.of(obj))

    dispatch[Global] = save_global_by_name
    dispatch[Tensor] = save_tensor
    dispatch[Parameter] = save_parameter
    dispatch[np.ndarray] = save_array


class _Python2Pickler(_Pickler):
    """Writes as Python 2 does: byte strings, ints above 4 bytes in decimal, OrderedDict(items)."""

    dispatch: ClassVar = dict(_Pickler.dispatch)

    def persistent_id(self, obj):
        """The tar format names a tensor by its number; the tensors lie in another member."""
        if not isinstance(obj, Tensor):
            return None
        self.storages[str(2**33 + len(self.storages))] = obj
        return next(reversed(self.storages))

    def save_str(self, obj):
        text = obj.encode()
        self.write(pickle.SHORT_BINSTRING + bytes([len(text)]) + text)
        self.memoize(obj)

    def save_int(self, obj):
        if abs(obj) < 2**31:
            self.save_long(obj)
        else:
            self.write(pickle.INT + b"%d\n" % obj)

    def save_ordered_dict(self, obj):
        self.save_reduce(OrderedDict, ([list(item) for item in obj.items()],), obj=obj)

    def save_parameter(self, obj):
        self.save(Global("torch.nn.parameter", "Parameter"))
        self.save(())
        self.write(pickle.NEWOBJ)
        self.save((obj.tensor, None, OrderedDict(), True, False))
        self.write(pickle.BUILD)

    dispatch[str] = save_str
    dispatch[int] = save_int
    dispatch[OrderedDict] = save_ordered_dict
    dispatch[Parameter] = save_parameter


def dump(value, protocol=2, pickler=_Pickler, **options):
    """The pickle of a value, and the storages or tensors that it names."""
    file = io.BytesIO()
    writer = pickler(file, protocol, **options)
    writer.dump(value)
    return file.getvalue(), writer.storages


def zip_file(state, *, protocol=2, pickles=None, members=None):
    """As torch ≥ 1.6 writes; `pickles` and `members` replace parts, None leaves a part out."""
    content, storages = dump(state, protocol)
    parts = {
        "data.pkl": (pickles or {}).get("state", content),
        "byteorder": b"little",
        **{f"data/{key}": storage.numbers.tobytes() for key, storage in storages.items()},
        "version": b"3\n",
    } | (members or {})
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, data in parts.items():
            if data is not None:
                archive.writestr(f"archive/{name}", data)
    return file.getvalue()


def stream_file(state, *, protocol=2, pickles=None, sizes=None):
    """As torch 0.2 to 1.5 write; `pickles` and `sizes` replace parts."""
    content, storages = dump(state, protocol, view=(None,))
    parts = {"magic": MAGIC, "protocol": 1001, "system": SYSTEM}
    parts = {name: pickle.dumps(value, 2) for name, value in parts.items()}
    parts |= {"state": content, "keys": pickle.dumps(sorted(storages), 2)} | (pickles or {})
    data = b"".join(parts.values())
    for key in sorted(storages):
        numbers = storages[key].numbers
        data += struct.pack("<q", (sizes or {}).get(key, len(numbers))) + numbers.tobytes()
    return data


def tar_file(state, *, protocol=2, pickles=None, members=None):
    """As torch 0.1 wrote under Python 2; `pickles` and `members` replace parts."""
    pickles = pickles or {}
    state = OrderedDict((name, _tar_value(name, value)) for name, value in state.items())
    content, tensors = dump(state, protocol, _Python2Pickler)
    storages, records = _tar_records(tensors)
    parts = {
        "sys_info": pickles.get("system", dump(SYSTEM, 2, _Python2Pickler)[0]),
        "pickle": pickles.get("state", content),
        "tensors": records,
        "storages": storages,
    } | (members or {})
    return tar_archive({name: data for name, data in parts.items() if data is not None})


def tar_archive(members):
    """A tar archive with a PAX header for each member, as fractions of a second make them."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:", format=tarfile.PAX_FORMAT) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), 1480000000.25
            archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


def _tar_value(name, value):
    """Weights were parameters then, statistics plain tensors."""
    value = Tensor.of(value) if isinstance(value, np.ndarray) else value
    return Parameter(value) if name.endswith("weight") else value


def _tar_records(tensors):
    """The members "storages" and "tensors"."""
    roots = {}
    for tensor in tensors.values():
        roots.setdefault(id(tensor.storage), (2**34 + len(roots), tensor.storage))
    storages = dump(len(roots))[0]
    for key, storage in roots.values():
        storages += dump((key, "cpu", Global("torch", storage.kind)), 2, _Python2Pickler)[0]
        storages += struct.pack("<q", storage.size) + storage.numbers.tobytes()
    storages += pickle.dumps([], 2)
    records = dump(len(tensors))[0]
    for key, tensor in tensors.items():
        kind = tensor.storage.kind.replace("Storage", "Tensor")
        root = roots[id(tensor.storage)][0]
        records += dump((int(key), root, Global("torch", kind)), 2, _Python2Pickler)[0]
        axes = len(tensor.shape)
        numbers = (axes, 0, *tensor.shape, *tensor.strides, tensor.offset)
        records += struct.pack(f"<ii{2 * axes + 1}q", *numbers)
    return storages, records


MAKERS = {"zip": zip_file, "stream": stream_file, "tar": tar_file}
