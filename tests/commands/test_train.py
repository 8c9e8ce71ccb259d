"""The command line: bad input ends with one line and exit code 2, a short run works end to end."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import train
from dh2l_jax.models import dense_kernel
from dh2l_jax.training import loop
from dh2l_jax.training.config import Config, sections
from dh2l_jax.training.run import checkpoint
from dh2l_jax.training.run import folder as run_folder

TINY = ["--set", "model.name=resnet8", "--set", "epochs=1", "--set", "eval_batch_size=250"]
TINY += ["--set", "data.fraction=0.25"]


def fails(capsys, arguments):
    """The single line of a command that must exit with 2."""
    assert train.main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1, captured.err
    return captured.err


def make_workdir(path, run_config):
    """The folder of a run that has saved nothing yet."""
    with run_folder.opened(path, run_config):
        pass


def test_trains_evaluates_again_and_is_never_overwritten(tmp_path, capsys):
    folder, profile = tmp_path / "ein Lauf ü", tmp_path / "profile"
    assert train.main([*TINY, "--workdir", str(folder), "--profile", str(profile)]) == 0
    shown = capsys.readouterr().out
    assert f"profile of step 10: open {profile}" in shown
    assert len(list(profile.rglob("*.xplane.pb"))) == 1
    result = json.loads((folder / "result.json").read_text("utf-8"))
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert len(result["accuracy"]) == 3
    assert result["accuracy"] == sorted(result["accuracy"], reverse=True)
    assert result["accuracy"][-1] > 0.3  # chance is 0.1
    assert result["images"] == 500
    assert records[0]["J"] > records[0]["L"] > 0
    terms = {"R_E", "R_p/3", "R_c/2", "R_c/3", "R_o"}
    assert terms <= set(records[0])
    assert terms <= set(result["terms"])
    assert set(result["constraints"]) == {"C1/3", "C2/3", "C3/3"}
    assert {"parameters", "seconds", "versions", "last_epoch"} <= set(result)
    assert sections.from_dict(json.loads((folder / "config.json").read_text())).epochs == 1

    table = [line for line in shown.splitlines() if "%" in line and "│" in line]
    assert train.main(["--eval-only", "--workdir", str(folder)]) == 0
    assert [line for line in capsys.readouterr().out.splitlines() if "│" in line] == table

    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    for arguments in ([], TINY):
        assert train.main([*arguments, "--workdir", str(folder)]) == 0
        shown = capsys.readouterr().out
        assert "finished already" in shown
        assert [line for line in shown.splitlines() if "│" in line] == table
    line = fails(capsys, [*TINY, "--set", "optim.lr=0.3", "--workdir", str(folder)])
    assert "holds a run with other options: optim.lr is 0.05 in the saved config, 0.3" in line
    assert before == {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("optim.lrr=0.1", "unknown option 'optim.lrr': did you mean 'optim.lr'?"),
        ("lr=0.1", "unknown option 'lr': did you mean 'optim.lr'?"),
        ("optim=1", "unknown option 'optim'"),
        ("optim.lr.x=1", "unknown option 'optim.lr.x'"),
        ("optim.lr", "expected key=value, found 'optim.lr'"),
        ("optim.lr=fast", "optim.lr must be a number, found 'fast'"),
        ("optim.lr=-1", "lr must be > 0, found -1.0"),
        ("optim.lr=nan", "lr must be finite, found nan"),
        ("optim.momentum=1", "momentum must be < 1, found 1.0"),
        ("optim.milestones=0.5,2", "milestones must be ≤ 1, found 2.0"),
        ("optim.milestones=half", "optim.milestones must be a list of numbers"),
        ("optim.schedule=cosin", "found 'cosin': did you mean 'cosine'?"),
        ("epochs=0", "epochs must be ≥ 1, found 0"),
        ("epochs=1.5", "epochs must be an integer, found '1.5'"),
        ("data.flip=maybe", "data.flip must be true or false, found 'maybe'"),
        ("data.name=fashion_mnst", "unknown data set 'fashion_mnst': did you mean 'fashion_mnist'"),
        ("data.data_dir=/nowhere", "takes no data_dir"),
        ("data.holdout=7", "count must be a positive multiple of 10 classes, found 7"),
        ("model.name=resnet19", "unknown model 'resnet19'"),
        ("model.name=resnet18", "with height and width ≥ 32, got (1, 28, 28, 1)"),
        ("model.head=flat", "head must be 'hierarchical' or 'plain', found 'flat'"),
        ("model.shortcut=C", "shortcut must be 'A' or 'B', found 'C'"),
        ("reg.conv_metric=d_amcos", "unknown metric 'd_amcos': did you mean 'd_am_cos'?"),
        ("reg.fc_metric=cosin", "unknown metric 'cosin': did you mean 'cosine'?"),
        ("batch_size=7001", "batch_size must be"),
        ("batch_size=3", "batch_size must be a multiple of the 2 devices, found 3"),
    ],
)
def test_bad_options(tmp_path, capsys, assignment, message):
    folder = tmp_path / "run"
    line = fails(capsys, ["--set", assignment, "--workdir", str(folder)])
    assert message in line
    assert not folder.exists()


@pytest.mark.parametrize("head", ["plain", "hierarchical"])
def test_export_of_a_run(tmp_path, capsys, head):
    """The file holds what the checkpoint holds; the head is one matrix."""
    from safetensors.numpy import load_file

    for name in ("a", "b", "c"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(2):
            Image.new("RGB", (32, 32)).save(tmp_path / "images" / name / f"{i}.png")
    run = Config(
        batch_size=2,
        data=sections.DataConfig(
            name="folder", data_dir=str(tmp_path / "images"), cache_dir=str(tmp_path / "cache")
        ),
        model=sections.ModelConfig(name="resnet18", head=head),
    )
    make_workdir(tmp_path / "run", run)
    experiment = loop.build(run)
    state = experiment.init()
    checkpoint.save(tmp_path / "run", state)
    file = tmp_path / "weights.safetensors"
    assert train.main(["--export", str(file), "--workdir", str(tmp_path / "run")]) == 0
    assert "weights.safetensors" in capsys.readouterr().out.replace("\n", "")
    found = load_file(file)
    stem = np.asarray(state.params["stem"]["conv"]["kernel"])
    np.testing.assert_array_equal(found["conv1.weight"], stem.transpose(3, 2, 0, 1))
    if head == "plain":
        kernel = state.params["head"]["kernel"]
    else:
        kernel = dense_kernel(state.params, experiment.dataset.hierarchy)
    np.testing.assert_array_equal(found["fc.weight"], np.asarray(kernel).T)
    assert not found["fc.bias"].any()


@pytest.mark.parametrize("head", ["plain", "hierarchical"])
def test_export_of_a_run_on_a_network_of_our_own(tmp_path, capsys, head):
    """With names of ours, a line that says so, and what a user needs to reproduce the logits."""
    from safetensors import safe_open

    run = Config(model=sections.ModelConfig(name="resnet8", head=head))
    make_workdir(tmp_path / "run", run)
    experiment = loop.build(run)
    state = experiment.init()
    checkpoint.save(tmp_path / "run", state)
    file = tmp_path / "weights.safetensors"
    assert train.main(["--export", str(file), "--workdir", str(tmp_path / "run")]) == 0
    line = "torchvision has no resnet8: the names are those of our variables"
    assert line in capsys.readouterr().out.splitlines()
    data = experiment.dataset
    with safe_open(file, "numpy") as found:
        facts, kernel = found.metadata(), found.get_tensor("params/head/kernel")
    if head == "hierarchical":
        np.testing.assert_array_equal(kernel, dense_kernel(state.params, data.hierarchy))
    assert facts["network"] == "resnet8"
    assert tuple(json.loads(facts["classes"])) == data.hierarchy.names(data.hierarchy.num_levels)
    np.testing.assert_array_equal(np.array(json.loads(facts["mean"]), np.float32), data.mean)
    np.testing.assert_array_equal(np.array(json.loads(facts["std"]), np.float32), data.std)


def test_only_a_run_with_held_out_images_is_tested(tmp_path, capsys):
    make_workdir(tmp_path / "run", Config())
    line = fails(capsys, ["--test", "--workdir", str(tmp_path / "run")])
    assert "expected a run with data.holdout" in line


def test_a_variant_is_what_its_name_says(tmp_path, capsys):
    line = fails(capsys, ["--variant", "factord", "--workdir", str(tmp_path / "run")])
    assert "unknown variant 'factord': did you mean 'factored'?" in line
    line = fails(
        capsys,
        ["--variant", "E+H", "--set", "reg.lambda_l=0", "--workdir", str(tmp_path / "run")],
    )
    assert "variant 'E+H' needs reg.lambda_l > 0, found 0" in line
    options = train.parse_arguments(["--variant", "l2", "--set", "seed=3"])
    assert train.command(options) == "python train.py --variant l2 --set seed=3"


def test_bad_files_and_folders(tmp_path, capsys):
    assert "no config file" in fails(capsys, ["--config", str(tmp_path / "none.py")])
    empty = tmp_path / "empty.py"
    empty.write_text("")
    assert "expected a function get_config()" in fails(capsys, ["--config", str(empty)])
    wrong = tmp_path / "wrong.py"
    wrong.write_text("def get_config():\n    return 3\n")
    assert "must return a Config, found int" in fails(capsys, ["--config", str(wrong)])
    assert "holds no run" in fails(capsys, ["--eval-only", "--workdir", str(tmp_path)])
    (tmp_path / "config.json").write_text("{")
    assert "not JSON" in fails(capsys, ["--eval-only", "--workdir", str(tmp_path)])
    (tmp_path / "config.json").write_text('{"epohcs": 1}')
    line = fails(capsys, ["--eval-only", "--workdir", str(tmp_path)])
    assert "unknown option 'epohcs': did you mean 'epochs'?" in line
    (tmp_path / "config.json").write_text("{}")
    assert "no checkpoint in" in fails(capsys, ["--eval-only", "--workdir", str(tmp_path)])
    assert "exists already" in fails(capsys, ["--workdir", str(empty)])
    for name in ("a[1]", "a\\b"):
        assert "with brackets or a backslash" in fails(capsys, ["--workdir", str(tmp_path / name)])


@pytest.mark.parametrize(
    "arguments",
    [
        ["--eval-only"],
        ["--test"],
        ["--export", "x"],
        ["--sets", "a=1"],
        ["--eval-only", "--set", "epochs=1", "--workdir", "x"],
        ["--export", "x", "--variant", "l2", "--workdir", "x"],
        ["--test", "--profile", "y", "--workdir", "x"],
    ],
)
def test_bad_arguments_exit_with_2(arguments):
    with pytest.raises(SystemExit) as error:
        train.main(arguments)
    assert error.value.code == 2


def test_config_round_trip():
    changed = sections.override(Config(), "optim.milestones=(0.3, 0.6)")
    changed = sections.override(changed, "data.flip=no")
    assert changed.optim.milestones == (0.3, 0.6)
    assert changed.data.flip is False
    assert sections.from_dict(json.loads(json.dumps(sections.to_dict(changed)))) == changed
    with pytest.raises(ValueError, match=r"lr must be a number, found '0\.1'"):
        sections.OptimConfig(lr="0.1")
    with pytest.raises(ValueError, match="epochs must be an integer, found True"):
        Config(epochs=True)


@pytest.mark.parametrize("path", sorted((Path(train.__file__).parent / "configs").glob("*.py")))
def test_every_config_builds_and_says_its_command(path):
    assert isinstance(sections.load(path), Config)
    assert re.search(r"python train\.py", path.read_text("utf-8"))
