"""A run knows its data and its files: whatever has changed is one line and exit code 2."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support import flips
from support.folders import picture

import train
from dh2l_jax.hierarchy.scores import evaluate
from dh2l_jax.training import experiment as experiment_module
from dh2l_jax.training import loop
from dh2l_jax.training.config import override
from dh2l_jax.training.run import checkpoint
from dh2l_jax.training.run.facts import Outputs, read_facts
from dh2l_jax.training.run.folder import read_config
from dh2l_jax.training.run.records import write_sealed

CLASSES = ("gulls/trout", "gulls/ivory", "owls/snowy")
OPTIONS = {
    "model.name": "resnet8",
    "model.head": "plain",
    "reg.lambda_e": 0,
    "data.name": "folder",
    "data.resize": 8,
    "data.crop": 8,
    "data.pad": 0,
    "data.holdout": 3,
    "epochs": 2,
    "batch_size": 4,
    "eval_batch_size": 4,
    "eval_every": 1,
}


def images(root):
    """Three classes in two groups: five training and two test images of each."""
    for number, name in enumerate(CLASSES):
        for split, numbers in (("train", range(5)), ("test", range(5, 7))):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in numbers:
                (folder / f"{i}.png").write_bytes(picture(100 * number + i, size=(8, 8)))
    return root


def command(workdir, *words, **options):
    pairs = [word for key, value in options.items() for word in ("--set", f"{key}={value}")]
    return train.main([*words, *pairs, "--workdir", str(workdir)])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Images, and a finished run of them; copy them before you change something."""
    root = tmp_path_factory.mktemp("made")
    places = {"data.data_dir": images(root / "images"), "data.cache_dir": root / "cache"}
    assert command(root / "run", **OPTIONS, **places) == 0
    return root


@pytest.fixture
def place(made, tmp_path):
    """A copy of the images and of the run, at another place than the config says."""
    for name in ("images", "run", "cache"):
        shutil.copytree(made / name, tmp_path / name)
    return tmp_path


def where(place):
    """The options that say where the data are now."""
    return {"data.data_dir": place / "images", "data.cache_dir": place / "cache"}


def unfinish(workdir):
    """As a run is that was stopped in its second epoch."""
    (workdir / "result.json").unlink()
    return workdir


