"""Bad configs, options and files: each ends with exit code 2, one line, and nothing written.

And odd names of files and folders, which are no bad input.
"""

import dataclasses
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import train
from dh2l_jax.experiments.plan import tables
from dh2l_jax.experiments.plan.settings import Options, config_of
from dh2l_jax.training import loop
from dh2l_jax.training.config import (
    Config,
    DistributedConfig,
    conflicts,
    options,
    recipes,
    sections,
)
from dh2l_jax.training.run import checkpoint

KEYS = dict(options.flat(Config()))
# A value of another type, for an option of each type.
WRONG = {bool: "maybe", int: 1.5, float: "fast", str: 3, tuple: 0.5}


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys):
    """A function arguments → the line of `train.py`, which must exit with 2 and write nothing."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loop, "train", lambda *arguments, **options: pytest.fail("it trains"))

    def run(*arguments):
        before = contents(tmp_path)
        assert train.main([str(word) for word in arguments]) == 2
        captured = capsys.readouterr()
        assert re.fullmatch(r"train\.py: error: .+\n", captured.err), captured.err
        assert captured.out == ""
        assert contents(tmp_path) == before
        return captured.err.removeprefix("train.py: error: ").rstrip("\n")

    return run


def contents(folder):
    """Every file and folder, with what it holds."""
    return {path: path.is_file() and path.read_bytes() for path in folder.rglob("*")}


def sets(*assignments):
    return [word for assignment in assignments for word in ("--set", assignment)]


def nested(key, value):
    """The values of a config that sets one option."""
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def rules(key):
    """The rule of an option: bounds and choices."""
    section = Config()
    *path, last = key.split(".")
    for part in path:
        section = getattr(section, part)
    return {field.name: field.metadata for field in dataclasses.fields(section)}[last]


def misspelt(key):
    """Slips of the finger in the last part of a key: a letter twice, left out, or swapped."""
    start = key.rfind(".") + 1
    for i in range(start, len(key)):
        yield key[:i] + key[i] + key[i:]
        yield key[:i] + key[i + 1 :]
        yield key[:i] + key[i : i + 2][::-1] + key[i + 2 :]


# Keys, types and ranges: of every option there is.


@pytest.mark.parametrize("key", KEYS)
def test_a_misspelt_key_is_answered_with_the_right_one(refused, key):
    slips = {other: set(misspelt(other)) for other in KEYS}
    typos = sorted(slips.pop(key) - set(KEYS))
    assert len(typos) >= 5
    for typo in typos:
        near = "|".join([key, *(other for other in KEYS if typo in slips.get(other, ()))])
        with pytest.raises(ValueError, match=rf"did you mean '({near})'"):
            sections.override(Config(), f"{typo}=1")
        with pytest.raises(ValueError, match=rf"did you mean '({near})'"):
            sections.from_dict(nested(typo, 1))
    start = key.rfind(".") + 1
    typo = key[:start] + key[start] + key[start:]
    line = refused(*sets(f"{typo}=1"), "--workdir", "run")
    assert line == f"unknown option {typo!r}: did you mean {key!r}?"


@pytest.mark.parametrize("key", [key for key in KEYS if "." in key])
def test_a_key_without_its_section_is_answered_with_both(refused, key):
    name = key.rpartition(".")[2]
    line = refused(*sets(f"{name}=1"))
    assert re.fullmatch(rf"unknown option '{name}': did you mean '\w+\.{name}'\?", line)


@pytest.mark.parametrize("key", KEYS)
def test_a_value_of_a_wrong_type(tmp_path, refused, key):
    wrong = WRONG[type(KEYS[key])]
    (tmp_path / "mine.py").write_text(
        "from dh2l_jax.training.config.sections import from_dict\n\n\n"
        f"def get_config():\n    return from_dict({nested(key, wrong)})\n"
    )
    must = rf"\b{key} must be (a |an |true or false).*, found "
    assert re.search(must, refused("--config", "mine.py"))
    for value in (None, [[]], {"a": 1}, b"1", [1, "2"]):
        with pytest.raises(ValueError, match=must):
            sections.from_dict(nested(key, value))


@pytest.mark.parametrize("key", [k for k, value in KEYS.items() if not isinstance(value, str)])
def test_a_text_of_a_wrong_type(refused, key):
    must = rf"{key} must be (a |an |true or false).*, found '"
    assert re.match(must, refused(*sets(f"{key}=x")))
    for text in ("", "1,x", "0x10", "--1", "None"):
        if text or not isinstance(KEYS[key], tuple):  # no text is an empty list
            with pytest.raises(ValueError, match=must):
                sections.override(Config(), f"{key}={text}")


def out_of_range():
    """(key, text, what it must be) beyond every bound of every option."""
    for key, value in KEYS.items():
        rule, isfloat = rules(key), isinstance(value, float | tuple)
        tiny = 1e-6 if isfloat else 1
        for name, (sign, step) in {
            "low": ("≥", -tiny),
            "high": ("≤", tiny),
            "above": (">", 0),
            "below": ("<", 0),
        }.items():
            if name in rule:
                yield key, str(rule[name] + step), f"must be {sign} {rule[name]}, found "
        if isfloat:
            yield from ((key, text, "must be finite, found ") for text in ("nan", "inf", "-inf"))
            yield from ((key, text, "of a size that float32 holds") for text in ("1e39", "1e-39"))
        for choice in rule.get("choices", ()):
            yield key, choice + "x", f"did you mean '{choice}'"


@pytest.mark.parametrize(("key", "text", "message"), list(out_of_range()))
def test_a_value_out_of_range(refused, key, text, message):
    line = refused(*sets(f"{key}={text}"), "--workdir", "run")
    assert line.startswith(f"{key} must be ")
    assert message in line


def test_every_number_has_a_bound_or_says_why():
    """Seconds, counts and weights are not negative; ε may point either way."""
    free = [
        key
        for key, value in KEYS.items()
        if not isinstance(value, str | bool) and not {"low", "above"} & set(rules(key))
    ]
    assert free == ["model.epsilon"]


# Names.


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("data.name=cifar-100", "unknown data set 'cifar-100': did you mean 'cifar100'?"),
        ("data.name=", "unknown data set ''"),
        ("data.tree=cub20", "unknown data.tree 'cub20': did you mean 'cub200'?"),
        ("data.tree=flatt", "unknown data.tree 'flatt': did you mean 'flat'?"),
        ("model.name=ResNet50", "unknown model 'ResNet50': did you mean 'resnet50'?"),
        ("model.name=resnet9", "unknown model 'resnet9': did you mean 'resnet"),
        ("reg.conv_metric=d_h_bim", "unknown metric 'd_h_bim': did you mean 'd_h_bin'?"),
        ("reg.fc_metric=angular3", "unknown metric 'angular3': did you mean 'angular"),
    ],
)
def test_an_unknown_name(refused, assignment, message):
    assert refused(*sets(assignment), "--workdir", "run").startswith(message)


def test_an_unknown_variant(refused):
    assert refused("--variant", "EH").startswith("unknown variant 'EH': did you mean 'E+H'?")


# Options that contradict each other.


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        ("data.tree=flat", "needs a tree of two levels or more, data.tree=flat has one: set model"),
        ("data.name=cifar10", "needs a tree of two levels or more, cifar10 has one: set model"),
        *(
            (f"model.head=plain reg.{term}=0.5", f"reg.{term}=0.5 has no effect on model.head=plai")
            for term in conflicts.TREE_TERMS
        ),
        ("model.epsilon=0.5", "model.epsilon=0.5 has no effect on the centres 'free': set model.c"),
        ("model.pretrained=x.pth", "resnet20 takes no model.pretrained, found 'x.pth'; networks t"),
        ("model.name=resnet18 model.shortcut=B", "resnet18 takes no model.shortcut, found 'B'; ne"),
        ("data.csv=a.csv", "fashion_mnist_mini has its own tree and takes no csv, found 'a.csv'"),
        ("data.name=folder data.csv=a data.tree=cub200", "data.csv and data.tree are both a tree"),
        ("data.data_dir=x", "fashion_mnist_mini is embedded and takes no data_dir, found 'x'"),
        ("data.resize=32", "fashion_mnist_mini has images of one size and takes no resize"),
        ("data.name=folder", "folder needs data_dir, the folder that holds the images"),
        ("data.name=cub200 data.resize=64 data.crop=72", "data.crop must be at most data.resize,"),
        ("data.crop=24 data.pad=24", "data.pad must be below the side of the crop, 24, f"),
        ("data.pad=28", "data.pad must be below the side of the crop, 28, f"),
        ("data.crop=29 data.pad=0", "the smallest image is 28 × 28, expected at least the crop"),
        ("data.holdout=5", "data.holdout: count must be a positive multiple of 10 classes"),
        ("data.holdout=6000", "data.holdout: count must be below 6000"),
        ("data.tree=cub200", "expected a tree of the 10 classes of fashion_mnist_mini, found 'cub"),
        ("optim.decay=0.5", "optim.decay has no effect on optim.schedule=cosine, found 0.5: leave"),
        ("optim.milestones=0.3,0.6", "optim.milestones has no effect on optim.schedule=cosine"),
        ("optim.schedule=step optim.milestones=0.6,0.3", "optim.milestones must ascend, found (0."),
        ("optim.schedule=step optim.milestones=0.5,0.5", "optim.milestones must ascend, found (0."),
        ("optim.nesterov=yes optim.momentum=0", "optim.nesterov=true has no effect without mome"),
        ("optim.warmup_epochs=7", "optim.warmup_epochs must be at most the 6 epochs, found 7"),
        ("batch_size=6002", "batch_size must be at most the 6000 training images, found 6002"),
        ("batch_size=5", "batch_size must be a multiple of the 2 devices, found 5"),
        ("eval_batch_size=5", "eval_batch_size must be a multiple of the 2 devices, found 5"),
        ("epochs=20000000", "epochs must be at most 11483869, 2147483647 steps, found 20000000"),
        ("data.holdout=5980 batch_size=32", "batch_size must be at most the 20 training images"),
        ("distributed.coordinator=a:1", "come together: set distributed.processes too, or distrib"),
        ("distributed.processes=2", "come together: set distributed.coordinator too, or distribu"),
        ("distributed.process=0", "come together: set distributed.coordinator too, or distribute"),
        ("distributed.auto=yes distributed.process=0", "leave out distributed.process"),
        ("distributed.auto=yes distributed.coordinator=a:1", "leave out distributed.coordinator"),
        (
            "distributed.coordinator=a:1 distributed.processes=2 distributed.process=2",
            "distributed.process must be below the 2 processes, found 2: they are counted from 0",
        ),
        (
            "distributed.coordinator=node distributed.processes=2 distributed.process=1",
            "distributed.coordinator must be ADDRESS:PORT, found 'node'",
        ),
    ],
)
def test_options_that_contradict(refused, assignments, message):
    assert message in refused(*sets(*assignments.split()), "--workdir", "run")


@pytest.mark.parametrize(
    "assignments",
    [
        "",
        "model.head=plain",
        "model.head=plain data.tree=flat",
        "model.head=plain data.name=cifar10",
        "model.head=plain reg.lambda_l=0 reg.lambda_o=0",
        "model.center=epsilon model.epsilon=0.5",
        "reg.lambda_l=0",
        "reg.lambda_c1=1 reg.parent_ce_weight=1",
        "optim.schedule=cosine optim.milestones=0.5,0.85",
        "optim.milestones=",
        "optim.milestones=0,1",
        "optim.warmup_epochs=300",
        "data.resize=64 data.crop=64",
        "data.name=folder data.csv=a.csv data.tree=flat model.head=plain",
        "model.name=resnet18 model.pretrained=x.pth",
        "distributed.auto=yes",
        "distributed.coordinator=[::1]:80 distributed.processes=2 distributed.process=0",
    ],
)
def test_options_that_go_together(assignments):
    run = Config()
    for assignment in assignments.split():
        run = sections.override(run, assignment)
    conflicts.check(run)


@pytest.mark.parametrize("path", sorted((Path(train.__file__).parent / "configs").glob("*.py")))
@pytest.mark.parametrize("variant", recipes.VARIANTS)
def test_every_variant_of_every_config_is_taken(path, variant):
    run = sections.load(path)
    if run.data.name == "cifar10":  # it has no tree, and its config no λ of one
        if variant in ("factored", "E+H"):
            return
    elif variant == "E+H":
        conflicts.check(run)
    conflicts.check(recipes.with_variant(run, variant))


@pytest.mark.parametrize("name", tables.TABLES)
def test_every_run_of_every_table_is_taken(name):
    for setting in tables.table(name).settings:
        for weights in setting.candidates:
            chosen = Options(pretrained="weights", budget=0.1)
            conflicts.check(config_of(setting, weights, 0, chosen))


def test_a_variant_has_no_term_that_contradicts(refused):
    """Options of the tree's terms may come with any variant: those that have none drop them."""
    line = refused(*sets("reg.lambda_l=0.5", "reg.lambda_c1=1", "epochs=0"), "--variant", "l2")
    assert line == "epochs must be ≥ 1, found 0"
    line = refused(*sets("reg.lambda_l=0.5", "batch_size=7000"), "--variant", "l2")
    assert line.startswith("batch_size must be at most")


