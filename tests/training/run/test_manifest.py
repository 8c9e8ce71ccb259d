"""Manifests: every change of a folder is told, and whatever a manifest holds is only read."""

import contextlib
import errno
import hashlib
import itertools
import os
import random
import shutil
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dh2l_jax.training.run import manifest

FILES = {
    "a": b"abc",
    "empty": b"",
    "deep/below/b": bytes(range(256)) * 40,
    "deep/ä b'c": b"\n",
}


@pytest.fixture
def folder(tmp_path):
    for name, data in FILES.items():
        (tmp_path / "step" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "step" / name).write_bytes(data)
    manifest.write(tmp_path / "step")
    return tmp_path / "step"


def problem(folder):
    """The problem, which is one line that a terminal can show."""
    found = manifest.problem(folder)
    assert found is None or (found.isprintable() and len(found) < 400)
    return found


def test_the_format_is_that_of_sha256sum(folder):
    lines = (folder / manifest.NAME).read_text(encoding="utf-8").splitlines()
    assert lines == [f"{hashlib.sha256(FILES[n]).hexdigest()}  {n}" for n in sorted(FILES)]
    assert problem(folder) is None


@pytest.mark.skipif(not shutil.which("sha256sum"), reason="sha256sum is not installed")
def test_sha256sum_checks_it(folder):
    command = ["sha256sum", "--check", "--strict", manifest.NAME]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert result.returncode == 0
    assert result.stdout.count(": OK") == len(FILES)
    (folder / "a").write_bytes(b"abd")
    assert subprocess.run(command, cwd=folder, capture_output=True).returncode == 1


def test_a_manifest_is_written_anew(folder):
    (folder / "a").write_bytes(b"other")
    (folder / ".left.part").write_bytes(b"of a process that was killed")
    assert problem(folder) == ".left.part is not listed"
    manifest.write(folder)
    assert problem(folder) is None


def test_flipped_bits(folder):
    """One in every byte of the manifest; of the other files, all bits of some bytes."""
    for path in (path for path in folder.rglob("*") if path.stat().st_size and path.is_file()):
        data, own = path.read_bytes(), path.name == manifest.NAME
        some = {0, len(data) - 1, *random.Random(0).sample(range(len(data)), min(len(data), 8))}
        every = {(byte, byte % 8) for byte in range(len(data))}
        for byte, bit in every if own else itertools.product(some, range(8)):
            flipped = bytearray(data)
            flipped[byte] ^= 1 << bit
            path.write_bytes(flipped)
            found = problem(folder)
            assert found
            assert own or found == f"{path.relative_to(folder).as_posix()}: SHA-256 differs"
        path.write_bytes(data)
    assert problem(folder) is None


def put(name, what):
    """A change of a folder: bytes, a thing or a link's target stands there, or nothing."""

    def change(folder):
        path, copy = folder / name, folder.parent / "copy"
        if path.is_file():
            path.rename(copy)
        match what:
            case bytes():
                path.write_bytes(what)
            case "pipe":  # to open it would hang
                os.mkfifo(path)
            case "folder":
                path.mkdir()
            case str():
                path.symlink_to(what)

    return change


def swap(folder):
    (folder / "a").rename(folder / "c")
    (folder / "deep" / "below" / "b").rename(folder / "a")
    (folder / "c").rename(folder / "deep" / "below" / "b")


def move_out(folder):
    (folder / "deep").rename(folder.parent / "outside")
    (folder / "deep").symlink_to(folder.parent / "outside")


