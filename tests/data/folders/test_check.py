"""The report on a folder of images: what it lists, how it looks, how the command ends."""

import subprocess
import sys
from pathlib import Path

import pytest
from support.folders import FILE, Image, birds, picture, write

from dh2l_jax.commands.data import main
from dh2l_jax.data.folders import check
from dh2l_jax.data.folders.scan import open_folder


def report(root, **options):
    """{kind: where} of problems and of remarks."""
    found = check.inspect(root, **options)
    return tuple(
        {finding.what: list(finding.where) for finding in findings}
        for findings in (found.problems, found.remarks)
    )


def test_the_report_of_a_good_folder(tmp_path, capsys):
    root = birds(tmp_path / "my birds")
    found = check.inspect(root)
    assert not found.problems
    assert not found.remarks
    assert found.train.tolist() == [3, 3, 3]
    assert found.test.tolist() == [2, 2, 2]
    assert found.hierarchy == open_folder(root).hierarchy
    assert main(["check", str(root)]) == 0
    *lines, blank, command = capsys.readouterr().out.splitlines()
    assert blank == ""
    assert command == (
        f"No problems. Next: dh2l train --set data.name=folder --set 'data.data_dir={root}'"
    )
    assert all(len(line) <= 80 for line in lines[1:])
    shown = [line.strip("│ ").replace(" ", "") for line in lines if "│" in line]
    assert "1│2│1–2│gulls,owls" in shown
    assert "2│3│–│herring_gull,ivory_gull,snowy_owl" in shown
    assert "training│9│3│3│3│3" in shown
    assert "test│6│3│2│2│2" in shown
    assert "owls/snowy_owl│3│2" in shown


def test_the_next_command_names_the_csv_file(tmp_path, capsys):
    root, csv = write(tmp_path / "i", "a/1.png", "a/2.png"), tmp_path / "c.csv"
    csv.write_text("class,parent\na,b\n")
    assert main(["check", str(root), "--csv", str(csv)]) == 0
    assert capsys.readouterr().out.endswith(f" --set data.data_dir={root} --set data.csv={csv}\n")


def test_the_smallest_classes_come_first(tmp_path, capsys):
    for count, name in enumerate("fedcba", 2):
        write(tmp_path, *(f"train/{name}/{n}.png" for n in range(count)), f"test/{name}/9.png")
    main(["check", str(tmp_path)])
    table = capsys.readouterr().out.split("smallest classes")[1]
    rows = [line.strip("│ ")[0] for line in table.splitlines() if line.startswith("│")]
    assert rows == ["f", "e", "d", "c", "b"]


BROKEN = {
    "text": b"this is no image",
    "zero bytes": b"",
    "truncated JPEG": picture(1, suffix=".jpg")[:900],
    "truncated PNG": picture(1)[:900],
    "half a header": picture(1)[:10],
    "a changed byte": picture(1)[:1000] + b"\0\0\0\0" + picture(1)[1004:],
    "HTML": b"<!DOCTYPE html><html><body>404</body></html>",
}


@pytest.mark.parametrize("case", BROKEN)
def test_files_that_cannot_be_decoded(tmp_path, case):
    (birds(tmp_path) / FILE).write_bytes(BROKEN[case])
    ((what, (where,)),) = report(tmp_path)[0].items()
    assert what == "images that cannot be read"
    assert where.startswith(f"{FILE}: ")
    assert len(where) > len(FILE) + 5
    assert main(["check", str(tmp_path)]) == 1


def test_files_that_vanish_or_are_forbidden(tmp_path, monkeypatch):
    real = Path.read_bytes

    def refuse(path):
        if path.name == "0.png" and path.parent.name == "ivory_gull":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    birds(tmp_path)
    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert report(tmp_path)[0] == {"images that cannot be read": [f"{FILE}: Permission denied"]}


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "LA", "I;16", "CMYK"])
def test_every_kind_of_image_can_be_read(tmp_path, mode):
    suffix = ".jpg" if mode == "CMYK" else ".png"
    image = Image.new("I;16", (40, 40), 999) if mode == "I;16" else Image.new("RGB", (40, 40))
    image.convert(mode).save((birds(tmp_path) / FILE).with_suffix(suffix))
    assert report(tmp_path) == ({}, {})


def test_the_first_twenty_are_named_the_others_counted(tmp_path, capsys):
    root = birds(tmp_path)
    for number in range(100, 125):
        (root / f"train/owls/snowy_owl/{number}.jpg").write_bytes(b"")
    assert len(report(root)[0]["images that cannot be read"]) == 25
    main(["check", str(root)])
    shown = capsys.readouterr().out
    assert "images that cannot be read: 25" in shown
    assert "snowy_owl/119.jpg" in shown
    assert "snowy_owl/120.jpg" not in shown
    assert "  and 5 more\n" in shown


