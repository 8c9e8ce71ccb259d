"""`dh2l` and `train.py`: help, success, every exit code, and both spellings of an option."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import train
from dh2l_jax import commands
from dh2l_jax.__main__ import main
from dh2l_jax.commands.arguments import parse
from dh2l_jax.commands.train import config_file, read_config, same_run_elsewhere
from dh2l_jax.models import dense_kernel
from dh2l_jax.training import loop
from dh2l_jax.training.config import Config, load, options, override, recipes, sections
from dh2l_jax.training.host import processes
from dh2l_jax.training.host.signals import Stopped
from dh2l_jax.training.run import checkpoint
from dh2l_jax.training.run import folder as run_folder
from dh2l_jax.training.run.checkpoint import CheckpointError
from dh2l_jax.training.step.finite import NotFiniteError

ROOT = Path(__file__).parents[2]
KEYS = dict(options.flat(Config()))
TINY = ["--model.name=resnet8", "--epochs=1", "--eval_batch_size=250", "--data.fraction=0.25"]
ODD = "Bilder & Läufe (ü) 走 %s 'q'"


def make_workdir(path, run_config):
    """The folder of a run that has saved nothing yet."""
    with run_folder.opened(path, run_config):
        pass


# Help.


def test_help_is_quick_since_it_imports_no_jax():
    """Of every command that has no need of it, and of reading a config; in a fresh interpreter."""
    script = """
import sys
from dh2l_jax.__main__ import main
from dh2l_jax.training.config import load

for words in ([], ["train", "--help"]):
    assert main(words) == 0
load("configs/cifar100_resnet20.py")
print({"jax", "flax", "tensorflow_datasets"} & set(sys.modules))
"""
    command = [sys.executable, "-c", script]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert shown.endswith("\nset()\n")
    for command in commands.COMMANDS:
        assert f"\n  {command} " in shown


@pytest.mark.parametrize("run", [train.main, lambda words: main(["train", *words])])
def test_the_help_of_train_lists_every_option(capsys, monkeypatch, run):
    monkeypatch.setenv("COLUMNS", "100")  # one column of options
    assert run(["cifar100_resnet20", "--help", "--seed", "3"]) == 0
    shown = " ".join(capsys.readouterr().out.replace("│", " ").replace("'", "").split())
    config = override(load(config_file("cifar100_resnet20")), "seed=3")
    for key, value in options.flat(config):
        section = getattr(config, key.split(".")[0]) if "." in key else config
        sentence = options.sentences(type(section))[key.rpartition(".")[2]].replace("'", "")
        assert f"--{key} " in shown
        # A default that is on the next line may stand behind words of the section beside it.
        assert sentence in shown, key
        assert f"(default: {options.text_of(value)})" in shown, key
    flags = ["--config", "--set", "--variant", "--workdir", "--profile", "--test", "--export"]
    types = [
        "{step,cosine,linear,constant}",
        "--epochs INT",
        "--optim.lr FLOAT",
        "--data.flip {true,false}",
    ]
    for word in (*flags, "--eval-only", *types):
        assert word in shown


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--help", "usage: dh2l COMMAND"),
        ("--version", "dh2l_jax 0."),
        ("data --help", "usage: dh2l data COMMAND"),
        ("data prepare --help", "--manual-dir DIR"),
        ("data check -h", "FOLDER"),
        ("tables --help", "table-fashion"),
    ],
)
def test_the_help_of_the_other_commands(capsys, words, expected):
    assert main(words.split()) == 0
    captured = capsys.readouterr()
    assert expected in captured.out
    assert captured.err == ""


def test_a_shell_completes_the_options(capsys):
    assert main(["train", "--tyro-write-completion", "bash", "-"]) == 0
    assert "--optim.lr" in capsys.readouterr().out


# Options.


def another(key, value):
    """A valid text that is not that of the given value."""
    changed = {str: "x", int: "7", float: "0.25", tuple: "0.25,0.75", bool: "no"}[type(value)]
    changed = "a,b => c(d) * 1; e => f * 2" if value == () else changed
    section = Config()
    for part in key.split(".")[:-1]:
        section = getattr(section, part)
    rule = type(section).__dataclass_fields__[key.rpartition(".")[2]].metadata
    return next((choice for choice in rule.get("choices", ()) if choice != value), changed)


def test_both_spellings_of_every_option_are_one():
    texts = {key: another(key, value) for key, value in KEYS.items()}
    expected = recipes.embedded()
    for key, text in texts.items():
        expected = override(expected, f"{key}={text}")
    for words in (
        [word for key, text in texts.items() for word in ("--set", f"{key}={text}")],
        [word for key, text in texts.items() for word in (f"--{key}", text)],
        [f"--{key}={text}" for key, text in texts.items()],
        [f"--{key.replace('_', '-')}={text}" for key, text in texts.items()],
    ):
        assert read_config(parse(words, "train.py")) == expected
    assert expected.data.flip is False
    assert expected.optim.milestones == (0.25, 0.75)


@pytest.mark.parametrize(
    ("words", "overrides"),
    [
        ("--optim.lr 0.05", ("optim.lr=0.05",)),
        ("--optim.lr 1 --optim.lr 2", ("optim.lr=2",)),
        ("--model.epsilon -0.5", ("model.epsilon=-0.5",)),
        ("--set seed=1 --seed 2", ("seed=1", "seed=2")),
        ("--data.csv=", ("data.csv=",)),
        ("", ()),
    ],
)
def test_options_become_assignments(words, overrides):
    assert parse(words.split(), "train.py").overrides == overrides


def test_which_config_is_meant(tmp_path, monkeypatch):
    """A file, a name or the folder's run; options replace its values; the variant comes last."""

    def read(words):
        return read_config(parse(words.split(), "dh2l train"))

    monkeypatch.chdir(tmp_path)
    main_job, cifar = recipes.embedded(), load(ROOT / "configs/cifar100_resnet20.py")
    assert read("") == main_job
    file = f"{ROOT}/configs/cifar100_resnet20.py"
    for words in ("cifar100_resnet20", "--config cifar100_resnet20", file, f"--config {file}"):
        assert read(f"{words} --seed 3") == override(cifar, "seed=3")
    changed = recipes.with_variant(override(cifar, "optim.lr=1"), "l2")
    assert read(f"{file} --variant l2 --optim.lr 1") == changed
    make_workdir(Path("run"), cifar)
    assert read("--workdir run") == cifar
    # What makes no other run goes on with the one of the folder, anything else is another config.
    for option in ("distributed.auto=yes", "on_nan=rollback", "data.data_dir=x"):
        assert read(f"--workdir run --{option}") == override(cifar, option)
    assert read("--workdir run --seed 0") == main_job
    assert read("--workdir run --variant l2") == recipes.with_variant(main_job, "l2")