def snapshot(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rename_class(root):
    for split in ("train", "test"):
        (root / split / "gulls/trout").rename(root / split / "gulls/aaa")


def move_class(root):
    for split in ("train", "test"):
        (root / split / "gulls/trout").rename(root / split / "owls/trout")


def overwrite(root):
    (root / "train/owls/snowy/3.png").write_bytes(picture(9, size=(8, 8)))


def add(root, count=3):
    for i in range(count):
        (root / f"train/owls/snowy/9{i}.png").write_bytes(picture(50 + i, size=(8, 8)))


def turn(root):
    """The same file, but EXIF says that it lies on its side."""
    path = root / "train/owls/snowy/3.png"
    with Image.open(path) as image:
        exif = image.getexif()
        exif[0x0112] = 6
        image.save(path, exif=exif)


CHANGES = {
    rename_class: "class 'trout' is now 'aaa'",
    move_class: "class 'trout' lies below 'owls', was below 'gulls'",
    overwrite: "image 'train/owls/snowy/3.png' has other pixels",
    turn: "image 'train/owls/snowy/3.png' has other pixels",
    add: "3 training images added, image 'train/owls/snowy/90.png' the first",
    lambda root: (root / "train/gulls/trout/1.png").unlink(): "1 training image removed, of class",
    lambda root: (root / "test/gulls/trout/5.png").unlink(): "1 test image removed, of class 'tro",
    lambda root: (root / "train/gulls/trout/1.png").rename(
        root / "train/gulls/ivory/1b.png"
    ): "1 training image of another class, image 'train/gulls/ivory/1b.png' of 'ivory'",
    lambda root: (root / "train/gulls/trout/0.png").rename(
        root / "train/gulls/trout/99.png"
    ): "the training images are in another order",
}


@pytest.mark.parametrize("change", CHANGES, ids=CHANGES.values())
def test_other_data_are_refused_in_one_line(place, capsys, change):
    change(place / "images")
    line = f"train.py: error: {place / 'run'} was trained on other data: {CHANGES[change]}"
    for words in (["--eval-only"], ["--test"], []):
        if not words:
            unfinish(place / "run")
        before = snapshot(place / "run")
        assert command(place / "run", *words, **where(place)) == 2
        captured = capsys.readouterr()
        assert captured.err.startswith(line)
        assert captured.err.count("\n") == 1
        assert "│" not in captured.out
        assert snapshot(place / "run") == before


def test_where_the_data_lie_is_no_matter(place, made, capsys, monkeypatch):
    """A copy, a link, another spelling, other times of files, another cache, IDX or not."""
    for path in (place / "images").rglob("*.png"):
        os.utime(path, (1, 1))
    (place / "link").symlink_to(place / "images")
    monkeypatch.chdir(place)
    scores = None
    for data_dir in (made / "images", place / "images", place / "link", "./images/../images"):
        options = where(place) | {"data.data_dir": data_dir, "data.cache_dir": place / "new"}
        assert command(place / "run", "--eval-only", **options) == 0
        shown = capsys.readouterr().out
        scores = scores or shown
        assert shown == scores
    assert command(place / "run", "--test", **where(place)) == 0
    unfinish(place / "run")
    capsys.readouterr()
    before = read_config(place / "run")
    assert command(place / "run", **where(place)) == 0
    assert "goes on after step 6" in capsys.readouterr().out
    assert read_config(place / "run") == before
    found, expected = (json.loads((at / "run/result.json").read_text()) for at in (place, made))
    same = {name for name in expected if found[name] == expected[name]}
    assert same >= {"data", "accuracy", "terms", "last_epoch", "best", "steps"}
    assert found["data"]["train"] == 15
    assert found["data"]["classes"] == 3


def test_options_of_another_run_are_refused(place, capsys):
    assert command(place / "run", "--eval-only", **{"data.resize": 9}) == 2
    assert "takes the config of the run: leave out the other options" in capsys.readouterr().err


def test_export_needs_no_data(place, made, capsys, monkeypatch):
    from safetensors import safe_open

    def fail(*_, **__):
        raise AssertionError("the data were asked for")

    monkeypatch.setattr(experiment_module.catalog, "load", fail)
    file = place / "weights.safetensors"
    assert command(place / "run", "--export", str(file)) == 0
    capsys.readouterr()
    (place / "run/result.json").unlink()
    assert command(place / "run", "--export", str(file)) == 0
    assert "not finished: the weights are those after step 6" in capsys.readouterr().out
    monkeypatch.undo()
    data = loop.build(read_config(made / "run")).dataset
    with safe_open(file, "numpy") as found:
        facts = found.metadata()
    assert tuple(json.loads(facts["classes"])) == data.hierarchy.names(2)
    np.testing.assert_array_equal(np.float32(json.loads(facts["mean"])), data.mean)
    np.testing.assert_array_equal(np.float32(json.loads(facts["std"])), data.std)


def test_a_run_is_whole_in_itself(place, made, capsys, monkeypatch):
    """All that it knows is the data set's and the evaluation's, and is read without the images."""
    places = {key: str(path) for key, path in where(made).items()}
    experiment = loop.build(override_all(read_config(made / "run"), places))
    test = loop.build(override_all(read_config(made / "run"), places), split="test").dataset
    assert command(place / "run", "--test", **where(place)) == 0
    shutil.rmtree(place / "images")
    shutil.rmtree(place / "cache")
    facts = read_facts(place / "run")
    data = experiment.dataset
    assert facts.tree == data.hierarchy
    assert facts.classes == ("ivory", "trout", "snowy")
    np.testing.assert_array_equal([facts.mean, facts.std], [data.mean, data.std])
    assert facts.size == (8, 8, 3)
    assert facts.temperature == 1
    read = {"validation": (facts.outputs, facts.result, data)}
    for state in ("last", "best_on_validation"):
        read[state] = facts.test_outputs(state), facts.test[state], test
    for outputs, scores, dataset in read.values():
        np.testing.assert_array_equal(outputs.labels, dataset.test_labels)
        again = evaluate(outputs.logits, outputs.labels, facts.tree, confusion=False)
        assert {name: scores[name] for name in again} == {
            name: pytest.approx(value, rel=1e-6) for name, value in again.items()
        }
        wrong = outputs.logits.argmax(1) != outputs.labels
        assert len(outputs.worst) == wrong.sum()
        assert wrong[outputs.worst].all()
        for row, name, pixels in zip(outputs.worst, outputs.names, outputs.thumbnails, strict=True):
            np.testing.assert_array_equal(pixels, np.asarray(Image.open(made / "images" / name)))
            np.testing.assert_array_equal(pixels, dataset.test_images[row])
    assert any(len(outputs.worst) for outputs, *_ in read.values())


def override_all(config, values):
    for key, value in values.items():
        config = override(config, f"{key}={value}")
    return config


def test_a_run_without_outputs_gets_them_where_its_images_are(place, made):
    workdir = place / "run"
    result = json.loads((workdir / "result.json").read_text())
    names = set(result.pop("files")) - {"outputs.npz"}
    kept = (workdir / "outputs.npz").read_bytes()
    (workdir / "outputs.npz").unlink()
    write_sealed(workdir / "result.json", {k: result[k] for k in result if k != "sha256"}, names)
    with pytest.raises(
        ValueError, match=f"holds no outputs.npz: `dh2l train --eval-only .*{place}"
    ):
        _ = read_facts(workdir).outputs
    with pytest.raises(ValueError, match=r"holds no test_last_outputs\.npz: `dh2l train --test "):
        read_facts(workdir).test_outputs("last")
    assert command(workdir, "--eval-only", **where(place)) == 0
    assert (workdir / "outputs.npz").read_bytes() == kept
    again = json.loads((workdir / "result.json").read_text())
    assert again["files"] == json.loads((made / "run/result.json").read_text())["files"]
    unfinish(workdir)
    with pytest.raises(ValueError, match="not finished: `dh2l train --workdir"):
        _ = read_facts(workdir).outputs


def test_outputs_that_are_none_are_refused():
    for content in (b"", b"PK", b"[]"):
        with pytest.raises(ValueError, match="no outputs of a run: "):
            Outputs.unpack(content)


def forget(workdir):
    """Makes a run one of a version that knew no data."""
    for step in workdir.glob("checkpoints*/[0-9]*"):
        for name in ("data.npz", "config.json", "metrics.jsonl"):
            (step / name).unlink(missing_ok=True)
        checkpoint.manifest.write(step)
    result = json.loads((workdir / "result.json").read_text())
    kept = {name: result[name] for name in result if name not in ("data", "files", "sha256")}
    (workdir / "result.json").write_text(json.dumps(kept))


def test_a_run_from_before_goes_on_and_says_so(place, capsys):
    workdir, line = place / "run", "is from before checkpoints knew their data: "
    forget(workdir)
    for words in (["--eval-only"], ["--test"]):
        assert command(workdir, *words, **where(place)) == 0
        assert f"{workdir} {line}those here are taken" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"move result\.json and checkpoints/6 away"):
        read_facts(workdir)
    unfinish(workdir)
    shutil.rmtree(workdir / "checkpoints/6")
    assert command(workdir, **where(place)) == 0
    assert read_facts(workdir).outputs.labels.tolist() == [0, 1, 2]
    assert f"{workdir} {line}it goes on with those" in capsys.readouterr().out
    assert checkpoint.steps(workdir) == [3, 6]
    overwrite(place / "images")
    assert command(workdir, "--eval-only", **where(place)) == 2
    assert "has other pixels" in capsys.readouterr().err


