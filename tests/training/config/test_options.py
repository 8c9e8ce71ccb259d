"""Every option there is: its key, type, range, text and sentence; files that hold a config."""

import dataclasses
import json
import re

import pytest

from dh2l_jax.training.config import (
    Config,
    DistributedConfig,
    OptimConfig,
    from_dict,
    load,
    makes_another_run,
    options,
    override,
    same_run,
    to_dict,
)
from dh2l_jax.training.run.folder import read_config

KEYS = dict(options.flat(Config()))


def nested(key, value):
    """The values of a config that sets one option."""
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def section_of(key):
    """The section of an option."""
    section = Config()
    for part in key.split(".")[:-1]:
        section = getattr(section, part)
    return type(section)


def rules(key):
    """The rule of an option: bounds and choices."""
    fields = dataclasses.fields(section_of(key))
    return {field.name: field.metadata for field in fields}[key.rpartition(".")[2]]


def another(key):
    """A valid value that is not the default."""
    value = KEYS[key]
    if choices := rules(key).get("choices"):
        return next(choice for choice in choices if choice != value)
    if isinstance(value, bool):
        return not value
    if value == ():
        return ("a => b * 1", "c,d => e(f) * 2 @ g -> h")
    return {str: "x", int: 7, float: 0.25, tuple: (0.25,)}[type(value)]


def misspelt(key):
    """Slips of the finger in the last part of a key: a letter twice, left out, or swapped."""
    start = key.rfind(".") + 1
    for i in range(start, len(key)):
        yield key[:i] + key[i] + key[i:]
        yield key[:i] + key[i + 1 :]
        yield key[:i] + key[i : i + 2][::-1] + key[i + 2 :]


def out_of_range(key):
    """(text, what it must be) beyond every bound of an option."""
    rule = rules(key)
    is_float = isinstance(KEYS[key], float | tuple) and KEYS[key] != ()
    tiny = 1e-6 if is_float else 1
    beyond = {"low": ("≥", -tiny), "high": ("≤", tiny), "above": (">", 0), "below": ("<", 0)}
    for name, (sign, step) in beyond.items():
        if name in rule:
            yield str(rule[name] + step), f"must be {sign} {rule[name]}, found "
    if is_float:
        yield from ((text, "must be finite, found ") for text in ("nan", "inf", "-inf"))
        yield from ((text, "of a size that float32 holds") for text in ("1e39", "1e-39"))
    yield from ((f"{choice}x", f"did you mean '{choice}'") for choice in rule.get("choices", ()))


def override_first(assignment):
    return override(Config(), assignment)


@pytest.mark.parametrize("key", KEYS)
def test_an_option(key):
    """Its key misspelt, values of other types, beyond its bounds, and its own texts."""
    last = key.rpartition(".")[2]
    slips = {other: set(misspelt(other)) for other in KEYS}
    typos = sorted(slips.pop(key) - set(KEYS))
    assert len(typos) >= 5
    for typo in typos:
        alike = [k for k in KEYS if typo in slips.get(k, ()) or sorted(typo) == sorted(k)]
        near = "|".join([key, *alike])
        for read, given in ((override_first, f"{typo}=1"), (from_dict, nested(typo, 1))):
            with pytest.raises(ValueError, match=rf"did you mean '({near})'"):
                read(given)
    if last not in KEYS:
        with pytest.raises(ValueError, match=rf"^unknown option '{last}': .* '\w+\.{last}'\?$"):
            override(Config(), f"{last}=1")

    must = rf"^{key} must be (a |an |true or false).*, found "
    wrong = {bool: "maybe", int: 1.5, float: "fast", str: 3, tuple: 0.5}[type(KEYS[key])]
    for value in (wrong, None, [[]], {"a": 1}, b"1", [1, "2"]):
        with pytest.raises(ValueError, match=must):
            from_dict(nested(key, value))
    if not isinstance(KEYS[key], str) and KEYS[key] != ():
        for text in ("", "x", "1,x", "0x10", "--1", "None"):
            if text or not isinstance(KEYS[key], tuple):  # no text is an empty list
                with pytest.raises(ValueError, match=f"{must}'"):
                    override(Config(), f"{key}={text}")
    for text, message in out_of_range(key):
        with pytest.raises(ValueError, match=rf"^{key} must be .*") as error:
            override(Config(), f"{key}={text}")
        assert message in str(error.value)

    for value in (KEYS[key], another(key)):
        changed = override(Config(), f"{key}={options.text_of(value)}")
        assert dict(options.flat(changed)) == KEYS | {key: value}
        assert from_dict(json.loads(json.dumps(to_dict(changed)))) == changed
    assert options.sentences(section_of(key))[last].endswith(".")


