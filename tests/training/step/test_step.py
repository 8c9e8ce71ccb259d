"""Objective, optimiser, steps: a golden step, one trace, one device = two, exact evaluation."""

import collections
import dataclasses
import functools
import gzip
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import dh2l_jax as dh2l
from dh2l_jax.data.batches.feed import CropOptions, Resident
from dh2l_jax.data.batches.order import epoch_order
from dh2l_jax.data.datasets import Dataset
from dh2l_jax.hierarchy.scores import summarize
from dh2l_jax.training import loop
from dh2l_jax.training.config import (
    Config,
    DataConfig,
    ModelConfig,
    OptimConfig,
    RegConfig,
    from_dict,
)
from dh2l_jax.training.epochs import counts_so_far, last_item
from dh2l_jax.training.host import profiling
from dh2l_jax.training.run import checkpoint
from dh2l_jax.training.step import objective as objective_module
from dh2l_jax.training.step import optim
from dh2l_jax.training.step.objective import energy_plan, make_objective, make_regularizer
from dh2l_jax.training.step.steps import make_eval_step, make_train_step

pytestmark = pytest.mark.xdist_group("step")  # they share what is compiled

TREE = dh2l.Hierarchy.from_parents(([0, 0, 1], [0, 0, 1, 2, 2, 2]))


def images_of_classes(per_class, seed):
    """Noise with a bright row for the class: easy to learn, nothing to download."""
    labels = np.arange(TREE.num_classes).repeat(per_class)
    pixels = np.random.default_rng(seed).integers(0, 100, (len(labels), 8, 8, 1), np.uint8)
    pixels[np.arange(len(labels)), labels] += 150
    return pixels, labels


CROPS = CropOptions((8, 8), pad=1, flip=False, batch_size=16)
DATA = Dataset.from_splits("rows", images_of_classes(8, 0), images_of_classes(3, 1), TREE)


def experiment(num_devices=2):
    """A small experiment on the first devices, on images made here."""
    run = Config(
        epochs=8,
        batch_size=16,
        eval_batch_size=8,
        data=DataConfig(pad=1, flip=False),
        model=ModelConfig(name="resnet8"),
        reg=RegConfig(lambda_o=1e-2),
        optim=OptimConfig(lr=0.05, schedule="cosine"),
    )
    built = loop.build(run)
    mesh = jax.make_mesh(
        (num_devices,),
        ("data",),
        axis_types=(jax.sharding.AxisType.Auto,),
        devices=jax.devices()[:num_devices],
    )
    model = dh2l.models.create("resnet8", hierarchy=TREE)
    return dataclasses.replace(built, dataset=DATA, model=model, mesh=mesh)


def init_variables(model):
    return jax.jit(lambda: model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)), train=False))()


TRACES = collections.Counter()


@functools.cache
def compiled(num_devices):
    """An experiment, its feed, its first state and its step, traced once in the whole suite."""
    exp = experiment(num_devices)
    objective = make_objective(exp.model, TREE, exp.config.reg)
    feed = Resident(DATA.train_images, DATA.train_labels, CROPS, exp.mesh)

    def counted(*args, **options):
        TRACES[num_devices] += 1
        return objective(*args, **options)

    return exp, feed, exp.init(), make_train_step(counted, exp.tx, DATA, feed)