def test_a_run_from_before_needs_epochs_of_as_many_steps(place, capsys):
    forget(place / "run")
    unfinish(place / "run")
    add(place / "images", 4)
    assert command(place / "run", **where(place)) == 2
    assert "step 6 is not where epochs of 4 steps have it" in capsys.readouterr().err


def test_a_run_from_before_is_refused_where_images_are_decoded_otherwise(place, capsys):
    forget(place / "run")
    turn(place / "images")
    line = "began before images were decoded as now, which gives 'train/owls/snowy/3.png'"
    for words in (["--eval-only"], ["--test"], []):
        if not words:
            unfinish(place / "run")
        assert command(place / "run", *words, **where(place)) == 2
        assert line in capsys.readouterr().err


# Its other files.


def edit(name, old, new):
    def damage(workdir):
        path = workdir / name
        content = path.read_bytes()
        assert old in content
        path.write_bytes(content.replace(old, new, 1))

    return damage


def cut_line(workdir):
    path = workdir / "metrics.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[1:]))


DAMAGES = [
    (edit("config.json", b'"seed": 0', b'"seed": 1'), "config.json is not what step 6 was saved"),
    (edit("metrics.jsonl", b'"epoch": 1', b'"epoch": 2'), "metrics.jsonl: line 1 is not what step"),
    (edit("metrics.jsonl", b"\n{", b"\n["), "metrics.jsonl: line 2 is not what step 6 was saved"),
    (cut_line, "metrics.jsonl: line 1 is not what step 6 was saved with: put "),
    (lambda workdir: (workdir / "metrics.jsonl").unlink(), "metrics.jsonl: line 1 is not"),
]
AT_THE_END = [
    (edit("result.json", b'"steps": 6', b'"steps": 7'), "result.json is damaged: its SHA-256 is n"),
    (edit("result.json", b'"sha256"', b'"shb256"'), "result.json is damaged: its SHA-256 is not"),
    (edit("result.json", b'"files"', b'"filed"'), "result.json is damaged: its SHA-256 is not"),
    (edit("result.json", b"{", b"["), "result.json is damaged: not JSON"),
    (edit("confusion.csv", b",", b";"), "confusion.csv is damaged: its SHA-256"),
    (edit("confusion.json", b"[", b"("), "confusion.json is damaged: its SHA-256"),
    (edit("outputs.npz", b"labels", b"lebals"), "outputs.npz is damaged: its SHA-256"),
    (lambda workdir: (workdir / "confusion.csv").unlink(), "confusion.csv is missing"),
    (edit("metrics.jsonl", b'"epoch": 1', b'"epoch": 2'), "metrics.jsonl is damaged"),
    (DAMAGES[0][0], "config.json is not what step 6 was saved with"),
]