def test_a_flat_folder_has_no_inner_levels(tmp_path, refused):
    image = pytest.importorskip("PIL.Image").new("RGB", (32, 32))
    for name in ("a/1.png", "a/2.png", "b/1.png", "b/2.png"):
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        image.save(tmp_path / "images" / name)
    common = ["data.name=folder", "data.data_dir=images", "batch_size=2"]
    for name, value in {
        "reg.lambda_o": 0.5,
        "reg.lambda_c2": 1,
        "reg.parent_ce_weight": 1,
        "model.center": "mean",
    }.items():
        cache = f"data.cache_dir={tmp_path.parent / f'{tmp_path.name}_cache'}"
        line = refused(*sets(*common, cache, f"{name}={value}"))
        assert line.startswith(f"{name}")
        assert "needs a tree of two levels or more, folder has one" in line


# Files.

CONFIG_FILES = {
    "a syntax error": (b"x = 1\ndef get_config(:\n", ", line 2: SyntaxError: "),
    "an error at the top": (b"import os\n1 / 0\n", ", line 2: ZeroDivisionError: division by ze"),
    "an error inside": (
        b"def get_config():\n    raise RuntimeError('two\\nlines')\n",
        ", line 2: RuntimeError: two lines",
    ),
    "a missing module": (b"import no_such_module\n", ", line 1: ModuleNotFoundError: No module"),
    "an exit": (b"import sys\nsys.exit(0)\n", ", line 2: SystemExit: 0"),
    "endless recursion": (b"def get_config():\n    get_config()\n", ", line 2: RecursionError: "),
    "an argument": (b"def get_config(name):\n    pass\n", "TypeError: get_config() missing 1 req"),
    "no text": (bytes(range(256)) * 4, ": SyntaxError: "),
    "zeros": (bytes(1000), ": "),
    "Latin-1": ("x = 'Größe'\n".encode("latin-1"), ": SyntaxError: "),
    "nothing": (b"", ": expected a function get_config(), found none"),
    "a value": (b"get_config = 3\n", ": expected a function get_config(), found none"),
    "another result": (b"def get_config():\n    return {}\n", "must return a Config, found dict"),
    "the class": (
        b"from dh2l_jax.training.config import Config\ndef get_config():\n    return Config\n",
        "must return a Config, found type",
    ),
    "a wrong section": (
        b"from dh2l_jax.training.config import Config\nget_config = lambda: Config(data=3)\n",
        ", line 2: ValueError: data must be a DataConfig, found 3",
    ),
    "a wrong keyword": (
        b"from dh2l_jax.training.config import Config\nget_config = lambda: Config(epoch=3)\n",
        ", line 2: TypeError: Config.__init__() got an unexpected keyword argument 'epoch'",
    ),
}