@functools.cache
def trained(count, num_devices=2):
    """The state after so many steps and the terms of each of them."""
    _, feed, state, step = compiled(num_devices)
    state, terms = jax.tree.map(jnp.copy, state), []
    key = jax.random.wrap_key_data(state.key.copy())
    for first in range(0, count, 3):
        order = epoch_order(0, first // 3, len(DATA.train_labels))
        for batch in feed.training(key, order, first, min(3, count - first)):
            state, result = step(state, *batch)
            terms.append(jax.device_get(result.terms))
    return jax.device_get(state), terms


def test_golden_step():
    """Values of the first two steps; they change only if the computation changes."""
    _, (first, second, *_) = trained(24)
    found = {name: [float(first[name]), float(second[name])] for name in first}
    assert found == {name: pytest.approx(value, rel=2e-4) for name, value in GOLDEN.items()}


GOLDEN = {
    "J": [2.658859, 2.607202],
    "L": [2.125042, 2.075989],
    "R_E": [3.467517, 3.472155],
    "R_c/2": [0.589407, 0.587973],
    "R_c/3": [0.368889, 0.346779],
    "R_o": [1.778139, 1.784624],
    "R_p/3": [0.734543, 0.726760],
    "hits": [3.000000, 4.000000],
}


def test_one_trace_over_many_batches():
    trained(24)
    assert TRACES[2] == 1
    assert compiled(2)[-1].func._cache_size() == 1


def test_one_device_equals_two():
    (one, terms_one), (two, terms_two) = (trained(4, num_devices) for num_devices in (1, 2))
    chex.assert_trees_all_close(terms_one, terms_two, rtol=1e-4, atol=1e-5)
    chex.assert_trees_all_close(one.params, two.params, rtol=1e-3, atol=1e-4)


def test_same_seed_same_bits():
    exp, _, state, _ = compiled(2)
    chex.assert_trees_all_equal(jax.device_get(exp.init()), jax.device_get(state))
    chex.assert_trees_all_equal(trained.__wrapped__(3), trained(3))


def test_objective_is_the_weighted_sum_of_its_terms():
    reg = RegConfig(
        lambda_e=0.3,
        lambda_l=0.2,
        lambda_o=0.05,
        lambda_c1=0.7,
        lambda_c2=0.11,
        lambda_c3=0.13,
        parent_ce_weight=0.17,
    )
    model = dh2l.models.create("resnet8", hierarchy=TREE, inner_surfaces=True)
    images = jnp.asarray(DATA.train_images[::5], jnp.float32) / 255
    variables = init_variables(model)
    objective = make_objective(model, TREE, reg)
    J, (_, terms) = jax.jit(objective)(
        variables["params"], variables["batch_stats"], images, DATA.train_labels[::5]
    )
    weights = {"L": 1, "L_parent": 0.17, "R_E": 0.3, "R_o": 0.05, "C1": 0.7, "C2": 0.11, "C3": 0.13}
    total = 0.0
    for name, value in terms.items():
        if name not in ("J", "hits"):
            total += weights.get(name.split("/")[0], 0.2) * float(value)
    np.testing.assert_allclose(float(J), total, rtol=1e-5)
    assert set(terms) == {
        "J", "L", "L_parent", "R_E", "R_p/1", "R_p/2", "R_p/3", "R_c/2", "R_c/3", "R_o", "hits",
        "C1/1", "C1/2", "C1/3", "C2/2", "C2/3", "C3/2", "C3/3",
    }  # fmt: skip


def test_terms_without_weight_are_not_computed():
    reg = RegConfig(lambda_e=0, lambda_l=0, lambda_o=0)
    model = dh2l.models.create("resnet8", hierarchy=TREE)
    variables = init_variables(model)
    regularizer = make_regularizer(model.head, TREE, reg)
    value, terms = regularizer(variables["params"], None)
    assert (float(value), terms) == (0.0, {})
    terms = jax.eval_shape(lambda p: regularizer(p, None, everything=True)[1], variables["params"])
    assert set(terms) == {"R_E", "R_p/3", "R_c/2", "R_c/3", "R_o"}


def test_plain_head_energy_is_conv_plus_head():
    reg = RegConfig(conv_metric="d_h_bin", fc_metric="mma")
    model = dh2l.models.create("resnet8", num_classes=6)
    params = init_variables(model)["params"]
    value, terms = jax.jit(lambda p: make_regularizer(model.head, TREE, reg)(p, None))(params)
    convolutions = {name: values for name, values in params.items() if name != "head"}
    conv = jax.jit(lambda p: dh2l.weight_energy(p, "d_h_bin"))(convolutions)
    head = jax.jit(dh2l.regularizer("mma"))(params["head"]["kernel"].T)
    np.testing.assert_allclose(float(terms["R_E"]), float(conv + head), rtol=1e-6)
    np.testing.assert_allclose(float(value), 0.1 * float(conv + head), rtol=1e-6)


RULES = (
    r"stem/.*kernel$ => d_cos_hm * 0.3",
    r"conv_1/kernel$ => cosine * 2",
    r"^head/center_3$ => d_am_cos * 0.5 @ n d -> n d",
)


def test_rules_stand_in_place_of_E_and_each_layer_is_recorded():
    reg = RegConfig(rules=RULES, lambda_l=0, lambda_o=0)
    model = dh2l.models.create("resnet8", hierarchy=TREE)
    variables = init_variables(model)
    params, batch_stats = variables["params"], variables["batch_stats"]
    arguments = (params, batch_stats, jnp.zeros((4, 8, 8, 1)), jnp.array([3, 4, 3, 0]))
    J, (_, terms) = jax.jit(make_objective(model, TREE, reg))(*arguments)
    kernels = {"stem/conv/kernel": ("d_cos_hm", 0.3)}
    kernels |= {f"block_{k}_1/conv_1/kernel": ("cosine", 2) for k in (1, 2, 3)}
    expected = {"head/center_3": 0.5 * mean_energy("d_am_cos")(params["head"]["center_3"])}
    for path, (metric, weight) in kernels.items():
        W = dh2l.kernel_matrices(params)[path]
        expected[path] = weight * mean_energy(metric)(W)
    assert set(terms) == {"J", "L", "R_E", "hits", *expected}
    for path, value in expected.items():
        np.testing.assert_allclose(terms[path], value, rtol=1e-5, err_msg=path)
    np.testing.assert_allclose(terms["R_E"], sum(expected.values()), rtol=1e-5)
    np.testing.assert_allclose(J - terms["L"], terms["R_E"], rtol=1e-4)


def mean_energy(metric):
    return jax.jit(functools.partial(dh2l.mean_energy, metric=metric))


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (
            "kernle$ => cosine * 1",
            "reg.rules: unknown path pattern 'kernle$': did you mean ",
        ),
        ("center_3 => cosine * 1", "'head/center_3' of shape (3, 64) can be read as"),
        ("stem/.*kernel => cosine * 1 @ i o -> o i", "names 2 axes, 'i o -> o i', 'stem/conv/kern"),
    ],
)
def test_rules_that_fit_no_weight_end_before_training(rule, message):
    params = init_variables(dh2l.models.create("resnet8", hierarchy=TREE))["params"]
    with pytest.raises(ValueError) as error:
        energy_plan(params, RegConfig(rules=(rule,)))
    assert message in str(error.value)
    assert str(error.value).endswith("PATTERN => REGULARIZER * WEIGHT @ AXES here")
    assert len(str(error.value).splitlines()) == 1
    with pytest.raises(ValueError, match=r"^reg\.rules: unknown path pattern"):
        loop.build(Config(model=ModelConfig(name="resnet8"), reg=RegConfig(rules=("x => d_am*1",))))


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("linear", [1, 0.975, 0.5, 0.025]),
        ("cosine", [1, (1 + np.cos(np.pi / 40)) / 2, 0.5, (1 + np.cos(np.pi * 39 / 40)) / 2]),
        ("warmup", [0.25, 0.5, 1, 1]),
    ],
)
def test_the_schedule_scales_E_and_R_alone(schedule, expected):
    reg = RegConfig(schedule=schedule, lambda_c1=0.3, lambda_o=0.2)
    model = dh2l.models.create("resnet8", hierarchy=TREE)
    variables = init_variables(model)
    state = variables["params"], variables["batch_stats"]
    arguments = (*state, jnp.zeros((4, 8, 8, 1)), jnp.array([3, 4, 3, 0]))
    plain = jax.jit(make_objective(model, TREE, dataclasses.replace(reg, schedule="constant")))
    J, (_, terms) = plain(*arguments)
    orthogonality = 0.2 * terms["R_o"]
    scaled = J - terms["L"] - orthogonality
    objective = jax.jit(make_objective(model, TREE, reg, steps=40))
    for step, factor in zip((0, 1, 20, 39), expected, strict=True):
        found, (_, now) = objective(*arguments, jnp.int32(step))
        np.testing.assert_allclose(now.pop("schedule"), factor, rtol=1e-4)
        np.testing.assert_allclose(found, terms["L"] + orthogonality + factor * scaled, rtol=1e-5)
        chex.assert_trees_all_close({**now, "J": J}, terms, rtol=1e-6)  # before their factors


