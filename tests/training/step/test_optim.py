"""Every option of the optimiser: steps beside NumPy's in float64, written from the papers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support.tiny import with_head_of

from dh2l_jax.data.batches.augment import normalize
from dh2l_jax.data.batches.feed import CropOptions, Resident
from dh2l_jax.data.batches.mixing import mix
from dh2l_jax.data.batches.operations import randaugment
from dh2l_jax.data.datasets import Dataset
from dh2l_jax.hierarchy import Hierarchy
from dh2l_jax.models import create
from dh2l_jax.regularizers.params.leaves import named
from dh2l_jax.training import loop
from dh2l_jax.training.config import Config, ModelConfig, OptimConfig, RegConfig
from dh2l_jax.training.run import checkpoint
from dh2l_jax.training.step import optim
from dh2l_jax.training.step.objective import make_objective
from dh2l_jax.training.step.state import make_init
from dh2l_jax.training.step.steps import AUGMENT, MIX, draw_key, make_train_step

SHAPES = {
    "head": {"kernel": (4, 3)},
    "neck": {"kernel": (4, 4)},
    "stem": {"bias": (4,), "kernel": (3, 3, 2, 4)},
}
RATES = (0.5, 0.4, 0.2, 0.15, 0.1, 0.05)


def random(seed):
    """A tree of weights or gradients."""
    generator = np.random.default_rng(seed)
    return jax.tree.map(
        lambda shape: generator.normal(size=shape).astype(np.float32),
        SHAPES,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def adam(g, memory, t, eps=1e-8, nesterov=False):
    """Kingma and Ba 2015; Dozat 2016."""
    m = memory["m"] = 0.9 * memory["m"] + 0.1 * g
    v = memory["v"] = 0.999 * memory["v"] + 0.001 * g**2
    mean = m / (1 - 0.9**t)
    if nesterov:
        mean = 0.9 * m / (1 - 0.9 ** (t + 1)) + 0.1 * g / (1 - 0.9**t)
    return mean / (np.sqrt(v / (1 - 0.999**t)) + eps)


def muon(g, memory, t):
    """Jordan 2024: Nesterov's momentum, made orthogonal by five steps of Newton and Schulz."""
    m = memory["m"] = 0.95 * memory["m"] + 0.05 * g
    m = 0.95 * m / (1 - 0.95 ** (t + 1)) + 0.05 * g / (1 - 0.95**t)
    X = m.reshape(-1, m.shape[-1]).T
    X /= np.sqrt(np.sum(X**2))
    for _ in range(5):
        A = X @ X.T
        X = 3.4445 * X + (-4.775 * A + 2.0315 * A @ A) @ X
    return X.T.reshape(m.shape) * np.sqrt(max(1, X.shape[0] / X.shape[1]))


def direction(options, path, g, w, memory, t):
    """What is multiplied by the learning rate."""
    decay = 0.0 if path.endswith("bias") else options.weight_decay * w
    if options.name == "sgd":
        g = g + decay
        v = memory["m"] = options.momentum * memory["m"] + g
        return g + options.momentum * v if options.nesterov else v
    if options.name == "adamw":
        return adam(g, memory, t) + decay
    if options.name == "lamb":
        step = adam(g, memory, t, eps=1e-6) + decay
        return np.linalg.norm(w) / np.linalg.norm(step) * step
    if options.name == "lion":
        step = np.sign(0.9 * memory["m"] + 0.1 * g)
        memory["m"] = 0.99 * memory["m"] + 0.01 * g
        return step + decay
    if path in ("stem/kernel", "neck/kernel"):
        return muon(g, memory, t) + decay
    return adam(g, memory, t, nesterov=True) + decay