def test_every_number_has_a_bound_or_says_why():
    """Seconds, counts and weights are not negative; ε may point either way."""
    free = [
        key
        for key, value in KEYS.items()
        if not isinstance(value, str | bool)
        and value != ()
        and not {"low", "above"} & set(rules(key))
    ]
    assert free == ["model.epsilon"]


def test_texts_and_values():
    changed = override(override(Config(), "optim.milestones=(0.3, 0.6)"), "data.flip=no")
    assert changed.optim.milestones == (0.3, 0.6)
    assert changed.data.flip is False
    with pytest.raises(ValueError, match=r"lr must be a number, found '0\.1'"):
        OptimConfig(lr="0.1")
    with pytest.raises(ValueError, match="epochs must be an integer, found True"):
        Config(epochs=True)


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("optim=1", "unknown option 'optim'"),
        ("optim.lr.x=1", "unknown option 'optim.lr.x'"),
        ("optim.lr", "expected key=value, found 'optim.lr'"),
        ("optim.milestones=half", "optim.milestones must be a list of numbers"),
    ],
)
def test_an_assignment_that_is_none(assignment, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        override(Config(), assignment)


# One run or another.


@pytest.mark.parametrize("key", KEYS)
def test_same_run_names_the_option_that_differs(key):
    changed = from_dict(nested(key, another(key)))
    phrase = same_run(Config(), changed)
    if makes_another_run(key):
        assert phrase.startswith(f"{key} is {KEYS[key]!r} in the saved config, ")
    else:
        assert phrase is None


def test_what_makes_another_run():
    run = Config()
    assert same_run(run, from_dict(json.loads(json.dumps(to_dict(run))))) is None
    where = DistributedConfig(coordinator="a:1", processes=2, process=1, heartbeat=5)
    moved = override(override(run, "data.cache_dir=x"), "data.device_gb=0")
    assert same_run(run, dataclasses.replace(moved, distributed=where)) is None
    both = override(override(run, "seed=3"), "epochs=4")
    assert same_run(both, run) == "seed is 3 in the saved config, 0 in the given one"
    # Data are known by their fingerprint: where they lie is no matter.
    for name in ("cifar100", "folder"):
        places = ({"name": name, "data_dir": path, "csv": path} for path in "ab")
        a, b = (from_dict({"data": place}) for place in places)
        assert same_run(a, b) is None
    a, b = (from_dict({"model": {"pretrained": f"{path}/r.pth"}}) for path in "ab")
    assert same_run(a, b) is None
    assert "model.pretrained is 'r.pth'" in same_run(a, run)


# Files.

IMPORT = b"from dh2l_jax.training.config import Config\n"
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
    "no text": (bytes(range(1, 256)) * 4, ": SyntaxError: "),
    "zeros": (bytes(1000), ": "),
    "Latin-1": ("x = 'Größe'\n".encode("latin-1"), ": SyntaxError: "),
    "nothing": (b"", ": expected a function get_config(), found none"),
    "a value": (b"get_config = 3\n", ": expected a function get_config(), found none"),
    "a number": (b"def get_config():\n    return 3\n", "must return a Config, found int"),
    "another result": (b"def get_config():\n    return {}\n", "must return a Config, found dict"),
    "the class": (IMPORT + b"get_config = lambda: Config\n", "must return a Config, found type"),
    "a wrong section": (
        IMPORT + b"get_config = lambda: Config(data=3)\n",
        ", line 2: ValueError: data must be a DataConfig, found 3",
    ),
    "a wrong keyword": (
        IMPORT + b"get_config = lambda: Config(epoch=3)\n",
        ", line 2: TypeError: Config.__init__() got an unexpected keyword argument 'epoch'",
    ),
}


