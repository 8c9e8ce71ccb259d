"""Every loss and head: a step of the trainer against one written by hand with dense matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.tiny import with_head_of

import dh2l_jax as dh2l
from dh2l_jax.data.batches.feed import CropOptions, Resident
from dh2l_jax.data.datasets import Dataset
from dh2l_jax.training.config import Config, LossConfig, ModelConfig, OptimConfig, RegConfig
from dh2l_jax.training.experiment import _model, _optimizer
from dh2l_jax.training.step import objective as objective_module
from dh2l_jax.training.step.losses import make_loss
from dh2l_jax.training.step.objective import make_objective
from dh2l_jax.training.step.state import make_init
from dh2l_jax.training.step.steps import make_train_step

pytestmark = pytest.mark.xdist_group("losses")

TREE = dh2l.Hierarchy.from_paths({"a": "", "b": "x/y", "c": "x/y", "d": "x", "e": "z", "f": "z"})
C, N, ROOT = TREE.num_classes, TREE.num_nodes, TREE.num_nodes - 1
PARENTS, DEPTHS, D = TREE.node_parents(), TREE.node_depths(), TREE.lca_height()
LR, DECAY, ALPHA, BETA = 0.1, 0.01, 0.3, 4.0


def path(node):
    """A node and those above it, without the root."""
    while node != ROOT:
        yield node
        node = PARENTS[node]


ABOVE = np.array([[a in path(v) for a in range(ROOT)] for v in range(N)], np.float32)  # (N, N-1)
SIBLINGS = (PARENTS[:-1, None] == PARENTS[None, :-1]).astype(np.float32)

LABELS = np.arange(C, dtype=np.int32).repeat(2)
PIXELS = np.random.default_rng(0).integers(0, 255, (len(LABELS), 4, 4, 1), np.uint8)
DATA = Dataset.from_splits("noise", (PIXELS, LABELS), (PIXELS, LABELS), TREE)


def cross_entropy(z, y):
    return -jax.nn.log_softmax(z)[y]


def hxe(z, y):
    """−log of each conditional probability of the label's path, from sums of probabilities."""
    p = jnp.append(jax.nn.softmax(z) @ ABOVE[:C], 1)
    return sum(np.exp(-ALPHA * DEPTHS[a]) * jnp.log(p[PARENTS[a]] / p[a]) for a in path(y))


def soft_labels(z, y):
    target = np.exp(-BETA * D[y] / D.max())
    return -jnp.dot(target / target.sum(), jax.nn.log_softmax(z))


def conditional(z, y):
    """Of the logits of all nodes."""
    return sum(jnp.log(jnp.dot(SIBLINGS[a], jnp.exp(z))) - z[a] for a in path(y))


def hrn(z, y):
    scores = ABOVE @ z  # of the states, the empty one last
    return jnp.log(jnp.sum(jnp.exp(scores))) - scores[y]


def frame(kind):
    """(C, 64): by eigenvalues of the grid's Gram matrix, or of the simplex."""
    K = np.exp(-2.0 * D / D.max()) if kind == "haframe" else np.eye(C)
    t = 1 / np.linalg.inv(K).sum()
    s = max(-t / (1 - t), -1.0) if t < 0.5 else -1.0
    return (1 - s) * K + s


def sphere_vectors(direction):
    unit = direction / jnp.linalg.norm(direction, axis=1, keepdims=True)
    return ABOVE[:C] @ (2.0 * 0.5 ** DEPTHS[:-1, None].astype(np.float32) * unit)


CASES = {
    "hxe": hxe,
    "soft_labels": soft_labels,
    "conditional": conditional,
    "hrn": hrn,
    "haframe": None,
    "etf": None,
    "sphere": cross_entropy,
}


def by_hand(name, W, params, x, labels):
    """L of a frame or the head's parameters, and features."""
    if name in ("haframe", "etf"):
        S = frame(name)
        np.testing.assert_allclose(W @ W.T, S, atol=1e-6)
        cosines = x / jnp.linalg.norm(x, axis=1, keepdims=True) @ W.T
        if name == "etf":
            return jnp.mean((cosines[np.arange(len(labels)), labels] - 1) ** 2) / 2
        cosine = jnp.mean(jnp.sum((cosines - S.astype(np.float32)[labels]) ** 2, axis=1))
        return (1 - ALPHA) * jnp.mean(jax.vmap(cross_entropy)(x @ W.T, labels)) + ALPHA * cosine
    z = x @ (sphere_vectors(params["direction"]).T if name == "sphere" else params["kernel"])
    return sum(CASES[name](z[i], y) for i, y in enumerate(labels)) / len(labels)


def on_sphere(delta, g):
    """The published step, row by row."""
    rows = []
    for d, row in zip(np.asarray(delta, np.float64), np.asarray(g, np.float64), strict=True):
        step = d + LR * ((d @ row) * d - row)
        rows.append(step / np.linalg.norm(step))
    return np.array(rows)


