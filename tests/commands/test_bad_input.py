"""Bad input of `train`: each ends with exit code 2 and one line, and nothing is written.

What a config refuses is in `tests/training/config`. Here: what only a command line, a data set or
the files of a run can show, and one refusal of each kind on its way through the command.
"""

import re

import pytest

import train
from dh2l_jax.__main__ import main
from dh2l_jax.training import loop


def contents(folder):
    """Every file and folder, with what it holds."""
    return {path: path.is_file() and path.read_bytes() for path in folder.rglob("*")}


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys):
    """A function arguments → the line of `train.py`, which must exit with 2 and write nothing."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loop, "train", lambda *arguments, **options: pytest.fail("it trains"))

    def run(arguments):
        before = contents(tmp_path)
        assert train.main(arguments.split() if isinstance(arguments, str) else arguments) == 2
        captured = capsys.readouterr()
        assert re.fullmatch(r"train\.py: error: .+\n", captured.err), captured.err
        assert captured.out == ""
        assert contents(tmp_path) == before
        return captured.err.removeprefix("train.py: error: ").rstrip("\n")

    return run


ARGUMENTS = {
    "--sets a=1": "unknown option '--sets': did you mean '--set'?",
    "--optim.lrr 1": "unknown option '--optim.lrr': did you mean '--optim.lr'?",
    "--lr=1": "unknown option '--lr': did you mean '--optim.lr'?",
    "--optim 1": "unknown option '--optim': did you mean '--optim.",
    "--eval-onyl": "unknown option '--eval-onyl': did you mean '--eval-only'?",
    "-x": "unknown option '--x'",
    "--optim.lr": "Missing value for argument '--optim.lr'.",
    "--set": "Missing value for argument '--set'.",
    "--workdir --eval-only": "Missing value for argument '--workdir'.",
    "--config": "Missing value for argument '--config'.",
    "a b": "expected one config, found 'b' too",
    "a --config b.py": "expected one config, found 'a' and --config b.py",
    "--eval-only": "--eval-only needs --workdir, the folder of a finished run",
    "--test": "--test needs --workdir",
    "--export x": "--export needs --workdir",
    "--eval-only --set epochs=1 --workdir x": "--eval-only takes the config of the run: leave out",
    "--eval-only --epochs 1 --workdir x": "--eval-only takes the config of the run: leave out",
    "--eval-only fashion_mnist --workdir x": "--eval-only takes the config of the run: leave out",
    "--export x --workdir .": ". holds no run: expected the file config.json",
    "--export x --variant l2 --workdir x": "--export takes the config of the run: leave out",
    "--test --profile y --workdir x": "--test takes the config of the run: leave out",
    # Configs.
    "cifar100_resnet2": "unknown config 'cifar100_resnet2': did you mean 'cifar100_resnet20'?",
    "--config cifar10_resnet": "unknown config 'cifar10_resnet': did you mean 'cifar10_resnet20'?",
    "mien.py": "no config file mien.py; did you mean mine.py?",
    "--config mien.py": "no config file mien.py; did you mean mine.py?",
    "--config folder.py": "no config file folder.py",
    "--config=": "no config file .",
    "mine.py": "mine.py: expected a function get_config(), found none",
    # Options, in both spellings.
    "--optim.schedule cosin": "'linear' or 'constant', found 'cosin': did you mean 'cosine'?",
    "--set optim.lrr=0.1": "unknown option 'optim.lrr': did you mean 'optim.lr'?",
    "--set optim.lr": "expected key=value, found 'optim.lr'",
    "--set optim.lr=fast": "optim.lr must be a number, found 'fast'",
    "--optim.lr fast": "optim.lr must be a number, found 'fast'",
    "--optim.milestones 0.5,2": "optim.milestones must be ≤ 1, found 2.0",
    "--set epochs=0": "epochs must be ≥ 1, found 0",
    # Variants: those that have no term of the tree drop the options that it has.
    "--variant factord": "unknown variant 'factord': did you mean 'factored'?",
    "--variant E+H --set reg.lambda_l=0": "variant 'E+H' needs reg.lambda_l > 0, found 0",
    "--reg.lambda_l 0.5 --reg.lambda_c1 1 --epochs 0 --variant l2": "epochs must be ≥ 1, found 0",
    "--reg.lambda_l 0.5 --batch_size 7000 --variant l2": "batch_size must be at most",
    # What options say to each other, to the data set and to the devices.
    "--model.head plain --reg.lambda_l 0.5": "reg.lambda_l=0.5 has no effect on model.head=plain",
    "--model.name resnet19": "unknown model 'resnet19'",
    "--reg.conv_metric d_amcos": "unknown regulariser 'd_amcos': did you mean 'd_am_cos'?",
    "--distributed.processes 2": "come together: set distributed.coordinator too, or distributed",
    "--data.name fashion_mnst": "unknown data set 'fashion_mnst': did you mean 'fashion_mnist",
    "--data.name cifar-100": "unknown data set 'cifar-100': did you mean 'cifar100'?",
    "--data.name=": "unknown data set ''",
    "--data.background red": "is no folder of own images and takes no background, found 'red'",
    "--data.csv a.csv": "is no folder of own images and takes no csv, found 'a.csv'",
    "--data.data_dir /nowhere": "fashion_mnist_mini is embedded and takes no data_dir",
    "--data.resize 32": "fashion_mnist_mini has images as they are and takes no resize",
    "--data.name folder": "folder needs data.data_dir, the folder that holds the images",
    "--data.crop 24 --data.pad 24": "data.pad must be below the side of the crop, 24, f",
    "--data.pad 28": "data.pad must be below the side of the crop, 28, f",
    "--data.crop 29": "the smallest image is 28 × 28, expected at least the crop",
    "--data.holdout 2.5": "data.holdout must be a whole number or a share below 1, found 2.5",
    "--data.holdout 6000": "data.holdout: count must be at least one image and at most 5990",
    "--data.inner skip": "is no folder of own images and takes no inner, found 'skip'",
    "--data.tree cub200": "expected a tree of the 10 classes of fashion_mnist_mini, found 'cub",
    "--model.name resnet18": "with height and width ≥ 32, got (1, 28, 28, 1)",
    "--batch_size 6002": "batch_size must be at most the 6000 training images, found 6002",
    "--batch_size 5": "batch_size must be a multiple of the 2 devices, found 5",
    "--eval_batch_size 5": "eval_batch_size must be a multiple of the 2 devices, found 5",
    "--epochs 20000000": "epochs must be at most 11483869, 2147483647 steps, found 20000000",
    "--data.holdout 5980": "batch_size must be at most the 20 training images",
    # Folders.
    "--workdir mine.py": "exists already and is never overwritten",
    "--workdir a[1]": "with brackets or a backslash",
    "--workdir a\\b": "with brackets or a backslash",
    "--workdir . --eval-only": "holds no run",
    "--workdir . --test": "holds no run",
    "--workdir broken": "unknown option 'epohcs': did you mean 'epochs'?",
    "--workdir broken --seed 3": "unknown option 'epohcs': did you mean 'epochs'?",
    "--workdir broken --eval-only": "unknown option 'epohcs': did you mean 'epochs'?",
    "--workdir broken --test": "unknown option 'epohcs': did you mean 'epochs'?",
    "--workdir broken --export x": "unknown option 'epohcs': did you mean 'epochs'?",
    "--workdir begun --eval-only": "begun holds a run that is not finished: `dh2l train --workdir",
    "--workdir begun --test": "begun holds a run that is not finished",
    "--workdir begun --seed 3": "begun holds a run with other options",
    "--workdir begun fashion_mnist": "begun holds a run with other options",
}


@pytest.mark.parametrize("arguments", ARGUMENTS)
def test_arguments(tmp_path, refused, arguments):
    (tmp_path / "mine.py").write_text("")
    (tmp_path / "folder.py").mkdir()
    for folder, text in {"broken": '{"epohcs": 1}', "begun": "{}"}.items():
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "config.json").write_text(text)
    assert ARGUMENTS[arguments] in refused(arguments)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("trian", "dh2l: error: unknown command 'trian': did you mean 'train'?"),
        ("train --optim.lrr 1", "dh2l train: error: unknown option '--optim.lrr': did you mean"),
        (
            "train cifar",
            "dh2l train: error: unknown config 'cifar': did you mean 'cifar10_",
        ),
        ("data chek", "dh2l data: error: unknown command 'chek': did you mean 'check'?"),
        ("data check", "dh2l data check: error: the following arguments are required: FOLDER"),
        ("data check nowhere", "dh2l data check: error: "),
        (
            "data prepare cifar1",
            "dh2l data prepare: error: unknown data set 'cifar1': did you",
        ),
        ("data prepare", "dh2l data prepare: error: the following arguments are required: NAME"),
        ("compare nowhere", "dh2l compare: error: unknown data set 'nowhere'"),
        ("tables tabel2", "dh2l tables: error: unknown table 'tabel2': did you mean 'table2'?"),
        ("tables", "dh2l tables: error: the following arguments are required: TABLE"),
    ],
)
def test_every_command(tmp_path, monkeypatch, capsys, arguments, line):
    monkeypatch.chdir(tmp_path)
    assert main(arguments.split()) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(line)
    assert (captured.err.count("\n"), captured.out) == (1, "")
    assert not list(tmp_path.iterdir())


def test_a_flat_folder_has_no_inner_levels(tmp_path, refused):
    image = pytest.importorskip("PIL.Image").new("RGB", (32, 32))
    for name in ("a/1.png", "a/2.png", "b/1.png", "b/2.png"):
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        image.save(tmp_path / "images" / name)
    cache = tmp_path.parent / f"{tmp_path.name}_cache"
    common = ["--data.name=folder", "--data.data_dir=images", "--batch_size=2"]
    for option in (
        "reg.lambda_o=1",
        "reg.lambda_c2=1",
        "reg.parent_ce_weight=1",
        "model.center=mean",
    ):
        line = refused([*common, f"--data.cache_dir={cache}", f"--{option}"])
        assert line.startswith(option.removesuffix("=1"))
        assert "needs a tree of two levels or more, folder has one" in line


@pytest.mark.parametrize("name", ["cifar100_resnet20", "cub200_resnet18", "fashion_mnist"])
def test_a_packaged_config_names_its_missing_data(tmp_path, refused, name):
    """Pillow and the other packages of the extra `data` are asked for later, by `prepare`."""
    line = refused([name, f"--data.data_dir={tmp_path}"])
    if name == "fashion_mnist":
        assert line.startswith(f"{tmp_path} ")
    else:
        data = name.partition("_")[0]
        assert line.startswith(
            f"{data} is not prepared in {tmp_path}: run dh2l data prepare {data} "
        )
