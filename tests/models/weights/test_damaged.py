"""Damaged `.pth` files: lying records, every truncation, a thousand mutations."""

import tracemalloc
from collections import Counter

import numpy as np
import pytest
from support.pth_checks import check_clear, check_refused, read, state_dict
from support.pth_files import MAKERS, Call, Storage, Tensor, dump, tar_members

from dh2l_jax.models.weights.pth import PthError

every_format = pytest.mark.parametrize("kind", MAKERS)


# Records: storages and tensors that are not what they say.


@every_format
@pytest.mark.parametrize(
    ("offset", "shape", "strides"),
    [
        (0, (7,), (1,)),
        (1, (2, 3), (3, 1)),
        (6, (), ()),
        (0, (2, 3), (4, 1)),
        (0, (2,), (2**62,)),
        (0, (6, 6), (0, 0)),  # more entries than numbers, all of them inside
        (0, (2**31, 2**31, 4), (0, 0, 0)),  # 0 entries modulo 2⁶⁴
        (0, (2**62, 0), (1, 1)),
        (2**62, (1,), (1,)),
        (-1, (2,), (1,)),
        (0, (-2,), (1,)),
        (0, (-2, -3), (3, 1)),
        (5, (6,), (-1,)),
        (0, (1,) * 33, (1,) * 33),
    ],
)
def test_tensors_outside_their_storage(tmp_path, kind, offset, shape, strides):
    tensor = Tensor(Storage(np.arange(6, dtype=np.float32)), offset, shape, strides)
    check_refused(tmp_path, MAKERS[kind]({"a": tensor}), "tensor")


@pytest.mark.parametrize("kind", ["zip", "stream"])
@pytest.mark.parametrize(
    ("offset", "shape", "strides", "message"),
    [
        (0.0, (6,), (1,), "expected ints ≥ 0"),
        (True, (2,), (1,), "expected ints ≥ 0"),
        (0, ("6",), (1,), "expected ints ≥ 0"),
        (0, (None,), (1,), "expected ints ≥ 0"),
        (0, ((6,),), (1,), "expected ints ≥ 0"),
        (0, (2, 3), (1,), "found 2 axes and 1 strides"),
        (0, [2, 3], (3, 1), "expected a storage, an offset, a shape and strides"),
        (0, (2, 3), None, "expected a storage, an offset, a shape and strides"),
    ],
)
def test_records_of_other_types(tmp_path, kind, offset, shape, strides, message):
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
    content = tar_members(data)["pickle"] if kind == "tar" else dump(state_dict(), 2)[0]
    return MAKERS[kind](state_dict(), pickles={"state": mutate(content, generator)})


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