@pytest.mark.parametrize(("damage", "line"), DAMAGES, ids=[line for _, line in DAMAGES])
def test_damage_to_config_and_records_is_named(place, capsys, damage, line):
    workdir = unfinish(place / "run")
    damage(workdir)
    before = snapshot(workdir)
    assert command(workdir, **where(place)) == 2
    captured = capsys.readouterr()
    assert line in captured.err
    assert captured.err.count("\n") == 1
    before.pop(workdir / ".lock")
    assert before.items() <= snapshot(workdir).items()
    # The line says what to do, and that is all there is to do.
    for name in ("config.json", "metrics.jsonl"):
        shutil.copy(workdir / "checkpoints/6" / name, workdir / name)
    assert command(workdir, **where(place)) == 0


@pytest.mark.parametrize(("damage", "line"), AT_THE_END, ids=[line for _, line in AT_THE_END])
def test_damage_to_a_finished_run_is_named(place, capsys, damage, line):
    damage(place / "run")
    before = snapshot(place / "run")
    for words in ([], ["--eval-only"], ["--test"]):
        assert command(place / "run", *words, **where(place)) == 2
        captured = capsys.readouterr()
        assert line in captured.err
        assert captured.err.count("\n") == 1
        assert snapshot(place / "run") == before


def test_no_damage_is_silent(tmp_path):
    """A little of what `python -m support.flips --flips 1000` does."""
    counts = flips.run(tmp_path, flips=24, seed=0)
    assert sum(map(len, counts.values())) > 1