@pytest.mark.parametrize("what", CONFIG_FILES)
def test_a_config_file_that_is(tmp_path, refused, what):
    data, message = CONFIG_FILES[what]
    (tmp_path / "mine.py").write_bytes(data)
    line = refused("--config", "mine.py", "--workdir", "run")
    assert line.startswith("mine.py")
    assert message in line


def test_a_config_file_that_is_not_there(tmp_path, refused):
    (tmp_path / "mine.py").write_text("")
    (tmp_path / "folder.py").mkdir()
    assert refused("--config", "mien.py") == "no config file mien.py; did you mean mine.py?"
    assert refused("--config", "folder.py").startswith("no config file folder.py")
    assert refused("--config", "").startswith("no config file .")


CONFIG_JSON = {
    "null": (b"null", "expected a section of options, found None"),
    "a list": (b"[1, 2]", "expected a section of options, found [1, 2]"),
    "a number": (b"3", "expected a section of options, found 3"),
    "a section that is a list": (b'{"data": []}', "data: expected a section of options, found []"),
    "a section that is null": (b'{"reg": null}', "reg: expected a section of options, found None"),
    "a section too deep": (b'{"data": {"name": {"a": 1}}}', "data.name must be a string, found {"),
    "another key": (b'{"dtaa": {}}', "unknown option 'dtaa': did you mean 'data."),
    "another key within": (b'{"optim": {"lrr": 1}}', "unknown option 'optim.lrr': did you mean 'o"),
    "an odd key": (b'{"": {"": 1}}', "unknown option ''"),
    "a key of two lines": (b'{"a\\nb\\u2028c": 1}', r"unknown option 'a\nb\u2028c'"),
    "a wrong type": (b'{"epochs": "3"}', "epochs must be an integer, found '3'"),
    "a truth for a number": (b'{"optim": {"lr": true}}', "optim.lr must be a number, found True"),
    "no number": (b'{"optim": {"lr": NaN}}', "optim.lr must be finite, found nan"),
    "infinity": (b'{"optim": {"lr": 1e999}}', "optim.lr must be finite, found inf"),
    "a huge integer": (b'{"optim": {"lr": 1' + b"0" * 400 + b"}}", "optim.lr must be finite"),
    "a huge count": (
        b'{"seed": 1' + b"0" * 400 + b"}",
        "seed must be \u2264 4294967295, found 1000",
    ),
    "too many digits": (b'{"seed": ' + b"9" * 5000 + b"}", "4300 digits"),
    "a list in a list": (
        b'{"optim": {"milestones": [[0.5]]}}',
        "optim.milestones must be a number",
    ),
    "half a file": (b'{"epochs": 3,', "not JSON"),
    "two values": (b"{} {}", "not JSON"),
    "no text": (b"\xff\xfe{}", "not JSON"),
    "zeros": (bytes(100), "not JSON"),
    "nothing": (b"", "not JSON"),
    "brackets": (b"[" * 100_000, "sections within sections"),
    "nested sections": (b'{"data":' * 100_000, "sections within sections"),
}