@pytest.mark.parametrize("what", CONFIG_FILES)
def test_a_config_file_that_is(tmp_path, what):
    data, message = CONFIG_FILES[what]
    (tmp_path / "mine.py").write_bytes(data)
    with pytest.raises((ValueError, TypeError)) as error:
        load(tmp_path / "mine.py")
    assert str(error.value).startswith(str(tmp_path / "mine.py"))
    assert message in str(error.value)
    assert len(str(error.value).splitlines()) == 1


CONFIG_JSON = {
    "null": (b"null", "expected a section of options, found None"),
    "a list": (b"[1, 2]", "expected a section of options, found [1, 2]"),
    "a number": (b"3", "expected a section of options, found 3"),
    "a section that is a list": (b'{"data": []}', "data: expected a section of options, found []"),
    "a section that is null": (b'{"reg": null}', "reg: expected a section of options, found None"),
    "a section too deep": (b'{"data": {"name": {"a": 1}}}', "data.name must be a string, found {"),
    "another key": (b'{"dtaa": {}}', "unknown option 'dtaa': did you mean 'data."),
    "a key misspelt": (b'{"epohcs": 1}', "unknown option 'epohcs': did you mean 'epochs'?"),
    "another key within": (b'{"optim": {"lrr": 1}}', "unknown option 'optim.lrr': did you mean 'o"),
    "an odd key": (b'{"": {"": 1}}', "unknown option ''"),
    "a key of two lines": (b'{"a\\nb\\u2028c": 1}', r"unknown option 'a\nb\u2028c'"),
    "a wrong type": (b'{"epochs": "3"}', "epochs must be an integer, found '3'"),
    "a truth for a number": (b'{"optim": {"lr": true}}', "optim.lr must be a number, found True"),
    "no number": (b'{"optim": {"lr": NaN}}', "optim.lr must be finite, found nan"),
    "infinity": (b'{"optim": {"lr": 1e999}}', "optim.lr must be finite, found inf"),
    "a huge integer": (b'{"optim": {"lr": 1' + b"0" * 400 + b"}}", "optim.lr must be finite"),
    "a huge count": (b'{"seed": 1' + b"0" * 400 + b"}", "seed must be ≤ 4294967295, found 1000"),
    "too many digits": (b'{"seed": ' + b"9" * 5000 + b"}", "4300 digits"),
    "a list in a list": (b'{"optim": {"milestones": [[0.5]]}}', "milestones must be a number"),
    "half a file": (b'{"epochs": 3,', "not JSON"),
    "one bracket": (b"{", "not JSON"),
    "two values": (b"{} {}", "not JSON"),
    "no text": (b"\xff\xfe{}", "not JSON"),
    "zeros": (bytes(100), "not JSON"),
    "nothing": (b"", "not JSON"),
    "brackets": (b"[" * 100_000, "sections within sections"),
    "nested sections": (b'{"data":' * 100_000, "sections within sections"),
}


@pytest.mark.parametrize("what", CONFIG_JSON)
def test_a_config_json_that_is(tmp_path, what):
    data, message = CONFIG_JSON[what]
    (tmp_path / "config.json").write_bytes(data)
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        read_config(tmp_path)
    assert len(str(error.value).splitlines()) == 1
    assert len(str(error.value)) < 600
