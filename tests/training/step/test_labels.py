"""Labels at inner nodes and rare classes: J and a step of the trainer against loops by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import learn
from support.tiny import with_head_of

import dh2l_jax as dh2l
from dh2l_jax.data.batches.feed import CropOptions, Resident
from dh2l_jax.data.datasets import Dataset
from dh2l_jax.training.config import Config, LossConfig, ModelConfig, OptimConfig, RegConfig
from dh2l_jax.training.experiment import _model, _optimizer
from dh2l_jax.training.step.losses import class_prior
from dh2l_jax.training.step.objective import make_objective
from dh2l_jax.training.step.state import make_init
from dh2l_jax.training.step.steps import make_train_step

pytestmark = pytest.mark.xdist_group("losses")

CLASSES = [("a",), ("x", "y", "b"), ("x", "y", "c"), ("x", "d"), ("z", "e"), ("z", "f")]
TREE = dh2l.Hierarchy.from_paths({path[-1]: path[:-1] for path in CLASSES})
NODES = {TREE.node_id(node): node for node in learn.nodes(CLASSES)}
# Classes with 4, 1, 2, 1, 3 and 1 images, and three images at two inner nodes.
LABELS = np.array([*np.repeat(np.arange(6), [4, 1, 2, 1, 3, 1]), 0, 0, 0], np.int32)
LABELS[-3:] = TREE.node_id("x"), TREE.node_id("x"), TREE.node_id("x/y")
PIXELS = np.random.default_rng(0).integers(0, 255, (len(LABELS), 4, 4, 1), np.uint8)
DATA = Dataset.from_splits("noise", (PIXELS, LABELS), (PIXELS, LABELS), TREE)
COUNTS = DATA.label_counts
LR, DECAY, TAU, WEIGHT = 0.1, 0.01, 1.5, 0.7


def below(label):
    return np.array(learn.below(CLASSES, NODES[int(label)]))


def marginal(z, label):
    return jax.nn.logsumexp(z) - jax.nn.logsumexp(z[below(label)])


def weight_of(label):
    """n/(C n_k), or its mean over the images of the classes below."""
    images = [k for k in LABELS[LABELS < 6] if k in below(label)]
    return np.mean([12 / (6 * COUNTS[k]) for k in images])


def plain(z, labels=LABELS):
    return sum(marginal(row, y) for row, y in zip(z, labels, strict=True)) / len(labels)


def balanced(z):
    costs = [weight_of(y) * marginal(row, y) for row, y in zip(z, LABELS, strict=True)]
    return sum(costs) / len(LABELS)


def adjusted(z):
    return plain(z + TAU * np.log(COUNTS[None, :6] / 12).astype(np.float32))


def hxe_balanced(z):
    total = 0.0
    for row, y in zip(jnp.exp(jax.nn.log_softmax(z, axis=1)), LABELS, strict=True):
        path = NODES[int(y)]
        p = [jnp.sum(row[np.array(learn.below(CLASSES, path[:n]))]) for n in range(len(path) + 1)]
        steps = [np.exp(-0.4 * n) * jnp.log(p[n - 1] / p[n]) for n in range(1, len(path) + 1)]
        total += weight_of(y) * sum(steps)
    return total / len(LABELS)


CASES = {
    "ce": (LossConfig(), plain),
    "class_weights": (LossConfig(class_weights="balanced"), balanced),
    "logit_adjustment": (LossConfig(logit_adjustment=TAU), adjusted),
    "hxe": (LossConfig(name="hxe", alpha=0.4, class_weights="balanced"), hxe_balanced),
}
FAST = {"xla_backend_optimization_level": 0}  # to compile


def config_of(loss, head="plain", **reg):
    lambdas = dict.fromkeys(("lambda_e", "lambda_l", "lambda_o"), 0.0)
    return Config(
        batch_size=len(LABELS),
        model=ModelConfig(name="resnet8", head=head),
        loss=loss,
        reg=RegConfig(**(lambdas | reg)),
        optim=OptimConfig(lr=LR, weight_decay=DECAY),
    )


def made(config):
    model = with_head_of(_model(config, TREE))
    objective = make_objective(model, TREE, config.reg, loss=config.loss, counts=COUNTS)
    return model, objective


def features_of(model, params, batch_stats, pixels=PIXELS):
    variables = {"params": params, "batch_stats": batch_stats}
    images = jnp.asarray((pixels / 255 - DATA.mean) / DATA.std, jnp.float32)
    return model.apply(variables, images, True, method=model.features, mutable=["batch_stats"])[0]


def test_losses_by_hand():
    """In one program, at the first weights of a plain head."""
    pairs = {name: made(config_of(loss)) for name, (loss, _) in CASES.items()}
    images = jnp.asarray((PIXELS / 255 - DATA.mean) / DATA.std, jnp.float32)

    def both():
        found = {}
        for name, (model, objective) in pairs.items():
            variables = model.init(jax.random.key(0), jnp.zeros((1, 4, 4, 1)), train=False)
            params, batch_stats = variables["params"], variables["batch_stats"]
            J, (_, terms) = objective(params, batch_stats, images, LABELS)
            z = features_of(model, params, batch_stats) @ params["head"]["kernel"]
            found[name] = J, terms["L"], CASES[name][1](z), terms["hits"], z
        return found

    for name, (J, L, hand, hits, z) in jax.jit(both, compiler_options=FAST)().items():
        np.testing.assert_allclose(L, hand, rtol=1e-5, err_msg=name)
        assert J == L
        best = z.argmax(axis=1).tolist()
        assert hits == sum(k in below(y) for k, y in zip(best, LABELS, strict=True))


SEEN = np.array([0, 4, 8, 11, 12, 14])  # the batch of the step: a, b, e, f, "x" and "x/y"


def by_hand(model, params, batch_stats):
    """J of a hierarchical head: classes, inner levels as far as they are known, and R."""
    x, labels = features_of(model, params, batch_stats, PIXELS[SEEN]), LABELS[SEEN]
    levels = dh2l.sphere_levels(params["head"], TREE)
    J = plain(x @ dh2l.logit_vectors(levels, TREE).T, labels)
    for level in (1, 2):
        z = x @ dh2l.logit_vectors(levels, TREE, level=level).T
        entries = [NODES[int(node)] for node in TREE.level_nodes(level)]
        for row, y in zip(z, labels, strict=True):
            path = NODES[int(y)]
            if len(path) >= level or y < 6:
                own = row[entries.index(path[:level])]
                J += WEIGHT * (jax.nn.logsumexp(row) - own) / len(labels)
    present = {step for y in labels for step in learn.steps(NODES[int(y)])}
    where = np.array([NODES[node] in present for node in range(TREE.num_nodes - 1)] + [True])
    return J + 0.5 * dh2l.hierarchical(levels, TREE, "cosine", where=where)[0]


def test_a_step_by_hand():
    reg = {"parent_ce_weight": WEIGHT, "lambda_l": 0.5, "fc_metric": "cosine"}
    config = config_of(LossConfig(), "hierarchical", **reg)
    model, objective = made(config)
    tx = _optimizer(config, lambda step: LR)
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    state = make_init(model, tx, (4, 4, 1), mesh)(jax.random.key(0))
    before = jax.device_get(state)
    feed = Resident(PIXELS, LABELS, CropOptions((4, 4), 0, False, len(SEEN)), mesh)
    step = make_train_step(objective, tx, DATA, feed)
    (batch,) = feed.training(jax.random.key(0), SEEN.astype(np.int32), 0, 1)
    after, result = step(state, *batch)
    slope = jax.value_and_grad(lambda params: by_hand(model, params, before.batch_stats))
    J, gradient = jax.jit(slope, compiler_options=FAST)(before.params)
    np.testing.assert_allclose(result.terms["J"], J, rtol=1e-5)
    moved = jax.tree_util.tree_leaves_with_path(jax.device_get(after.params))
    start, slopes = jax.tree.leaves(before.params), jax.tree.leaves(gradient)
    for (place, new), old, g in zip(moved, start, slopes, strict=True):
        expected = old - LR * (g + (DECAY * old if old.ndim > 1 else 0))
        np.testing.assert_allclose(new, expected, rtol=1e-4, atol=3e-6, err_msg=str(place))


def test_a_prior_needs_every_class():
    counts = COUNTS.copy()
    counts[3] = 0
    with pytest.raises(ValueError, match="training image of every class, 'd' has none"):
        class_prior(counts, TREE)
    np.testing.assert_allclose(class_prior(COUNTS, TREE), COUNTS[:6] / 12)