@pytest.mark.parametrize("what", CONFIG_JSON)
@pytest.mark.parametrize("arguments", [[], ["--eval-only"], ["--export", "x"], sets("epochs=1")])
def test_a_config_json_that_is(tmp_path, refused, what, arguments):
    data, message = CONFIG_JSON[what]
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_bytes(data)
    line = refused("--workdir", "run", *arguments)
    assert message in line
    assert len(line) < 600


def test_same_run_names_the_first_option_that_differs():
    run = Config()
    assert (
        sections.same_run(run, sections.from_dict(json.loads(json.dumps(sections.to_dict(run)))))
        is None
    )
    where = DistributedConfig(coordinator="a:1", processes=2, process=1, heartbeat=5)
    moved = sections.override(sections.override(run, "data.cache_dir=x"), "data.device_gb=0")
    assert sections.same_run(run, dataclasses.replace(moved, distributed=where)) is None
    for key, value in KEYS.items():
        if key.startswith("distributed.") or key in sections.WHERE:
            continue
        changed = sections.from_dict(nested(key, another(key, value)))
        phrase = sections.same_run(run, changed)
        assert phrase.startswith(f"{key} is {value!r} in the saved config, ")
    both = sections.override(sections.override(run, "seed=3"), "epochs=4")
    assert sections.same_run(both, run) == "seed is 3 in the saved config, 0 in the given one"