def by_hand(options, params, gradients):
    """The weights after so many steps."""
    params = {path: np.asarray(w, np.float64) for path, w in named(params)}
    still = {path for path in params if any(word in path for word in options.freeze)}
    memory, k = {path: {"m": 0.0, "v": 0.0} for path in params}, options.accumulate
    for t in range(1, 1 + len(gradients) // k):
        lot, rate = [dict(named(tree)) for tree in gradients[k * (t - 1) : k * t]], RATES[k * t - 1]
        mean = {path: sum(tree[path].astype(float) for tree in lot) / k for path in params}
        trained = {path: g for path, g in mean.items() if path not in still}
        norm = np.sqrt(sum(np.sum(g**2) for g in trained.values()))
        shorter = min(1.0, options.clip / norm) if options.clip else 1.0
        for path, g in trained.items():
            w, factor = params[path], options.head_rate if path.startswith("head/") else 1.0
            step = direction(options, path, shorter * g, w, memory[path], t)
            params[path] = w - rate * factor * step
    return params


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"nesterov": True, "momentum": 0.8},
        {"name": "adamw"},
        {"name": "lamb"},
        {"name": "lion"},
        {"name": "muon"},
        {"clip": 0.5},
        {"clip": 1e3},
        {"head_rate": 4.0},
        {"accumulate": 2},
        {"accumulate": 2, "name": "adamw", "clip": 0.5, "freeze": ("head",)},
        {"freeze": ("stem",)},
        {"name": "muon", "clip": 2.0, "head_rate": 0.5, "freeze": ("bias", "neck")},
    ],
    ids=str,
)
def test_steps_are_those_written_by_hand(options):
    options = OptimConfig(weight_decay=0.1, **options)
    tx = optim.optimizer(options, lambda count: jnp.asarray(RATES)[count])
    expected = params = random(0)
    gradients = [random(seed) for seed in range(1, 1 + 3 * options.accumulate)]

    @jax.jit
    def run(params, gradients):
        state = tx.init(params)
        for gradient in gradients:
            updates, state = tx.update(gradient, state, params)
            params = optax.apply_updates(params, updates)
        return params

    found, expected = dict(named(run(params, gradients))), by_hand(options, params, gradients)
    assert found.keys() == expected.keys()
    for path, w in expected.items():
        np.testing.assert_allclose(found[path], w, rtol=1e-4, atol=2e-5, err_msg=path)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_running_means_weigh_every_step_once(accumulate):
    options, beta = OptimConfig(ema=0.9, accumulate=accumulate), 0.9
    values = np.random.default_rng(0).normal(size=(12, 4)).astype(np.float32)
    mean = {"w": jnp.full(4, 7.0)}
    for step, value in enumerate(values, 1):
        mean = optim.averaged(options, mean, {"w": jnp.asarray(value)}, jnp.asarray(step))
        if step < accumulate:
            np.testing.assert_array_equal(mean["w"], 7)
    counted = values[accumulate - 1 :: accumulate].astype(float)
    weights = beta ** np.arange(len(counted))[::-1]
    np.testing.assert_allclose(mean["w"], weights @ counted / weights.sum(), rtol=1e-5)


def test_a_run_with_everything_goes_on_in_every_bit(tmp_path):
    """Saved in the middle of a lot; the mean is that of the weights after each step of Muon."""
    options = OptimConfig(name="muon", clip=1.0, accumulate=2, ema=0.9, freeze=("norm",))
    pixels = np.random.default_rng(0).integers(0, 255, (8, 4, 4, 1), np.uint8)
    labels = np.arange(8, dtype=np.int32) % 3
    data = Dataset.from_splits("noise", (pixels, labels), (pixels, labels), Hierarchy.flat(3))
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    model = with_head_of(create("resnet8", num_classes=3))
    tx = optim.optimizer(options, lambda count: 0.1)
    objective = make_objective(model, data.hierarchy, RegConfig(lambda_e=0))
    feed = Resident(pixels, labels, CropOptions((4, 4), 1, True, 4), mesh)
    average = functools.partial(optim.averaged, options)
    step = make_train_step(objective, tx, data, feed, average)
    init, seed = make_init(model, tx, (4, 4, 1), mesh, ema=True), jax.random.key(0)

    def trained(state, first, last):
        order, weights = np.arange(8, dtype=np.int32), []
        for batch in feed.training(jax.random.key(0), order, first, last - first):
            state, _ = step(state, *batch)
            weights.append(np.asarray(state.params["dense"]["kernel"]))
        return state, weights

    whole, weights = trained(init(seed), 0, 5)
    np.testing.assert_array_equal(weights[1], weights[2])
    mean = (0.9 * weights[1].astype(float) + weights[3]) / 1.9
    np.testing.assert_allclose(whole.variables["params"]["dense"]["kernel"], mean, rtol=1e-5)
    half, _ = trained(init(seed), 0, 3)
    checkpoint.save(tmp_path, half)
    saved = checkpoint.restore(tmp_path, jax.eval_shape(init, seed)).state
    assert checkpoint.read_params(tmp_path).keys() == saved.params.keys()
    kernel = checkpoint.read_params(tmp_path)["dense"]["kernel"]
    np.testing.assert_array_equal(kernel, saved.ema["params"]["dense"]["kernel"])
    end, _ = trained(saved, 3, 5)
    assert jax.tree.structure(end) == jax.tree.structure(whole)
    for (path, found), expected in zip(
        jax.tree_util.tree_leaves_with_path(end), jax.tree.leaves(whole), strict=True
    ):
        assert np.asarray(found).tobytes() == np.asarray(expected).tobytes(), path