OTHERS = {
    "missing": (None, "folder"),
    "no plain file": ("pipe", "../copy", "../../../copy", "none"),
}
CHANGES = [
    *(
        (put(name, other), f"{name}: SHA-256 differs")
        for name, data in FILES.items()
        for other in (data[: len(data) // 2], data + b"\0", bytes(len(data) or 1), b"")
        if other != data
    ),
    *((put(n, what), f"{n} is {told}") for told in OTHERS for n in FILES for what in OTHERS[told]),
    (swap, "a: SHA-256 differs"),
    (put("deep/extra", b""), "deep/extra is not listed"),
    (put("line\nbreak", b""), r"'line\nbreak' is not listed"),
    (put("link", ".."), "link is not listed"),
    (move_out, "deep/below/b is missing"),
    (put(manifest.NAME, None), "SHA256SUMS is missing"),
    (put(manifest.NAME, "folder"), "SHA256SUMS is no plain file"),
    (put(manifest.NAME, "pipe"), "SHA256SUMS is no plain file"),
    (lambda f: os.truncate(f / manifest.NAME, 2**34), "SHA256SUMS is larger than 16,777,216 bytes"),
]


@pytest.mark.parametrize(("change", "expected"), CHANGES)
def test_every_change_is_told(folder, change, expected):
    change(folder)
    assert problem(folder) == expected


def test_folders_that_are_none(folder):
    assert problem(folder / "nowhere") == "SHA256SUMS is missing"
    assert problem(folder / "a") == "SHA256SUMS: Not a directory"


@pytest.mark.parametrize("name", ["../outside", "deep/../a", "{}/outside", "./a"])
def test_a_manifest_that_points_out_opens_nothing(folder, name):
    outside = folder.parent / "outside"
    os.mkfifo(outside)  # to open it would hang
    name = name.format(folder.parent)
    with (folder / manifest.NAME).open("a") as file:
        file.write(f"{'0' * 64}  {name}\n")
    assert problem(folder) == f"{name} is missing"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda lines: [], "line 1 is damaged"),
        (lambda lines: [b""], "line 1 is damaged"),
        (lambda lines: [*lines[:-1], lines[-1][:-1]], "line 4 is damaged"),
        (lambda lines: [*lines, lines[0]], "line 5 is damaged"),
        (lambda lines: [*lines, b"\n"], "line 5 is damaged"),
        (lambda lines: [lines[0].replace(b"  ", b" *"), *lines[1:]], "line 1 is damaged"),
        (lambda lines: [lines[0], lines[1].upper(), *lines[2:]], "line 2 is damaged"),
        (lambda lines: [line.replace(b"\n", b"\r\n") for line in lines], "line 1 is damaged"),
        (lambda lines: [lines[0].replace(b"  a", b"  \xff"), *lines[1:]], "line 1 is damaged"),
        (lambda lines: [lines[0].replace(b"  a", b"  a\x1b[2J"), *lines[1:]], "line 1 is damaged"),
        (lambda lines: [random.Random(0).randbytes(4096)], "line 1 is damaged"),
    ],
)
def test_damaged_manifests(folder, change, expected):
    path = folder / manifest.NAME
    path.write_bytes(b"".join(change(path.read_bytes().splitlines(keepends=True))))
    assert problem(folder) == f"SHA256SUMS: {expected}"


def test_a_disk_that_cannot_be_read_is_damage(folder, monkeypatch):
    def digest(file, name):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(hashlib, "file_digest", digest)
    assert problem(folder) == "a: Input/output error"


@given(data=st.binary(max_size=300))
def test_whatever_a_manifest_holds(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "a").write_bytes(b"abc")
    (folder / manifest.NAME).write_bytes(data)
    assert problem(folder)


@given(
    start=st.integers(0, 400),
    length=st.integers(0, 80),
    insert=st.binary(max_size=80) | st.text("0123456789abcdef /.\n\\*", max_size=80),
)
def test_whatever_is_changed_in_a_manifest(tmp_path_factory, start, length, insert):
    folder = tmp_path_factory.mktemp("fuzz")
    for name in "abcd":
        (folder / name).write_text(name)
    manifest.write(folder)
    data = (folder / manifest.NAME).read_bytes()
    insert = insert.encode() if isinstance(insert, str) else insert
    changed = data[:start] + insert + data[start + length :]
    (folder / manifest.NAME).write_bytes(changed)
    # The order of lines says nothing; any other change does.
    same = sorted(changed.split(b"\n")) == sorted(data.split(b"\n")) and changed.endswith(b"\n")
    assert (problem(folder) is None) == same


@pytest.mark.parametrize(
    "name", ["line\nbreak", "back\\slash", b"\xff".decode(errors="surrogateescape")]
)
def test_names_that_no_line_can_hold(folder, name):
    (folder / name).touch()
    with pytest.raises(ValueError, match="cannot be listed in SHA256SUMS") as caught:
        manifest.write(folder)
    assert str(caught.value).isprintable()


def test_only_plain_files_are_listed(folder):
    os.mkfifo(folder / "pipe")
    with pytest.raises(ValueError, match="'pipe'"):
        manifest.write(folder)


def test_all_is_on_disk_before_the_manifest_or_the_old_one_stays(folder, monkeypatch):
    before, calls, folders = (folder / manifest.NAME).read_bytes(), [], 3
    expected = ["fsync"] * (len(FILES) + 1 + folders + 1) + ["replace", "fsync"]
    (folder / "new").write_bytes(b"new")

    def failing(name, turn):
        real = getattr(os, name)

        def call(*arguments, **options):
            calls.append(name)
            if len(calls) == turn:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(*arguments, **options)

        return call

    for turn in range(1, len(expected) + 2):
        calls.clear()
        with monkeypatch.context() as patch, contextlib.suppress(OSError):
            for name in ("fsync", "replace"):
                patch.setattr(os, name, failing(name, turn))
            manifest.write(folder)
        assert calls == expected[:turn]
        renamed = turn > expected.index("replace") + 1
        assert ((folder / manifest.NAME).read_bytes() != before) == renamed
    assert problem(folder) is None