def test_images_in_both_splits(tmp_path):
    root = birds(tmp_path)
    copy = root / "test/owls/snowy_owl/copy.jpeg"
    copy.write_bytes((root / FILE).read_bytes())
    assert report(root)[0] == {
        "images both for training and the test": [f"test/owls/snowy_owl/copy.jpeg is {FILE}"]
    }


def test_images_of_one_size_in_bytes_are_not_the_same(tmp_path):
    root = birds(tmp_path)
    data = (root / FILE).read_bytes()
    # After the end of a PNG anything may stand.
    (root / FILE).write_bytes(data + b"1")
    (root / "test/gulls/ivory_gull/3.png").write_bytes(data + b"2")
    assert report(root) == ({}, {})


def test_a_copy_within_a_split_is_not_a_problem(tmp_path):
    root = birds(tmp_path)
    (root / "train/gulls/ivory_gull/copy.png").write_bytes((root / FILE).read_bytes())
    assert report(root) == ({}, {})


@pytest.mark.parametrize(("size", "small"), [((32, 32), None), ((31, 90), 31), ((90, 1), 1)])
def test_small_images_are_remarked_on(tmp_path, size, small):
    (birds(tmp_path) / FILE).write_bytes(picture(size=size))
    expected = {"images with a side below 32 pixels": [f"{FILE}: {small} pixels"]} if small else {}
    assert report(tmp_path) == ({}, expected)


def test_all_problems_are_listed_together(tmp_path, capsys):
    root = write(
        birds(tmp_path),
        "train/wrens/ivory_gull/1.png",
        "train/wren/1.png",
        "train/gulls/stray.png",
        "test/owls/barn_owl/1.png",
    )
    (root / FILE).write_bytes(b"")
    (root / "train/owls/empty").mkdir()
    (root / "train/owls/snowy_owl/gone.jpg").symlink_to("nowhere")
    (root / "train/again").symlink_to("owls")
    (root / "test/owls/snowy_owl/copy.png").write_bytes(
        (root / "train/owls/snowy_owl/1.png").read_bytes()
    )
    found = report(root)[0]
    assert set(found) == {
        "images that are links to nothing",
        "folders that a link leads to again",
        "images beside folders, in no class (how many)",
        "classes at another depth",
        "folders without images",
        "class names that stand under several parents",
        "classes without training images",
        "images that cannot be read",
        "images both for training and the test",
    }
    assert main(["check", str(root)]) == 1
    shown = capsys.readouterr().out
    assert all(f"{what}: {len(where)}" in shown for what, where in found.items())
    assert shown.endswith("\n9 kinds of problems: mend them, then check again.\n")
    assert check.inspect(root).hierarchy is None


def test_an_empty_folder_is_reported(tmp_path, capsys):
    assert main(["check", str(tmp_path)]) == 1
    assert "no training images" in capsys.readouterr().out


def test_progress_counts_all_images(tmp_path):
    calls = []
    check.inspect(birds(tmp_path), on_image=lambda done, total: calls.append((done, total)))
    assert calls == [(done, 15) for done in range(1, 16)]


@pytest.mark.parametrize("terminal", [True, False])
def test_a_bar_on_a_terminal_only(tmp_path, monkeypatch, capsys, terminal):
    monkeypatch.setenv("TTY_COMPATIBLE", "1" if terminal else "0")
    assert main(["check", str(birds(tmp_path))]) == 0
    assert ("decoding" in capsys.readouterr().err) == terminal


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["no/such/folder"], "found no folder"), ([".", "--csv", "no.csv"], "found no file")],
)
def test_bad_arguments_end_with_one_line(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(birds(tmp_path))
    assert main(["check", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("dh2l data check: error: ")
    assert message in captured.err


def test_no_folder_is_a_usage_error(capsys):
    assert main(["check"]) == 2
    assert "FOLDER" in capsys.readouterr().err


def test_without_pillow_one_line_says_what_to_install(tmp_path, monkeypatch, capsys):
    root = birds(tmp_path)
    monkeypatch.setitem(sys.modules, "PIL", None)
    monkeypatch.delitem(sys.modules, "dh2l_jax.data.store.decode", raising=False)
    assert main(["check", str(root)]) == 2
    captured = capsys.readouterr()
    assert "pip install 'dh2l_jax[data]'" in captured.err
    assert captured.err.count("\n") == 1


def test_the_command_imports_no_tensorflow_datasets(tmp_path):
    script = (
        "import sys; from dh2l_jax.commands.data import main; code = main(['check', sys.argv[1]]);"
        "sys.exit(code or 10 * ('tensorflow_datasets' in sys.modules))"
    )
    command = [sys.executable, "-c", script, str(birds(tmp_path))]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "No problems." in result.stdout