def test_a_step_on_images_that_are_varied_and_mixed():
    """Both labels count by their shares; "hits" are of the larger one."""
    pixels = np.random.default_rng(0).integers(0, 255, (8, 4, 4, 1)).astype(np.uint8)
    labels = np.arange(8, dtype=np.int32) % 3
    data = Dataset.from_splits("noise", (pixels, labels), (pixels, labels), Hierarchy.flat(3))
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    model, tx = with_head_of(create("resnet8", num_classes=3)), optax.sgd(0.1)
    objective = make_objective(model, data.hierarchy, RegConfig(lambda_e=0))
    feed = Resident(pixels, labels, CropOptions((4, 4), 1, True, 8), mesh)
    vary, pair = functools.partial(randaugment, magnitude=5), functools.partial(mix, mixup=1.0)
    step = make_train_step(objective, tx, data, feed, augment=vary, mix=pair)
    state = make_init(model, tx, (4, 4, 1), mesh)(jax.random.key(0))
    variables, key = jax.device_get(state.variables), jax.random.wrap_key_data(state.key.copy())
    (batch,) = feed.training(key, np.arange(8, dtype=np.int32), 0, 1)
    _, result = step(state, *batch)

    @jax.jit
    def by_hand(variables, key, batch):
        crops, y = feed.training_crops(key, jnp.asarray(0), *batch)
        x = normalize(vary(draw_key(key, 0, AUGMENT), crops), data.mean, data.std)
        x, s = pair(draw_key(key, 0, MIX), x)
        z, _ = model.apply(variables, x, train=True, mutable=["batch_stats"])
        return jax.nn.log_softmax(z), y, s

    log_p, y, s = jax.device_get(by_hand(variables, key, batch))
    each = [s * log_p[i, y[i]] + (1 - s) * log_p[i, y[7 - i]] for i in range(8)]
    np.testing.assert_allclose(result.terms["L"], -np.mean(each), rtol=1e-5)
    larger = y if s >= 0.5 else y[::-1]
    assert result.terms["hits"] == (log_p.argmax(axis=1) == larger).sum()


@pytest.mark.parametrize("name", ["sgd", "adamw", "muon"])
def test_directions_of_a_sphere_head_keep_their_length(name):
    params = {"head": {"direction": jnp.eye(3, 4)}, "stem": {"kernel": jnp.ones((4, 4))}}
    options = OptimConfig(name=name, head_rate=3.0, freeze=("stem",), weight_decay=0.1)
    tx = optim.optimizer(options, lambda count: 0.3, on_spheres=True)
    updates, _ = jax.jit(tx.update)(jax.tree.map(jnp.cos, params), tx.init(params), params)
    moved = optax.apply_updates(params, updates)
    np.testing.assert_allclose(jnp.linalg.norm(moved["head"]["direction"], axis=-1), 1, rtol=1e-6)
    assert not np.allclose(moved["head"]["direction"], params["head"]["direction"], atol=0.1)
    np.testing.assert_array_equal(moved["stem"]["kernel"], params["stem"]["kernel"])


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.05, 0.1, 0.1, 0.1, 0.1, 0.1]),
        ("linear", [0.05, 0.1, 0.1, 0.075, 0.05, 0.025]),
        ("cosine", [0.05, 0.1, *(0.05 * (1 + np.cos(np.pi * np.arange(4) / 4)))]),
        ("step", [0.05, 0.1, 0.1, 0.01, 0.01, 0.001]),
    ],
)
def test_learning_rates_after_a_warm_up_of_two_steps(schedule, expected):
    options = OptimConfig(schedule=schedule, warmup_epochs=1)
    rates = optim.learning_rate(options, steps_per_epoch=2, epochs=3)
    np.testing.assert_allclose([float(rates(step)) for step in range(6)], expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("sten", "unknown path pattern of optim.freeze 'sten': did you mean 'stem/"),
        ("", "optim.freeze= leaves no weight to train"),
        (".", "optim.freeze=. leaves no weight to train"),
    ],
)
def test_patterns_that_fit_nothing_or_all_end_before_training(pattern, message):
    with pytest.raises(ValueError) as error:
        loop.build(Config(model=ModelConfig(name="resnet8"), optim=OptimConfig(freeze=(pattern,))))
    assert str(error.value).startswith(message)
    assert len(str(error.value).splitlines()) == 1