def test_only_classes_of_the_batch_take_part(monkeypatch):
    model = dh2l.models.create("resnet8", hierarchy=TREE)
    images = jnp.zeros((4, 8, 8, 1))
    variables = init_variables(model)
    labels = jnp.array([3, 4, 3, 0])  # one pair of siblings: classes 3 and 4
    found, bounds, whole = {}, [], objective_module.hierarchical
    monkeypatch.setattr(
        objective_module,
        "hierarchical",
        lambda *args, **kwargs: bounds.append(kwargs["max_present"]) or whole(*args, **kwargs),
    )
    for presence in ("batch", "global"):
        objective = make_objective(model, TREE, RegConfig(presence=presence))
        found[presence] = jax.jit(objective)(
            variables["params"], variables["batch_stats"], images, labels
        )[1][1]["R_p/3"]
    head = variables["params"]["head"]

    @jax.jit
    def energy_of_the_pair(surfaces, centers):
        w = dh2l.project(surfaces, centers, TREE.parents(3))
        return dh2l.energy(w[3], w[4], "d_am_cos")

    alone = energy_of_the_pair(head["surface_3"], head["center_3"])
    np.testing.assert_allclose(float(found["batch"]), float(alone), rtol=1e-5)
    assert abs(float(found["global"]) - float(alone)) > 1e-4
    assert bounds == [4, None]  # no more classes than images


