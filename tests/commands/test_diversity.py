"""`dh2l diversity`: every kind of file gives the same figures; what can't be known is asked for."""

import json

import jax
import numpy as np
import pytest
from matplotlib.image import imread
from support.pth_files import zip_file

import dh2l_jax as dh2l
from dh2l_jax.__main__ import main
from dh2l_jax.models.weights.formats import write_safetensors
from dh2l_jax.regularizers.params.diversity import figures
from dh2l_jax.training.run import checkpoint
from dh2l_jax.training.step.state import TrainState

GENERATOR = np.random.default_rng(0)
CONV = GENERATOR.normal(size=(12, 4, 3, 3)).astype(np.float32)  # (out, in, kh, kw)
DENSE = GENERATOR.normal(size=(7, 12)).astype(np.float32)  # (out, in)
DENSE[5] = DENSE[2]
TORCHS = {"layer1.0.conv1.weight": CONV, "layer1.0.bn1.weight": np.ones(12, np.float32)}
TORCHS |= {"fc.weight": DENSE, "fc.bias": np.zeros(7, np.float32)}
OTHERS = {"a.conv.weight": CONV, "a.linear.weight": DENSE, "a.linear.bias": np.zeros(7)}
FLAX = {"conv/kernel": CONV.transpose(2, 3, 1, 0), "dense/kernel": DENSE.T, "dense/bias": DENSE[0]}
FLAX = {name: np.ascontiguousarray(value) for name, value in FLAX.items()}
HAIKU = {name.replace("kernel", "w"): value for name, value in FLAX.items()}


