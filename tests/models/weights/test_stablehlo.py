"""A program in StableHLO answers as its network does, where there is no package but JAX."""

import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.runs import SIDE, make_run
from support.tiny import with_head_of

from dh2l_jax.__main__ import main
from dh2l_jax.data.batches.augment import normalize
from dh2l_jax.hierarchy import Hierarchy
from dh2l_jax.models import create
from dh2l_jax.models.factory import HEADS
from dh2l_jax.models.weights import export_stablehlo
from dh2l_jax.training.finished.predictor import Predictor

ROOT = Path(__file__).parents[3]
TREE = Hierarchy.from_paths(
    {"gull": "animal/bird", "crow": "animal/bird", "cat": "animal", "car": ""}
)
MEAN, STD = np.float32([0.4, 0.5, 0.6]), np.float32([0.2, 0.25, 0.3])
SHAPE = (8, 8, 3)
PIXELS = np.random.default_rng(0).integers(0, 256, (5, *SHAPE)).astype(np.uint8)
# What jax requires, and flatbuffers.
ALLOWED = ("jax", "jaxlib", "flatbuffers", "numpy", "ml_dtypes", "opt_einsum", "scipy")
ALONE = f"""
import sys
from importlib.machinery import BuiltinImporter, FrozenImporter, PathFinder


class Alone:
    @staticmethod
    def find_spec(name, path=None, target=None):
        top = name.partition(".")[0]
        standard = top in sys.stdlib_module_names or top.startswith("_sysconfigdata")
        if standard or top in {ALLOWED!r}:
            return PathFinder.find_spec(name, path, target)


sys.meta_path[:] = BuiltinImporter, FrozenImporter, Alone
import numpy as np
for name in sys.argv[1:]:
    pixels = np.load("pixels.npy")
    code = PAGE.replace("mine.stablehlo", name)
    exec(code.replace("np.zeros((5, *facts['size']), np.uint8)", "pixels"))
    few = program.call(pixels[:1])
    np.savez(name + ".npz", one=few["logits"], **answer)
print(*sorted({{name.partition(".")[0] for name in sys.modules}}))
"""


def page():
    """The lines of the site that load a file."""
    text = (ROOT / "docs/guide/export.md").read_text("utf-8")
    (code,) = re.findall(r"```python\n(import json, zipfile\n.*?)```", text, re.DOTALL)
    return code.replace('facts["size"]', "facts['size']")


def alone(folder, *names):
    """Loads files by the page's lines in a process that has JAX and flatbuffers alone."""
    script = f"PAGE = {page()!r}\n{ALONE}"
    command = [sys.executable, "-c", script, *names]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert not result.returncode, result.stderr
    loaded = set(result.stdout.splitlines()[-1].split())
    assert {"jax", "flatbuffers"} <= loaded
    assert not loaded & {"dh2l_jax", "flax", "optax", "orbax", "tensorflow_datasets", "rich"}
    return [dict(np.load(folder / f"{name}.npz")) for name in names]


def evaluated(network, variables):
    """The logits, with the weights as constants, as the program has them."""
    return jax.jit(lambda x: network.apply(variables, normalize(x, MEAN, STD), train=False))(PIXELS)


def random_variables(network):
    """Nothing is compiled for them."""
    generator = np.random.default_rng(1)
    like = jax.eval_shape(
        lambda: network.init(jax.random.key(0), jnp.zeros((1, *SHAPE)), train=False)
    )
    filled = jax.tree.map(lambda x: generator.normal(size=x.shape).astype(x.dtype), like)
    return {**filled, "batch_stats": jax.tree.map(np.abs, filled["batch_stats"])}


