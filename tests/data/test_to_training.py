"""From original files to a result: `prepare`, then `train.py`, as a user types them."""

import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image
from support import archives

import train
from dh2l_jax.commands.data import main as data_main
from dh2l_jax.data.store.images import digests
from dh2l_jax.hierarchy import Hierarchy
from dh2l_jax.training import loop
from dh2l_jax.training.config import from_dict, override

OPENCLIPART = os.environ.get("DH2L_OPENCLIPART_DIR")  # …/openclipart/png of openclipart-png

SMALL = ["model.name=resnet8", "epochs=1", "batch_size=4", "eval_batch_size=4", "data.crop=24"]
SMALL += ["reg.lambda_e=0"]  # E on the convolutions takes long to compile, whatever the data


def run_training(workdir, *options):
    """The result of a run of `train.py`."""
    sets = [word for option in (*SMALL, *options) for word in ("--set", option)]
    assert train.main([*sets, "--workdir", str(workdir)]) == 0
    return json.loads((workdir / "result.json").read_text("utf-8"))


@pytest.mark.parametrize(
    ("name", "levels", "options"),
    [
        pytest.param(
            "cifar100", 5, ["data.pad=2", "data.tree=cifar100_five_level"], marks=pytest.mark.slow
        ),
        ("cub200", 2, ["data.resize=26", "data.pad=0", "data.device_gb=0"]),
        pytest.param(
            "cars196",
            2,
            ["data.resize=26", "data.pad=0", "model.head=plain"],
            marks=pytest.mark.slow,
        ),
    ],
)
def test_prepared_data_sets(tmp_path, monkeypatch, name, levels, options):
    examples = archives.examples(name)
    manual = archives.write(archives.originals(name), tmp_path / "manual")
    archives.use_tiny(monkeypatch, name, manual)
    data, cache = str(tmp_path / "data"), str(tmp_path / "cache")
    assert data_main(["prepare", name, "--data-dir", data, "--manual-dir", str(manual)]) == 0

    options = [f"data.name={name}", f"data.data_dir={data}", f"data.cache_dir={cache}", *options]
    result = run_training(tmp_path / "run", *options)
    assert result["images"] == len(examples["test"])
    assert result["steps"] == len(examples["train"]) // 4
    assert len(result["accuracy"]) == levels
    assert np.isfinite(list(result["last_epoch"].values())).all()

    # What was decoded is kept: the images are there when the originals are gone.
    shutil.rmtree(manual)
    kept = {file: file.stat().st_mtime_ns for file in (tmp_path / "cache").rglob("*")}
    saved = json.loads((tmp_path / "run/config.json").read_text())
    dataset = loop.build(from_dict(saved)).dataset
    assert len(dataset.train_labels) == len(examples["train"])
    assert kept == {file: file.stat().st_mtime_ns for file in (tmp_path / "cache").rglob("*")}


def test_own_images_learn_what_is_in_them(tmp_path, capsys):
    """Flat folders and an uneven CSV tree: colours that a network must tell apart after a while.

    Some images are labelled at an inner node, in training and validation.
    """
    root, generator = tmp_path / "my photos", np.random.default_rng(0)
    colours = {
        "rose": (200, 20, 60),
        "poppy": (220, 60, 20),
        "sea": (20, 60, 200),
        "sky": (90, 160, 230),
    }
    for name, colour in colours.items():
        folder = root / name
        folder.mkdir(parents=True)
        for i in range(30):
            noise = generator.normal(0, 12, (24 + i % 5, 30, 3))
            Image.fromarray((colour + noise).clip(0, 255).astype(np.uint8)).save(
                folder / f"{i}.png"
            )
    tree = root / "classes.csv"
    tree.write_text("class,parent\nrose,warm\npoppy,warm\nsea,cool\nsky,\n")
    (root / "warm").mkdir()  # something red of an unknown kind
    for i in range(20):
        pixels = (np.array((210, 40, 40)) + generator.normal(0, 12, (24, 24, 3))).clip(0, 255)
        Image.fromarray(pixels.astype(np.uint8)).save(root / "warm" / f"{i}.png")

    assert data_main(["check", str(root), "--csv", str(tree)]) == 0
    assert "data.name=folder" in capsys.readouterr().out
    result = run_training(
        tmp_path / "run",
        "data.name=folder",
        f"data.data_dir={root}",
        f"data.csv={tree}",
        f"data.cache_dir={tmp_path / 'cache'}",
        "data.pad=0",
        "epochs=6",
        "batch_size=8",
        "eval_batch_size=8",
        "data.holdout=9",
        "data.sampling=sqrt",
        "eval_every=1",
        "optim.lr=0.02",
    )
    assert result["split"] == "validation"
    assert result["level_images"] == [9, 8]
    assert (result["images"], result["class_images"]) == (9, 8)
    assert result["level_classes"] == [4, 3]
    assert min(*result["accuracy"], *result["balanced_accuracy"]) > 0.7
    assert len((tmp_path / "run" / "confusion.csv").read_text().splitlines()) == 5
    assert Hierarchy.from_csv(tree).names(1) == ("warm", "cool", "sky")

    # The test images, kept apart until now, by both states; the last is that of the run.
    capsys.readouterr()
    assert train.main(["--test", "--eval-only", "--workdir", str(tmp_path / "run")]) == 0
    shown = capsys.readouterr().out
    found = json.loads((tmp_path / "run" / "test.json").read_text("utf-8"))
    assert list(found)[:2] == ["last", "best_on_validation"]
    for state in ("last", "best_on_validation"):
        assert found[state]["split"] == "test"
        assert found[state]["nodes"] == [3, 4]
    assert found["last"]["accuracy"][1] > 0.7
    order = ("validation accuracy (9 images)", "last:", "test accuracy", "best on validation:")
    places = [shown.index(text) for text in order]
    assert places == sorted(places)
    assert result["best"]["accuracy"][1] >= result["accuracy"][1]