def run(capsys, *words):
    code = main(["diversity", *map(str, words)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def save(path, arrays):
    if path.suffix == ".pth":
        path.write_bytes(zip_file(dict(arrays)))
    elif path.suffix == ".npz":
        np.savez(path, **arrays)
    else:
        write_safetensors(path, arrays, {})
    return path


@pytest.mark.parametrize(
    ("name", "arrays", "words"),
    [
        ("a.pth", TORCHS, []),
        ("a.pth", OTHERS, []),
        ("a.safetensors", TORCHS, []),
        ("a.npz", TORCHS, []),
        ("a.safetensors", OTHERS, ["--layout", "torch"]),
        ("a.npz", FLAX, []),
        ("a.safetensors", FLAX, ["--layout", "flax"]),
        ("a.npz", HAIKU, []),
        ("a.npz", HAIKU, ["--layout", "haiku"]),
        (
            "a.npz",
            OTHERS,
            ["--rule", "conv => o i h w -> o (i h w)", "--rule", "linear.weight => o i -> o i"],
        ),
    ],
)
def test_every_kind_of_file_gives_the_figures_of_its_vectors(capsys, tmp_path, name, arrays, words):
    code, out, err = run(capsys, save(tmp_path / name, arrays), "--json", *words)
    assert (code, err) == (0, "")
    layers = json.loads(out)["layers"]
    filters = CONV.transpose(0, 2, 3, 1).reshape(12, -1) if arrays in (FLAX, HAIKU) else CONV
    expected = {"conv": figures(filters.reshape(12, -1)), "dense": figures(DENSE)}
    assert len(layers) == 2
    for path, found in layers.items():
        row = expected["conv" if "conv" in path else "dense"]
        for key in ("n", "d", "matrices", "duplicates", "dead"):
            assert found[key] == getattr(row, key)
        for key in ("mean", "smallest", "nearest", "signs", "rank"):
            np.testing.assert_allclose(found[key], getattr(row, key), rtol=1e-6, err_msg=key)
            np.testing.assert_allclose(found["z"][key], row.z[key], rtol=1e-4, atol=1e-6)
        assert sum(found["histogram"]) == row.n * (row.n - 1) // 2


def test_the_table_marks_layers_and_says_what_was_left_out(capsys, tmp_path):
    twins = np.concatenate([CONV[:6], CONV[:6]])
    path = save(tmp_path / "a.pth", TORCHS | {"layer1.0.conv2.weight": twins})
    code, out, _ = run(capsys, path)
    assert code == 0
    lines = {line.split()[0]: line for line in out.splitlines() if line.strip()}
    assert lines["layer"].split()[1:5] == ["n", "d", "mean", "smallest"]
    assert lines["layer1.0.conv2.weight"].endswith("6     0  ← less diverse")
    assert "less" not in lines["layer1.0.conv1.weight"] + lines["fc.weight"]
    assert " 0.00 (" in lines["fc.weight"]  # duplicates are at 0°, whatever training clips
    assert "1 of 3 layers far less diverse than chance" in out
    assert "left out: 1 a bias; 1 one axis: no vectors" in out


def test_a_run_is_read_through_its_checkpoint(capsys, tmp_path):
    tree = dh2l.Hierarchy.two_level([0, 0, 1])
    model = dh2l.models.create("resnet8", hierarchy=tree)
    images = np.zeros((1, 8, 8, 1), np.float32)
    variables = jax.jit(lambda: model.init(jax.random.key(0), images, train=False))()
    zero = np.zeros((), np.int32)
    state = TrainState(
        zero + 3,
        variables["params"],
        variables["batch_stats"],
        {"trace": variables["params"]},
        np.zeros(2, np.uint32),
        np.ones((), np.float32),
    )
    checkpoint.save(tmp_path, state)
    (tmp_path / "config.json").write_text("{}")
    code, out, err = run(capsys, tmp_path, "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)["layers"]
    for path, W in dh2l.kernel_matrices(variables["params"]).items():
        np.testing.assert_allclose(found[path]["mean"], figures(np.asarray(W)).mean, rtol=1e-6)
    surface = figures(np.asarray(variables["params"]["head"]["surface_2"]))
    np.testing.assert_allclose(found["head/surface_2"]["smallest"], surface.smallest)
    assert len(found) == 9


def test_the_plot_has_a_panel_a_layer(capsys, tmp_path):
    path = save(tmp_path / "a.pth", TORCHS)
    assert run(capsys, path, "--plot", tmp_path / "angles.png")[0] == 0
    picture = imread(tmp_path / "angles.png")
    assert (picture[..., :3].std(axis=(0, 1)) > 0.05).all()
    code, _, err = run(capsys, path, "--plot", tmp_path / "missing" / "angles.png")
    assert code == 4
    assert err.startswith("dh2l diversity: error: cannot write")


@pytest.mark.parametrize(
    ("name", "arrays", "words", "message"),
    [
        (
            "a.safetensors",
            OTHERS,
            [],
            "'a.conv.weight' of shape (12, 4, 3, 3) can be read as 'o i kh kw -> o (i kh kw)' (a "
            "convolution), 'i o kh kw -> o (i kh kw)' (a transposed convolution of torch) (and 1 "
            "more leaves): add --layout torch|flax|haiku, or "
            r"--rule '^a\.conv\.weight$ => o i kh kw -> o (i kh kw)'",
        ),
        (
            "a.npz",
            {"attn/query/kernel": np.ones((5, 4, 3))},
            [],
            "--rule '^attn/query/kernel$ => i h d -> (h d) i'",
        ),
        ("a.npz", FLAX, ["--layout", "torch"], "no array is a weight in the layout 'torch'"),
        ("a.npz", FLAX, ["--rule", "kernel"], "--rule: expected 'PATTERN => AXES', found 'kernel'"),
        ("a.npz", FLAX, ["--rule", "kernle => i o -> o i"], "unknown path pattern 'kernle'"),
        ("a.npz", FLAX, ["--rule", "conv => i o -> o i"], "names 2 axes, 'i o -> o i', 'conv/ke"),
        ("a.npz", FLAX, ["--layout", "keras"], "invalid choice: 'keras'"),
        ("a.npz", {"a/kernel": np.full((2, 2), np.nan)}, [], "a/kernel: 2 of 2 vectors are not fi"),
        ("a.npz", {"a/kernel": np.array([None])}, [], "no .npz file of numbers, or damaged"),
    ],
)
def test_what_cannot_be_known_ends_with_one_line(capsys, tmp_path, name, arrays, words, message):
    code, out, err = run(capsys, save(tmp_path / name, arrays), *words)
    assert (code, out) == (2, "")
    assert message in err
    assert len(err.splitlines()) == 1


def test_files_that_are_none(capsys, tmp_path):
    (tmp_path / "a.npz").write_bytes(b"no zip")
    assert run(capsys, tmp_path / "a.npz")[0] == 2
    for name in ("b.npz", "runs/gone"):
        code, _, err = run(capsys, tmp_path / name)
        assert (code, "no file of weights and no folder of a run" in err) == (2, True)
    code, _, err = run(capsys, tmp_path)
    assert code == 2
    assert "holds no run" in err
    (tmp_path / "config.json").write_text("{}")
    code, _, err = run(capsys, tmp_path)
    assert code == 2
    assert "no checkpoint in" in err