def another(key, value):
    """A valid value that is not the given one."""
    if choices := rules(key).get("choices"):
        return next(choice for choice in choices if choice != value)
    if isinstance(value, bool):
        return not value
    return {str: "x", int: 7, float: 0.25, tuple: [0.25]}[type(value)]


# Odd names.

ODD = "Bilder & Läufe (ü) 走 %s 'q'"


@pytest.fixture
def odd(tmp_path):
    """A folder with an odd name, and in it images of two classes, a tree and a config file."""
    image = pytest.importorskip("PIL.Image")
    root = tmp_path / ODD
    for i, name in enumerate(("rote Blüten", "blaue")):
        (root / "images" / name).mkdir(parents=True)
        for shade in (0, 60, 120):
            picture = image.new("RGB", (32, 32), (shade, i * 99, 9))
            picture.save(root / "images" / name / f"ä {shade}.png")
    (root / "der Baum.csv").write_text("class,parent\nrote Blüten,ö\nblaue,Ü\n", "utf-8")
    (root / "mein Versuch.py").write_text(
        "from dh2l_jax.training.config import Config, DataConfig, ModelConfig, RegConfig\n\n\n"
        "def get_config():\n"
        "    return Config(\n"
        "        epochs=1,\n"
        "        batch_size=2,\n"
        "        eval_batch_size=2,\n"
        "        model=ModelConfig(name='resnet8', head='plain'),\n"
        "        reg=RegConfig(lambda_e=0),\n"
        "        data=DataConfig(\n"
        "            name='folder',\n"
        f"            data_dir={str(root / 'images')!r},\n"
        f"            csv={str(root / 'der Baum.csv')!r},\n"
        f"            cache_dir={str(root / 'der Speicher')!r},\n"
        "        ),\n"
        "    )\n",
        "utf-8",
    )
    return root