def test_every_head_answers_alike_where_there_is_jax_alone(tmp_path):
    """A network of ours as it is, and each head on a tiny one."""
    networks = {"resnet8": create("resnet8", num_classes=4, shortcut="B")}
    networks["plain"] = with_head_of(networks["resnet8"])
    for head in HEADS:
        networks[head] = with_head_of(create("resnet8", hierarchy=TREE, head=head))
    np.save(tmp_path / "pixels.npy", PIXELS)
    expected = {}
    for name, network in networks.items():
        variables = random_variables(network)
        scale = {"mean": MEAN, "std": STD, "temperature": 170.0}
        about = {"classes": TREE.names(3), "size": SHAPE}
        export_stablehlo(tmp_path / name, network, variables, SHAPE, **scale, metadata=about)
        expected[name] = np.asarray(evaluated(network, variables))
    for name, found in zip(networks, alone(tmp_path, *networks), strict=True):
        scale = np.abs(expected[name]).max()
        assert np.ptp(expected[name], axis=1).min() > 0.01 * scale, name
        for answer, logits in (
            (found["logits"], expected[name]),
            (found["one"], expected[name][:1]),
        ):
            np.testing.assert_allclose(answer, logits, rtol=0, atol=2e-6 * scale, err_msg=name)
        z = found["logits"].astype(np.float64) / 170
        soft = np.exp(z - z.max(axis=1, keepdims=True))
        soft /= soft.sum(axis=1, keepdims=True)
        np.testing.assert_allclose(found["probabilities"], soft, rtol=1e-3, atol=1e-6)


def test_export_of_a_run(tmp_path, capsys):
    """By the command, in both formats: what travels along, and probabilities as predicted."""
    from safetensors import safe_open

    workdir, pixels = tmp_path / "run", PIXELS[..., :SIDE, :SIDE, :]
    make_run(workdir, TREE)
    for name in ("a.safetensors", "mine.stablehlo"):
        assert main(["export", str(workdir), str(tmp_path / name)]) == 0
        assert capsys.readouterr().out.endswith(f"written: {tmp_path / name}\n")
    with zipfile.ZipFile(tmp_path / "mine.stablehlo") as file:
        content = file.read("program.bin")
        facts = json.loads(file.read("facts.json"))
    with safe_open(tmp_path / "a.safetensors", "numpy") as file:
        texts = file.metadata()
    assert {
        key: value if value == texts[key] else json.loads(texts[key])
        for key, value in facts.items()
    } == facts
    assert Hierarchy.from_paths({path[-1]: path[:-1] for path in facts["tree"]}) == TREE
    assert (facts["size"], facts["crop"], facts["resize"]) == ([SIDE, SIDE, 3], SIDE, 0)
    assert (facts["mean"], facts["std"], facts["decision"]) == ([0.5] * 3, [0.25] * 3, "argmax")
    assert b".py" not in content  # no path of the machine that wrote it
    predictor = Predictor.load(workdir)
    assert facts["temperature"] == predictor.temperature != 1
    found = jax.export.deserialize(bytearray(content)).call(pixels)["probabilities"]
    for row, told in zip(np.asarray(found), predictor(pixels, best=4), strict=True):
        assert dict(told.best) == pytest.approx(
            dict(zip(facts["classes"], row, strict=True)), rel=1e-5
        )


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("run a.onnx", "a.onnx: expected a name that ends in .safetensors or .stablehlo"),
        ("nowhere a.stablehlo", "nowhere holds no run"),
        ("run", "the following arguments are required: FILE"),
        ("run missing/a.stablehlo", "missing/a.stablehlo cannot be written: No such file"),
    ],
)
def test_what_is_refused(tmp_path, monkeypatch, capsys, words, expected):
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "run", Hierarchy.flat(2))
    assert main(["export", *words.split()]) == 2
    captured = capsys.readouterr()
    assert expected in captured.err
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize("package", ["flatbuffers", "safetensors"])
def test_what_is_missing_is_named(tmp_path, monkeypatch, capsys, package):
    make_run(tmp_path / "run", Hierarchy.flat(2))
    for module in (package, f"{package}.numpy"):
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, "jax._src.export.serialization", raising=False)
    name = {"flatbuffers": "a.stablehlo", "safetensors": "a.safetensors"}[package]
    assert main(["export", str(tmp_path / "run"), str(tmp_path / name)]) == 2
    assert f"no {package}: pip install 'dh2l_jax[export]'" in capsys.readouterr().err