@pytest.mark.parametrize(
    ("words", "command"),
    [
        ("--variant l2 --set seed=3", "python train.py --variant l2 --set seed=3"),
        ("--seed 3", "python train.py --set seed=3"),
        ("cifar100_resnet20", "python train.py cifar100_resnet20"),
        ("--config a.py --workdir x", "python train.py --config a.py"),
    ],
)
def test_the_command_of_the_same_run_elsewhere(words, command):
    assert same_run_elsewhere(parse(words.split(), "train.py"), "python train.py") == command


# Success.


def test_trains_evaluates_again_and_is_never_overwritten(tmp_path, capsys):
    folder, profile = tmp_path / ODD / "ein Lauf ü", tmp_path / "profile"
    assert train.main([*TINY, "--workdir", str(folder), "--profile", str(profile)]) == 0
    shown = capsys.readouterr().out
    assert f"profile of step 10: open {profile}" in shown
    assert f"results in {folder}/" in shown
    assert "  python train.py --set epochs=1 --set eval_batch_size=250" in shown
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
    assert main(["train", "--eval-only", "--workdir", str(folder)]) == 0
    assert [line for line in capsys.readouterr().out.splitlines() if "│" in line] == table

    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    for arguments in ([], TINY):
        assert train.main([*arguments, "--workdir", str(folder)]) == 0
        shown = capsys.readouterr().out
        assert "finished already" in shown
        assert [line for line in shown.splitlines() if "│" in line] == table
    assert train.main([*TINY, "--optim.lr", "0.3", "--workdir", str(folder)]) == 2
    line = "holds a run with other options: optim.lr is 0.05 in the saved config, 0.3"
    assert line in capsys.readouterr().err
    (folder / "result.json").write_text('{"accuracy": [0.5]}')
    before[folder / "result.json"] = b'{"accuracy": [0.5]}'
    assert train.main(["--workdir", str(folder)]) == 2
    assert "result.json is damaged" in capsys.readouterr().err
    assert before == {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture
def odd(tmp_path):
    """A folder with an odd name, and in it images of two classes, a tree and a config file."""
    root = tmp_path / ODD
    for i, name in enumerate(("rote Blüten", "blaue")):
        (root / "images" / name).mkdir(parents=True)
        for shade in (0, 60, 120):
            picture = Image.new("RGB", (32, 32), (shade, i * 99, 9))
            picture.save(root / "images" / name / f"ä {shade}.png")
    (root / "der Baum.csv").write_text("class,parent\nrote Blüten,ö\nblaue,Ü\n", "utf-8")
    values = {
        "epochs": 1,
        "batch_size": 2,
        "eval_batch_size": 2,
        "model": {"name": "resnet8", "head": "plain"},
        "reg": {"lambda_e": 0},
        "data": {
            "name": "folder",
            "data_dir": str(root / "images"),
            "csv": str(root / "der Baum.csv"),
            "cache_dir": str(root / "der Speicher"),
        },
    }
    (root / "mein Versuch.py").write_text(
        "from dh2l_jax.training.config import from_dict\n\n\n"
        f"def get_config():\n    return from_dict({values})\n",
        "utf-8",
    )
    return root


def test_a_run_among_odd_names(odd, capsys):
    workdir, profile = odd / "der Lauf", odd / "das Profil"
    arguments = [odd / "mein Versuch.py", "--workdir", workdir, "--profile", profile]
    assert train.main([str(word) for word in arguments]) == 0
    assert f"results in {workdir}/" in capsys.readouterr().out
    result = json.loads((workdir / "result.json").read_text("utf-8"))
    assert result["nodes"] == [2, 2]
    assert (workdir / "confusion.csv").read_text("utf-8").splitlines()[0] == ",rote Blüten,blaue"
    assert [path.name for path in (odd / "der Speicher").iterdir()]
    assert list(profile.rglob("*.xplane.pb"))
    assert train.main(["--workdir", str(workdir)]) == 0
    assert "finished already" in capsys.readouterr().out


@pytest.mark.parametrize("head", ["plain", "hierarchical"])
def test_export_of_a_run(odd, capsys, head):
    """The file holds what the checkpoint holds; the head is one matrix."""
    from safetensors.numpy import load_file

    run = override(load(odd / "mein Versuch.py"), "model.name=resnet18")
    run = override(run, f"model.head={head}")
    make_workdir(odd / "run", run)
    experiment = loop.build(run)
    shapes, leaves = experiment.init(abstract=True), iter(range(1000))
    state = jax.tree.map(lambda leaf: jnp.full(leaf.shape, next(leaves), leaf.dtype), shapes)
    checkpoint.save(odd / "run", state, data=experiment.data_record)
    file = odd / "die Gewichte.safetensors"
    assert train.main(["--export", str(file), "--workdir", str(odd / "run")]) == 0
    assert "Gewichte.safetensors" in capsys.readouterr().out.replace("\n", "")
    found = load_file(file)
    stem = np.asarray(state.params["stem"]["conv"]["kernel"])
    np.testing.assert_array_equal(found["conv1.weight"], stem.transpose(3, 2, 0, 1))
    if head == "plain":
        kernel = state.params["head"]["kernel"]
    else:
        kernel = dense_kernel(state.params, experiment.dataset.hierarchy)
    assert found["fc.weight"].shape == (2, 512)
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
    checkpoint.save(tmp_path / "run", state, data=experiment.data_record)
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


# Exit codes.


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (Stopped(15, 7), 143, "stopped by SIGTERM after step 7: the same command goes on"),
        (Stopped(2, 7), 130, "stopped by SIGINT after step 7: the same command goes on"),
        (KeyboardInterrupt(), 130, "stopped by SIGINT"),
        (CheckpointError("damaged"), 2, "error: damaged"),
        (NotFiniteError(3, "L is nan"), 3, "error: step 3: L is nan"),
        (OSError("disk\nfull"), 4, "error: disk full"),
    ],
)
def test_every_end_has_its_exit_code(tmp_path, capsys, monkeypatch, error, code, line):
    def end(*_, **__):
        raise error

    monkeypatch.setattr(loop, "train", end)
    arguments = ["--model.name=resnet8", "--data.fraction=0.1", "--workdir"]
    assert train.main([*arguments, str(tmp_path / "run")]) == code
    assert capsys.readouterr().err == (f"train.py: {line}\n" if line else "")


def test_a_lost_process_ends_the_others(tmp_path, capsys, monkeypatch):
    """As Gloo tells of it; the way out is the one that waits for nobody."""

    def end(*_, **__):
        raise ValueError("UNKNOWN: Gloo all-reduce failed: Connection closed by peer")

    ended = []
    monkeypatch.setattr(commands.train, "train", end)
    monkeypatch.setattr(processes, "several", lambda: True)
    monkeypatch.setattr(processes, "abandon", ended.append)
    train.main(["--workdir", str(tmp_path / "run")])
    assert ended == [processes.LOST] == [commands.Exit.PROCESS_LOST] == [5]
    assert capsys.readouterr().err == f"train.py: error: {processes.LOST_LINE}\n"
    monkeypatch.setattr(processes, "several", lambda: False)
    with pytest.raises(ValueError, match="Gloo"):
        train.main(["--workdir", str(tmp_path / "run")])
