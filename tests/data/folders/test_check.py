"""The report on a folder of images: what it lists, how it looks, how the command ends."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
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


def on_terminal(root):
    """What a terminal of 80 columns shows."""
    console = Console(file=io.StringIO(), width=80)
    check.show(check.inspect(root), console)
    return console.file.getvalue()


def test_the_report_of_a_good_folder(tmp_path, capsys):
    root = birds(tmp_path / "my birds")
    found = check.inspect(root)
    assert not found.problems
    assert not found.remarks
    assert found.train.tolist() == [3, 3, 3]
    assert found.test.tolist() == [2, 2, 2]
    assert found.hierarchy == open_folder(root).hierarchy
    assert main(["check", str(root)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{root}: train/ and test/",
        "training: 9 images in 3 classes",
        "test: 6 images in 3 classes",
        f"No problems. Next: dh2l train --set data.name=folder --set 'data.data_dir={root}'",
    ]
    lines = on_terminal(root).splitlines()
    assert all(len(line) <= 80 for line in lines[1:])
    shown = [line.strip("│ ").replace(" ", "") for line in lines if "│" in line]
    assert "1│2│1–2│gulls,owls" in shown
    assert "2│3│–│herring_gull,ivory_gull,snowy_owl" in shown
    assert "training│9│3│3│3│3" in shown
    assert "test│6│3│2│2│2" in shown
    assert "owls/snowy_owl│3│2" in shown


def test_the_report_of_an_uneven_folder(tmp_path, capsys):
    names = ("sun", "birds/gull", "birds/owls/barn")
    root = write(tmp_path, *(f"{name}/{n}.png" for name in names for n in "123"), "birds/7.png")
    assert main(["check", str(root)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[3:6] == [
        "classes at depths: 1: 1, 2: 1, 3: 1",
        "inner nodes: 1 training and 0 test images at 1 nodes, see data.inner",
        "remark: images at inner nodes, which are their labels (how many): birds/7.png (1)",
    ]
    inner = check.as_json(check.inspect(root))["inner"]
    assert inner == [{"path": ("birds",), "train": 1, "test": 0}]
    shown = [line.strip("│ ").replace(" ", "") for line in on_terminal(root).splitlines()]
    assert "2│2│1│1│gull,owls" in shown


def test_the_next_command_names_the_csv_file(tmp_path, capsys):
    root, csv = write(tmp_path / "i", "a/1.png", "a/2.png"), tmp_path / "c.csv"
    csv.write_text("class,parent\na,b\n")
    assert main(["check", str(root), "--csv", str(csv), "--resize", "8"]) == 0
    options = f" --set data.data_dir={root} --set data.csv={csv} --set data.resize=8\n"
    assert capsys.readouterr().out.endswith(options)


def test_the_smallest_classes_come_first(tmp_path):
    for count, name in enumerate("fedcba", 2):
        write(tmp_path, *(f"train/{name}/{n}.png" for n in range(count)), f"test/{name}/9.png")
    table = on_terminal(tmp_path).split("smallest classes")[1]
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


@pytest.mark.parametrize("mode", ["L", "1", "P", "I;16", "CMYK"])
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
    shown = on_terminal(root)
    assert "images that cannot be read: 25" in shown
    assert "snowy_owl/119.jpg" in shown
    assert "snowy_owl/120.jpg" not in shown
    assert "  and 5 more, which --json FILE lists\n" in shown
    main(["check", str(root)])
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("problem: images that cannot be read: ") for line in lines) == 25


def test_images_in_both_splits(tmp_path):
    root = birds(tmp_path)
    copy = root / "test/owls/snowy_owl/copy.jpeg"
    copy.write_bytes((root / FILE).read_bytes())
    assert report(root)[0] == {
        "images both for training and the test": [f"test/owls/snowy_owl/copy.jpeg is {FILE}"]
    }


def test_pictures_are_the_same_by_their_pixels(tmp_path):
    root, test = birds(tmp_path), "test/gulls/ivory_gull/3.png"
    data = (root / FILE).read_bytes()
    # After the end of a PNG anything may stand.
    (root / test).write_bytes(data + b"2")
    assert report(root) == ({"images both for training and the test": [f"{test} is {FILE}"]}, {})


def test_a_picture_in_two_classes(tmp_path):
    root = birds(tmp_path)
    copies = "train/owls/snowy_owl/7.png", "train/owls/snowy_owl/8.webp"
    (root / copies[0]).symlink_to(root / FILE)
    Image.open(root / FILE).save(root / copies[1], lossless=True)
    same = {"the same picture in two classes": [f"{name} is {FILE}" for name in copies]}
    assert report(root) == ({}, same)
    copy = "test/owls/snowy_owl/9.png"
    (root / copy).write_bytes((root / FILE).read_bytes())
    both = {
        "images both for training and the test": [f"{copy} is {FILE}", f"{copy} is {copies[0]}"]
    }
    same["the same picture in two classes"] += [f"{copy} is {FILE}"]
    assert report(root) == (both, same)


def test_a_copy_within_a_split_is_not_a_problem(tmp_path):
    root = birds(tmp_path)
    (root / "train/gulls/ivory_gull/copy.png").write_bytes((root / FILE).read_bytes())
    assert report(root) == ({}, {})


def saved(pixels, suffix=".png", **options):
    file = io.BytesIO()
    pixels.save(file, {".png": "PNG", ".jpg": "JPEG"}[suffix], **options)
    return file.getvalue()


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return picture(suffix=".jpg", exif=exif)


LONG = "images with a side over 10 times the other"
ODD = {
    "on its side": (turned(6), {"images turned upright, as their EXIF data ask": FILE}),
    "upright": (turned(1), {}),
    "transparent": (
        saved(Image.new("RGBA", (40, 40))),
        {"images with transparent pixels, which become those of data.background": FILE},
    ),
    "opaque": (saved(Image.new("RGBA", (40, 40), "red")), {}),
    "long": (picture(size=(40, 401)), {LONG: f"{FILE}: 40 × 401 pixels"}),
    "less long": (picture(size=(400, 40)), {}),
}


@pytest.mark.parametrize("case", ODD)
def test_odd_images_are_remarked_on(tmp_path, case):
    data, expected = ODD[case]
    (birds(tmp_path) / FILE).write_bytes(data)
    assert report(tmp_path) == ({}, {what: [where] for what, where in expected.items()})


def test_images_that_scaling_would_blow_up(tmp_path):
    (birds(tmp_path) / FILE).write_bytes(saved(Image.new("1", (1, 40_000))))
    assert LONG in report(tmp_path)[1]
    assert report(tmp_path)[0] == {}
    where = f"{FILE}: 72 × 2880000 pixels, scaled from 1 × 40000, more than {2**26}"
    assert report(tmp_path, resize=72)[0] == {"images that cannot be read": [where]}
    assert main(["check", str(tmp_path), "--resize", "72"]) == 1


def test_everything_as_json(tmp_path, capsys):
    root = birds(tmp_path / "birds")
    for number in range(30):
        (root / f"train/owls/snowy_owl/{number}.jpg").write_bytes(b"")
    write(root, "train/owls/Snowy Owl/1.png")
    main(["check", str(root), "--json", str(tmp_path / "report.json")])
    assert "problem: " in capsys.readouterr().out
    main(["check", str(root), "--json", "-"])
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads((tmp_path / "report.json").read_text())
    assert found["folder"] == str(root)
    assert found["classes"][2] == {"path": ["owls", "Snowy Owl"], "train": 1, "test": 0}
    (bad,) = found["problems"]
    assert (bad["what"], len(bad["where"])) == ("images that cannot be read", 30)
    assert found["remarks"] == [
        {"what": "classes without test images", "where": ["owls/Snowy Owl"]}
    ]
    assert main(["check", str(root), "--json", str(tmp_path / "no" / "report.json")]) == 4
    assert "report.json cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize(("size", "small"), [((32, 32), None), ((31, 90), 31), ((90, 9), 9)])
def test_small_images_are_remarked_on(tmp_path, size, small):
    (birds(tmp_path) / FILE).write_bytes(picture(size=size))
    expected = {"images with a side below 32 pixels": [f"{FILE}: {small} pixels"]} if small else {}
    assert report(tmp_path) == ({}, expected)


def test_all_problems_are_listed_together(tmp_path, capsys):
    root = write(
        birds(tmp_path),
        "train/stray.png",
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
        "folders without images",
        "classes without training images",
        "images that cannot be read",
        "images both for training and the test",
    }
    assert main(["check", str(root)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "7 kinds of problems: mend them, then check again."
    assert [line for line in lines if line.startswith("problem: ")] == [
        f"problem: {what}: {where}" for what, wheres in found.items() for where in wheres
    ]


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
    [
        (["no/such/folder"], "found no folder"),
        ([".", "--csv", "no.csv"], "found no file"),
        ([".", "--resize", "-1"], "--resize must be at least 0, found -1"),
    ],
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