def test_a_run_among_odd_names(odd, capsys):
    workdir, profile = odd / "der Lauf", odd / "das Profil"
    arguments = ["--config", odd / "mein Versuch.py", "--workdir", workdir, "--profile", profile]
    assert train.main([str(word) for word in arguments]) == 0
    shown = capsys.readouterr().out
    assert f"results in {workdir}/" in shown
    result = json.loads((workdir / "result.json").read_text("utf-8"))
    assert result["nodes"] == [2, 2]
    assert (workdir / "confusion.csv").read_text("utf-8").splitlines()[0] == ",rote Blüten,blaue"
    assert [path.name for path in (odd / "der Speicher").iterdir()]
    assert list(profile.rglob("*.xplane.pb"))
    assert train.main(["--workdir", str(workdir)]) == 0
    assert "finished already" in capsys.readouterr().out


def test_an_export_among_odd_names(odd):
    load_file = pytest.importorskip("safetensors.numpy").load_file
    run = sections.load(odd / "mein Versuch.py")
    run = sections.override(run, "model.name=resnet18")
    workdir, target = odd / "der Lauf", odd / "die Gewichte.safetensors"
    workdir.mkdir()
    (workdir / "config.json").write_text(json.dumps(sections.to_dict(run)), "utf-8")
    shapes = loop.build(run).init(abstract=True)
    checkpoint.save(workdir, jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), shapes))
    assert train.main(["--export", str(target), "--workdir", str(workdir)]) == 0
    assert load_file(target)["fc.weight"].shape == (2, 512)