def config_of(name):
    own = name in ("haframe", "etf", "sphere")
    return Config(
        batch_size=len(LABELS),
        model=ModelConfig(name="resnet8", head=name if own else "plain"),
        loss=LossConfig(name="ce" if own else name, alpha=ALPHA, beta=BETA),
        reg=RegConfig(lambda_e=0, lambda_l=0, lambda_o=0),
        optim=OptimConfig(lr=LR, weight_decay=DECAY),
    )


def made(name):
    """A tiny network with a head, and the objective of its loss."""
    config = config_of(name)
    model = with_head_of(_model(config, TREE))
    return model, make_objective(model, TREE, config.reg, loss=config.loss)


def images_of_the_step():
    return jnp.asarray((PIXELS / 255 - DATA.mean) / DATA.std, jnp.float32)


def hand(name, model, params, batch_stats):
    """L by hand."""
    with jax.ensure_compile_time_eval():
        W = np.asarray(model.head.kernel({}).T) if name in ("haframe", "etf") else None
    variables, images = {"params": params, "batch_stats": batch_stats}, images_of_the_step()
    x, _ = model.apply(variables, images, True, method=model.features, mutable=["batch_stats"])
    return by_hand(name, W, params.get("head"), x, LABELS)


FAST = {"xla_backend_optimization_level": 0}  # to compile


def test_every_loss_by_hand():
    """In one program, at the networks' first weights."""
    pairs = {name: made(name) for name in CASES}

    def both():
        found = {}
        for name, (model, objective) in pairs.items():
            variables = model.init(jax.random.key(0), jnp.zeros((1, 4, 4, 1)), train=False)
            params, batch_stats = variables["params"], variables["batch_stats"]
            J, (_, terms) = objective(params, batch_stats, images_of_the_step(), LABELS)
            found[name] = (J, terms, hand(name, model, params, batch_stats))
        return found

    for name, (J, terms, L) in jax.jit(both, compiler_options=FAST)().items():
        np.testing.assert_allclose(terms["L"], L, rtol=1e-5, err_msg=name)
        assert terms["L"] == J
        parts = {"L_ce", "L_cos"} if name == "haframe" else set()
        assert set(terms) == {"J", "L", "hits"} | parts


def test_smoothed_labels_by_hand():
    """With labels at classes, and at inner nodes too."""
    z = np.random.default_rng(0).normal(size=(5, C))
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    for labels in ([0, 1, 2, 3, 5], [0, 1, C, 3, ROOT - 1]):
        counts = np.bincount(labels, minlength=N)
        loss_of = make_loss(LossConfig(label_smoothing=0.2), None, TREE, counts)
        logits, nodes = jnp.asarray(z, jnp.float32), jnp.asarray(labels)
        L, _ = jax.jit(loss_of)({}, jnp.zeros((5, 1)), logits, nodes)
        each = [-np.log(p[i] @ ABOVE[:C, y]) for i, y in enumerate(labels)]
        expected = 0.8 * np.mean(each) - 0.2 * np.log(p).mean()
        np.testing.assert_allclose(L, expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["conditional", "haframe", "sphere"])
def test_a_step_by_hand(name):
    config, (model, objective) = config_of(name), made(name)
    tx = _optimizer(config, lambda step: LR)
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    state = make_init(model, tx, (4, 4, 1), mesh)(jax.random.key(0))
    before = jax.device_get(state)
    feed = Resident(PIXELS, LABELS, CropOptions((4, 4), 0, False, len(LABELS)), mesh)
    step = make_train_step(objective, tx, DATA, feed)
    (batch,) = feed.training(jax.random.key(0), np.arange(len(LABELS), dtype=np.int32), 0, 1)
    after, _ = step(state, *batch)

    slope = jax.grad(lambda params: hand(name, model, params, before.batch_stats))
    gradient = jax.jit(slope, compiler_options=FAST)(before.params)
    moved = jax.tree_util.tree_leaves_with_path(jax.device_get(after.params))
    start, slopes = jax.tree.leaves(before.params), jax.tree.leaves(gradient)
    assert len(moved) == len(start)
    for (place, new), old, g in zip(moved, start, slopes, strict=True):
        if place[-1].key == "direction":
            expected = on_sphere(old, g)
        else:
            expected = old - LR * (g + (DECAY * old if old.ndim > 1 else 0))
        np.testing.assert_allclose(new, expected, rtol=1e-4, atol=2e-6, err_msg=str(place))


@pytest.mark.parametrize("name", ["haframe", "etf", "sphere", "hrn"])
def test_what_E_sees(name):
    """The convolutions and the kernel of a plain head: not a neck, not directions."""
    model = _model(config_of(name), TREE)
    params = jax.eval_shape(
        lambda: model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)), train=False)["params"]
    )
    seen = []

    def record(params, metric, *, include="kernel$", exclude=(), half_space):
        seen.extend(dh2l.kernel_matrices(params, include, exclude))
        return jnp.zeros(())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(objective_module, "weight_energy", record)
        energy = objective_module.make_energy(RegConfig(), model.head)
        jax.eval_shape(energy, params)
    assert len(seen) == len(set(seen)) == (8 if name == "hrn" else 7)
    assert ("head/kernel" in seen) == (name == "hrn")
    assert all("conv" in path for path in seen if path != "head/kernel")