def test_half_space_of_every_layer():
    """A plain head: both its metrics see each vector and its opposite."""
    generator = np.random.default_rng(0)
    params = {
        "stem": {"kernel": generator.normal(size=(3, 3, 2, 5)).astype(np.float32)},
        "head": {"kernel": generator.normal(size=(7, 4)).astype(np.float32)},
    }
    reg = RegConfig(conv_metric="d_am_cos", fc_metric="angular2", half_space=True)
    value, _ = jax.jit(lambda p: make_regularizer(None, TREE, reg)(p, None))(params)
    expected = 0.0
    for rows, metric in (
        (params["stem"]["kernel"].reshape(-1, 5).T, "d_am_cos"),
        (params["head"]["kernel"].T, "angular2"),
    ):
        both = np.concatenate([rows, -rows])
        expected += jax.jit(functools.partial(dh2l.mean_energy, metric=metric))(both)
    np.testing.assert_allclose(float(value), 0.1 * float(expected), rtol=1e-5)


def test_the_trace_of_a_step_names_its_phases(tmp_path):
    _, feed, state, step = compiled(2)
    recorded = profiling.record(step, 2, tmp_path, lambda line: None)
    state, order = jax.tree.map(jnp.copy, state), epoch_order(0, 0, len(DATA.train_labels))
    key = jax.random.wrap_key_data(state.key.copy())
    for number, batch in enumerate(feed.training(key, order, 0, 3), 1):
        state, _ = recorded(number, state, *batch)
    assert int(state.step) == 3
    (file,) = tmp_path.rglob("perfetto_trace.json.gz")
    trace = json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]
    operations = [event["name"] for event in trace if "hlo_op" in event.get("args", {})]
    phases = collections.Counter(name.split("/")[0] for name in operations)
    for phase in ("augment", "jvp(forward)", "jvp(regulariser)", "optimiser"):
        assert phases[phase] > 0
    assert phases["transpose(jvp(forward))"] > 0
    assert phases["transpose(jvp(regulariser))"] > 0


