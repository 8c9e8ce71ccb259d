"""What the tests of damaged and of malicious `.pth` files share: a state dict, and the refusal."""

import numpy as np
import pytest

from dh2l_jax.models.weights.pth import PthError, read_state_dict
from support.pth_files import Storage, Tensor

NAME = "hostile.pth"


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
    path = folder / NAME
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
    assert message.startswith(f"{folder / NAME}: ")
    assert message.isprintable()
    assert len(message) < len(str(folder)) + 400
    assert [path.name for path in folder.iterdir()] == [NAME]
