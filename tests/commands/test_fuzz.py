"""Readers of users' files, fed with anything: only the documented errors, of one line, come out.

`DH2L_FUZZ=20000 pytest tests/commands/test_fuzz.py` tries so many inputs of each kind, always new.
"""

import contextlib
import gzip
import hashlib
import json
import logging
import math
import os
import shutil

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dh2l_jax.data.prepared.originals import idx
from dh2l_jax.data.store import cache
from dh2l_jax.data.store.images import sizes
from dh2l_jax.data.store.source import Source
from dh2l_jax.experiments import runs
from dh2l_jax.hierarchy import Hierarchy
from dh2l_jax.training.config import Config, sections
from dh2l_jax.training.run import folder as run_folder
from dh2l_jax.training.run import manifest
from dh2l_jax.training.run.records import keep_records, read_records

fuzz = settings(
    max_examples=int(os.environ.get("DH2L_FUZZ", "60")), derandomize="DH2L_FUZZ" not in os.environ
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One for all examples of a test, which overwrite their files."""
    return tmp_path_factory.mktemp("ein Ordner ü")


def outcome(call, *arguments, errors=(ValueError, OSError)):
    """What a reader returns, or the documented error that it raises, which must be one line."""
    try:
        return call(*arguments)
    except errors as error:
        raised = error
    assert len(str(raised).splitlines()) == 1, repr(raised)
    assert len(str(raised)) < 1500
    return raised


@st.composite
def damaged(draw, valid):
    """A valid file with bits flipped, and parts cut out, written twice, moved or overwritten."""
    data = bytearray(draw(st.sampled_from(valid)))
    for _ in range(draw(st.integers(1, 4))):
        start, end = sorted(draw(st.tuples(*[st.integers(0, len(data))] * 2)))
        match draw(st.sampled_from(["flip", "cut", "end", "twice", "insert", "splice"])):
            case "flip" if start < len(data):
                data[start] ^= 1 << draw(st.integers(0, 7))
            case "cut":
                del data[start:end]
            case "end":
                del data[start:]
            case "twice":
                data[end:end] = data[start:end]
            case "insert":
                data[start:start] = draw(st.binary(max_size=20))
            case "splice":
                data[start:] = draw(st.sampled_from(valid))[start:]
    return bytes(data)


def anything(*valid, alphabet=None):
    """Bytes of all kinds: arbitrary, text, text made of what the format is made of, damaged."""
    text = st.text(max_size=200)
    if alphabet:
        text |= st.lists(st.sampled_from(alphabet), max_size=40).map("".join)
    return st.binary(max_size=300) | text.map(str.encode) | damaged(list(valid))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)


# Trees of classes.

TREE = b"class,parent,grandparent\ncat,pet,animal\ncow,farm,animal\nrose,flower,plant\n"
QUOTED = '\ufeffClass,parent\r\n"a, ""b""",x\r\n\r\n" ü\n2",y\r\n'.encode()


@fuzz
@given(anything(TREE, QUOTED, alphabet=["class", ",", "\n", '"', "a", "b", " ", "\r", "\0"]))
@example(b'class,"a\nb",c\nx,y,z\n')
@example(b'"nonsense\nof two lines",b\nx,y\n')
@example(b"\xff\xfe")
def test_csv_trees(folder, data):
    path = folder / "tree.csv"
    path.write_bytes(data)
    tree = outcome(Hierarchy.from_csv, path)
    if isinstance(tree, Exception):
        assert str(tree).startswith(str(path))
    else:
        names = tree.names(tree.num_levels)
        assert len(set(names)) == tree.num_classes <= data.count(b"\n") + data.count(b"\r") + 1
        assert all(tree.group_sizes(level).min() > 0 for level in range(1, tree.num_levels + 1))


def test_a_csv_tree_that_is_very_deep_is_refused_at_once(folder):
    path = folder / "deep.csv"
    path.write_text(",".join(["class"] * 200_000) + "\n" + ",".join(["a"] * 200_000) + "\n")
    assert "expected at most" in str(outcome(Hierarchy.from_csv, path))


# IDX.

LABELS = bytes((0, 0, 8, 1, 0, 0, 0, 5, 1, 2, 3, 9, 0))
IMAGES = bytes((0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 28, 0, 0, 0, 28)) + bytes(range(28)) * 56


@fuzz
@given(anything(LABELS, IMAGES, gzip.compress(LABELS), gzip.compress(IMAGES)), st.integers(1, 4))
@example(bytes((0, 0, 8, 3)) + b"\xff" * 12 + bytes(99), 3)
@example(bytes((0, 0, 8, 4)) + b"\x00\x00\xff\xff" * 4, 4)
def test_idx(folder, data, ndim):
    path = folder / "idx"
    path.write_bytes(data)
    array = outcome(lambda: idx.read_array(path, ndim=ndim))
    if isinstance(array, np.ndarray):
        assert array.dtype == np.uint8
        assert array.ndim == ndim
        assert 0 < array.size < 2**26
    for reader in (idx.read_images, idx.read_labels):
        outcome(reader, path)


# Configs.

SAVED = json.dumps(sections.to_dict(Config())).encode()
PARTS = [
    "{",
    "}",
    "[",
    "]",
    '"',
    ":",
    ",",
    "1",
    "-",
    "e9",
    "null",
    "NaN",
    " ",
    '"data":',
    '"seed":',
]


@fuzz
@given(anything(SAVED, b'{"seed": 3, "data": {"pad": 0}}', alphabet=PARTS))
@example(b'{"seed": ' + b"9" * 5000 + b"}")
@example(b"[" * 100_000)
@example(b'{"data": ' * 100_000)
@example(b'{"seed": ' + b"[" * 500 + b"]" * 500 + b"}")
def test_config_json(folder, data):
    (folder / run_folder.CONFIG).write_bytes(data)
    found = outcome(run_folder.read_config, folder)
    if isinstance(found, Config):
        assert sections.from_dict(sections.to_dict(found)) == found


KEYS = [*sections.to_dict(Config()), *sections.to_dict(Config())["data"], "milestones"]


@fuzz
@given(
    st.dictionaries(
        st.sampled_from(KEYS) | st.text(max_size=5),
        json_values | st.dictionaries(st.sampled_from(KEYS), json_values, max_size=3),
        max_size=4,
    )
    | json_values
)
@example({"optim": {"lr": 10**400}})
@example({"seed": 10**5000})
@example({None: 1})
@example({"seed" * 10**6: 1})
@example({"data": {3: 1}})
def test_configs_of_values(values):
    found = outcome(sections.from_dict, values, errors=ValueError)
    if isinstance(found, Config):
        assert sections.from_dict(sections.to_dict(found)) == found


@fuzz
@given(
    st.text(max_size=50)
    | st.tuples(
        st.sampled_from(["seed", "optim.lr", "optim.milestones", "data.flip", "data.name", "data"]),
        st.text(max_size=20) | st.floats().map(str) | st.integers().map(str) | json_values.map(str),
    ).map("=".join)
)
@example("seed=" + "9" * 5000)
@example("optim.lr=1e-400")
@example("data.name=\ud800\n\u2028")
def test_set_options(text):
    found = outcome(sections.override, Config(), text, errors=ValueError)
    if isinstance(found, Config):
        assert sections.from_dict(json.loads(json.dumps(sections.to_dict(found)))) == found


# Manifests of checkpoints.

FILES = {"a": b"weights", "b/c": b"", "b/ü 1": b"x" * 70}
SUMS = "".join(f"{hashlib.sha256(d).hexdigest()}  {n}\n" for n, d in FILES.items()).encode()
NAMES = ["a", "b/c", "b/ü 1", "../x", "/etc/passwd", "\n", "  ", " ", "0" * 64, "e3b0c442", "\\"]


@pytest.fixture(scope="module")
def step(tmp_path_factory):
    """A folder of a checkpoint, and beside it a file that no manifest may reach."""
    folder = tmp_path_factory.mktemp("checkpoints") / "7"
    for name, data in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    (folder.parent / "x").write_bytes(b"")
    return folder


@fuzz
@given(anything(SUMS, alphabet=NAMES))
@example(SUMS + hashlib.sha256(b"").hexdigest().encode() + b"  ../x\n")
@example(SUMS.replace(b"b/c", b"b/../b/c"))
@example(SUMS + SUMS)
@example(SUMS.replace(b"\n", b"\r\n"))
def test_manifests(step, data):
    (step / manifest.NAME).write_bytes(data)
    found = manifest.problem(step)
    if sorted(data.split(b"\n")) == sorted(SUMS.split(b"\n")) and data.endswith(b"\n"):
        assert found is None
    else:
        assert len(found.splitlines()) == 1


@fuzz
@given(st.sampled_from(list(FILES)), st.data())
def test_files_of_a_checkpoint(step, name, data):
    (step / manifest.NAME).write_bytes(SUMS)
    changed = data.draw(anything(FILES[name]))
    (step / name).write_bytes(changed)
    try:
        expected = None if changed == FILES[name] else f"{name}: SHA-256 differs"
        assert manifest.problem(step) == expected
    finally:
        (step / name).write_bytes(FILES[name])


# Logs and results of runs.

LINES = b'{"step": 10, "epoch": 1, "J": 2.5}\n{"step": 20, "epoch": 2, "J": NaN, "n": "\xc3\xbc"}\n'


@fuzz
@given(
    anything(LINES, alphabet=['{"step":', "3", "}", "\n", "[", "]", "{", '"', "\r", " ", "\u2028"])
)
@example(b"[" * 100_000 + b"\n")
@example(b'{"step": ' + b"9" * 5000 + b"}\n")
@example(b'{"step": true}\n')
def test_metrics(folder, data):
    path = folder / run_folder.METRICS
    path.write_bytes(data)
    records = outcome(read_records, path)
    if isinstance(records, Exception):
        assert str(records).startswith(f"{path}: line ")
    else:
        assert len(records) == data.count(b"\n")
        assert all(isinstance(record, dict) for record in records)
    kept = outcome(keep_records, path, 10)
    if kept is None:
        assert all(record["step"] <= 10 for record in read_records(path))
    else:
        assert path.read_bytes() == data


scores = st.fixed_dictionaries(
    {},
    optional={
        "accuracy": json_values | st.lists(st.floats() | st.integers(), max_size=3),
        "split": st.just("validation") | json_values,
        "best": json_values,
        "last": json_values,
        "images": json_values,
    },
)


@fuzz
@given(json_values | scores)
def test_results_of_runs(values):
    for check in (runs.check_result, runs.check_test):
        if not isinstance(outcome(check, values, errors=ValueError), Exception):
            assert all(math.isfinite(value) for value in values["accuracy"])


# The cache of decoded images.


class Examples:
    """Three grey images of 2 × 3 pixels, as a source that has been decoded."""

    def __len__(self):
        return 3

    def __getitem__(self, position):
        return b"never decoded", position

    def describe(self, position):
        """What messages call it."""
        return f"image {position}"


PIXELS = bytes(range(18))
INDEX = np.array([[0, 2, 3, 0, 5], [6, 2, 3, 1, 5], [12, 2, 3, 2, 5]], "<i8")
SOURCE = Source("grey", "1", Hierarchy.flat(3), Examples(), Examples(), channels=1)


def write_cache(path, parts, digests=None):
    """A cache whose two splits hold the same; the manifest has the checksums of `digests`."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    entries = {}
    for split in ("train", "test"):
        for part, data in parts.items():
            (path / f"{split}.{part}").write_bytes(data)
            digest = hashlib.sha256((digests or parts)[part]).hexdigest()
            entries[f"{split}.{part}"] = {"bytes": len(data), "sha256": digest}
    splits = {split: {"left_out": [], "first_new": ""} for split in ("train", "test")}
    manifest = {"files": entries, "splits": splits}
    manifest["sha256"] = cache._own_digest(manifest)
    (path / cache.MANIFEST).write_text(json.dumps(manifest))


GOOD = {"pixels": PIXELS, "index": INDEX.tobytes()}


@fuzz
@given(st.sampled_from(["pixels", "index"]), st.data())
def test_damage_of_a_cache_is_noticed(folder, part, data):
    changed = {**GOOD, part: data.draw(anything(GOOD[part]))}
    write_cache(folder / "cache", changed, GOOD)
    found = outcome(cache._read, folder / "cache", SOURCE)
    assert isinstance(found, Exception) == (changed != GOOD)


@fuzz
@given(anything(json.dumps({"files": {"train.pixels": {"sha256": "0"}}}).encode(), alphabet=PARTS))
@example(b"[" * 100_000)
@example(b'{"files": {"train.pixels": []}}')
@example(b'{"files": {"train.pixels": {"sha256": 3}}}')
def test_manifests_of_a_cache(folder, data):
    write_cache(folder / "cache", GOOD)
    (folder / "cache" / cache.MANIFEST).write_bytes(data)
    assert isinstance(outcome(cache._read, folder / "cache", SOURCE), Exception)


numbers = st.sampled_from([0, 1, 2, 3, 6, 12, 17, 18, -1, -(2**63), 2**63 - 1, 2**32, 2**31, 2**40])


@fuzz
@given(st.lists(st.tuples(*[numbers] * 5), max_size=4), st.sampled_from([PIXELS, b"", b"12"]))
@example([(2**63 - 1, 2, 3, 0, 0), (0, 1, 1, 0, 0)], PIXELS)
@example([(0, 1, 3, 0, 0), (6, 1, 3, 1, 0), (12, 1, 3, 2, 0)], PIXELS)
@example([(0, 2**32 + 2, 3, 0, 0), (6, 2, 2, 1, 0)], PIXELS)
def test_a_cache_with_checksums_that_fit_but_nonsense_in_it(folder, rows, pixels):
    index = np.array(rows, "<i8").reshape(-1, 5)
    write_cache(folder / "cache", {"pixels": pixels, "index": index.tobytes()})
    found = outcome(cache._read, folder / "cache", SOURCE)
    if isinstance(found, Exception):
        return
    images, labels, *_ = found["train"]
    assert len(images) == len(labels) == len(rows)
    for image, (start, height, width, *_) in zip(images, rows, strict=True):
        assert image.shape == (height, width, 1)
        expected = pixels[start : start + height * width]
        assert image.tobytes() == expected
    assert sizes(images).min() >= 1


def test_a_cache_that_is_damaged_is_made_anew(folder, caplog):
    """The user sees one line, and the images as they were."""
    image = pytest.importorskip("PIL.Image").fromarray(
        np.frombuffer(PIXELS[:6], np.uint8).reshape(2, 3)
    )
    image.save(folder / "image.png")
    encoded = (folder / "image.png").read_bytes()
    examples = type("Encoded", (Examples,), {"__getitem__": lambda self, i: (encoded, i)})()
    source = Source("grey", "1", Hierarchy.flat(3), examples, examples, channels=1)
    cache.open_cached(source, folder / "caches")
    (path,) = (folder / "caches").iterdir()
    for data in (b"[" * 100_000, b"{}", b""):
        (path / cache.MANIFEST).write_bytes(data)
        with caplog.at_level(logging.WARNING), contextlib.suppress(StopIteration):
            images, *_ = cache.open_cached(source, folder / "caches")["train"]
        assert images[2].tobytes() == PIXELS[:6]
        assert caplog.messages[-1].endswith("its images are decoded again")