@pytest.mark.slow
@pytest.mark.skipif(not OPENCLIPART, reason="DH2L_OPENCLIPART_DIR is not set")
def test_a_folder_that_nobody_prepared(tmp_path):
    """167 folders, classes at depths 1 to 5, a third of the images at inner nodes."""
    result = run_training(
        tmp_path / "run",
        "data.name=folder",
        f"data.data_dir={OPENCLIPART}",
        f"data.cache_dir={tmp_path / 'cache'}",
        "data.on_bad_image=skip",
        "data.resize=32",
        "data.holdout=0.1",
        "data.sampling=sqrt",
        "batch_size=128",
        "eval_batch_size=128",
    )
    assert result["level_classes"] == [125, 121, 65, 39, 1]
    assert result["nodes"] == [22, 73, 95, 125, 125]
    assert result["images"] > result["class_images"] > 400
    assert result["level_images"][0] == result["images"]
    assert result["level_images"] == sorted(result["level_images"], reverse=True)


def test_own_images_as_people_have_them(tmp_path, caplog):
    """On a side, transparent, damaged: `build` sees what `decode` makes of them."""
    root, exif = tmp_path / "images", Image.Exif()
    exif[0x0112] = 6
    for name in "ab":
        (root / "train" / name).mkdir(parents=True)
        (root / "test" / name).mkdir(parents=True)
        for number, split in enumerate(("train", "train", "test")):
            noise = np.random.default_rng(number).integers(0, 256, (24, 30, 3), np.uint8)
            Image.fromarray(noise).save(root / split / name / f"{number}.png", exif=exif)
    Image.new("RGBA", (24, 30)).save(root / "test" / "a" / "0.webp", lossless=True)
    (root / "train" / "b" / "0.gif").write_bytes(b"GIF89a")
    base = {"data": {"name": "folder", "data_dir": str(root), "cache_dir": str(tmp_path / "c")}}
    base |= {"batch_size": 2, "eval_batch_size": 2, "model": {"name": "resnet8", "head": "plain"}}
    base["reg"] = dict.fromkeys(("lambda_l", "lambda_o"), 0.0)
    config = override(from_dict(base), "data.background=#ff8000")
    with pytest.raises(ValueError, match=r"^train/b/0\.gif: expected a whole image, found"):
        loop.build(config)
    with caplog.at_level("WARNING"):
        dataset = loop.build(override(config, "data.on_bad_image=skip")).dataset
    assert "leaves out images that cannot be read, 1: train/b/0.gif;" in caplog.text
    assert dataset.image_shape == (30, 24, 3)
    assert dataset.train_labels.tolist() == [0, 0, 1, 1]
    names = [dataset.name_of("train", i) for i in range(4)]
    assert names == [f"train/{name}/{i}.png" for name in "ab" for i in range(2)]
    assert np.all(dataset.test_images[0] == [255, 128, 0])
    upright = np.rot90(np.random.default_rng(1).integers(0, 256, (24, 30, 3), np.uint8), -1)
    np.testing.assert_array_equal(dataset.train_images[1], upright)
    assert dataset.first_new == "train/a/0.png"
    train, test = dataset.digests
    np.testing.assert_array_equal(train, digests(dataset.train_images))
    np.testing.assert_array_equal(test, digests(dataset.test_images))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["data.background=blak"], "must be a colour such as white or #ff8000, found 'blak'"),
        (["data.crop=0"], "differ in size: set data.crop"),
        (["data.crop=40"], "smallest image is 24 × 30, expected at least the crop, 40 × 40"),
        (["model.pretrained=/nowhere/resnet18-f37072fd.pth"], "/nowhere/resnet18-f37072fd.pth"),
        (["data.csv=/nowhere.csv"], "/nowhere.csv"),
        (["data.data_dir=/nowhere"], "/nowhere"),
    ],
)
def test_what_does_not_fit_ends_before_a_run_begins(tmp_path, capsys, options, message):
    for name, width in (("a", 30), ("b", 31)):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(6):
            Image.new("RGB", (width, 24)).save(tmp_path / "images" / name / f"{i}.png")
    base = ["data.name=folder", f"data.data_dir={tmp_path / 'images'}", "data.pad=0"]
    base += [f"data.cache_dir={tmp_path / 'cache'}"]
    sets = [word for option in (*SMALL, *base, *options) for word in ("--set", option)]
    assert train.main([*sets, "--workdir", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error
    assert not (tmp_path / "run").exists()