def test_an_unfinished_run_is_no_finished_one(place, capsys):
    workdir = unfinish(place / "run")
    for words in (["--eval-only"], ["--test"]):
        assert command(workdir, *words, **where(place)) == 2
        assert f"{workdir} holds a run that is not finished: `dh2l train" in capsys.readouterr().err
    assert not (workdir / "test.json").exists()


def test_a_result_is_of_its_own_state(place, capsys):
    """An older step in the place of a damaged one is no state of the result."""
    for folder, words in (("checkpoints_best", ["--test"]), ("checkpoints", ["--eval-only"])):
        newest = max((place / "run" / folder).iterdir(), key=lambda path: path.name)
        (newest / "config.json").write_bytes(b"{}")
        assert command(place / "run", *words, **where(place)) == 2
        assert "config.json: SHA-256 differs" in capsys.readouterr().err


@pytest.mark.parametrize("keep_folder", [False, True])
def test_lost_checkpoints_are_said_before_anything_is_dropped(place, capsys, keep_folder):
    workdir = unfinish(place / "run")
    (workdir / "checkpoints").rename(place / "elsewhere")
    if keep_folder:
        (workdir / "checkpoints").mkdir()
    before = snapshot(workdir)
    assert command(workdir, **where(place)) == 2
    line = f"{workdir / 'checkpoints'} holds no checkpoint, and {workdir / 'metrics.jsonl'} has 2"
    assert line in capsys.readouterr().err
    before.pop(workdir / ".lock")
    assert before.items() <= snapshot(workdir).items()


LINKS = ["metrics.jsonl", "config.json", "checkpoints", "result.json", ".lock"]


@pytest.mark.parametrize("name", LINKS)
@pytest.mark.parametrize("exists", [True, False])
def test_no_file_of_a_run_is_a_link(place, capsys, name, exists):
    """A planted one is neither read nor written, whether there is something at its end or not."""
    workdir = place / "run" if name == "result.json" else unfinish(place / "run")
    precious = place / "precious"
    if (workdir / name).exists():
        (workdir / name).rename(precious)
    (workdir / name).symlink_to(precious)
    before = snapshot(place) if exists else None
    if not exists:
        shutil.rmtree(precious) if precious.is_dir() else precious.unlink()
    code = command(workdir, **where(place))
    if exists:
        assert code == 2
        assert "link" in capsys.readouterr().err
        assert snapshot(place) == before
    else:
        assert not precious.exists()


def test_a_planted_folder_is_not_entered(place):
    (place / "run/checkpoints/unfinished").symlink_to(place / "images")
    before = snapshot(place / "images")
    state = loop.build(read_config(place / "run")).init()
    checkpoint.save(place / "run", state)
    assert snapshot(place / "images") == before
    assert not (place / "run/checkpoints/unfinished").is_symlink()


def test_processes_must_find_the_same_data(made, monkeypatch):
    experiment = loop.build(read_config(made / "run"))
    monkeypatch.setattr(experiment_module, "on_first", lambda *_: (True, "another"))
    with pytest.raises(checkpoint.CheckpointError, match="process 0 finds other data in images"):
        experiment_module.refuse_other_data(experiment, Path("new"))