def test_every_image_counts_once():
    exp, _, state, _ = compiled(2)
    feed = Resident(DATA.test_images, DATA.test_labels, CROPS, exp.mesh)
    step = make_eval_step(exp.model, DATA, feed)
    scores = [
        summarize(last_item(counts_so_far(step, state, feed, TREE, size)), TREE)
        for size in (2, 8, 18, 64)
    ]
    assert step.func._cache_size() == 4, "one program a batch size"
    for other in scores[1:]:
        assert other["accuracy"] == scores[0]["accuracy"]
        np.testing.assert_allclose(other["loss"], scores[0]["loss"], rtol=1e-5)
    assert scores[0]["images"] == 18


def test_learns_and_restores(tmp_path):
    exp, (state, terms) = compiled(2)[0], trained(24)
    assert np.mean([t["L"] for t in terms[-3:]]) < 0.5 * np.mean([t["L"] for t in terms[:3]])
    checkpoint.save(tmp_path, state)
    restored = checkpoint.restore(tmp_path, exp.init(abstract=True))
    chex.assert_trees_all_equal(jax.device_get(restored.state), state)
    other = dataclasses.replace(exp, model=dh2l.models.create("resnet8", num_classes=7))
    with pytest.raises(ValueError, match="another model"):
        checkpoint.restore(tmp_path, other.init(abstract=True))


# Optimiser.


def test_step_schedule_decays_at_half_and_85_percent():
    schedule = optim.learning_rate(OptimConfig(), steps_per_epoch=10, epochs=300)
    rates = [float(schedule(epoch * 10)) for epoch in (0, 149, 150, 254, 255, 299)]
    np.testing.assert_allclose(rates, [0.1, 0.1, 0.01, 0.01, 0.001, 0.001], rtol=1e-6)


@pytest.mark.parametrize("kind", ["step", "cosine"])
def test_warm_up_rises_then_hands_over(kind):
    options = OptimConfig(schedule=kind, warmup_epochs=2)
    schedule = optim.learning_rate(options, steps_per_epoch=10, epochs=20)
    rates = np.array([float(schedule(step)) for step in range(200)])
    assert np.all(np.diff(rates[:20]) > 0)
    assert rates[0] > 0
    np.testing.assert_allclose(rates[19:21], 0.1, rtol=1e-6)
    assert np.all(np.diff(rates[20:]) <= 0)
    assert rates[-1] < 0.0051


def test_decay_enters_before_momentum_and_spares_norms():
    """Two updates of torch's SGD by hand."""
    tx = optim.optimizer(OptimConfig(weight_decay=0.1), lambda step: 0.5)
    params = {"kernel": jnp.full((2, 2), 3.0), "scale": jnp.full(2, 3.0)}
    state, velocity, expected = tx.init(params), {"kernel": 0.0, "scale": 0.0}, params
    for gradient in (1.0, -2.0):
        gradients = {name: jnp.full_like(p, gradient) for name, p in params.items()}
        updates, state = tx.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
        for name, decay in (("kernel", 0.1), ("scale", 0.0)):
            velocity[name] = 0.9 * velocity[name] + gradient + decay * expected[name]
        expected = {name: expected[name] - 0.5 * velocity[name] for name in expected}
        chex.assert_trees_all_close(params, expected, rtol=1e-6)


def test_mask_covers_kernels_and_head_vectors():
    model = dh2l.models.create("resnet8", hierarchy=TREE)
    images = jnp.zeros((1, 8, 8, 1))
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))
    mask = jax.tree_util.tree_leaves_with_path(optim.decay_mask(shapes["params"]))
    for path, decays in mask:
        last = path[-1].key
        assert decays == (last == "kernel" or last.startswith(("surface", "center"))), path


def test_held_out_runs_never_touch_the_test_images():
    run = from_dict({"data": {"fraction": 0.1, "holdout": 100}, "model": {"name": "resnet8"}})
    exp = loop.build(dataclasses.replace(run, eval_batch_size=100, batch_size=50))
    assert len(exp.dataset.test_labels) == 100
    assert len(exp.dataset.train_labels) == 500
    assert loop.make_evaluator(exp)(exp.init())["split"] == "validation"
