"""A regulariser as a link of an optax chain; steps on spheres."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import dh2l_jax as dh2l
from dh2l_jax.regularizers import transform


def test_regularizer_as_a_link_of_an_optax_chain():
    params = {"dense": {"kernel": jax.random.normal(jax.random.key(0), (8, 4))}}

    def penalty(params):
        return 0.1 * dh2l.weight_energy(params, "d_am_cos")

    gradients = jax.tree.map(jnp.ones_like, params)
    chain = optax.chain(transform.add_gradient_of(penalty), optax.sgd(0.1))
    found, _ = jax.jit(chain.update)(gradients, chain.init(params), params)
    total = jax.tree.map(jnp.add, gradients, jax.jit(jax.grad(penalty))(params))
    chex.assert_trees_all_close(found, jax.tree.map(lambda g: -0.1 * g, total), rtol=1e-6)
    with pytest.raises(ValueError, match="parameters are needed"):
        chain.update(gradients, chain.init(params))


PARAMS = {
    "a": {"kernel": jax.random.normal(jax.random.key(0), (8, 4)), "bias": jnp.ones(4)},
    "b": {"kernel": jax.random.normal(jax.random.key(1), (4, 3))},
}
PLAN = dh2l.plan(PARAMS, {"kernel": ("cosine", 1.0)})
FREEZE_A = {"a": False, "b": True}  # a prefix of the tree, as optax takes it


def steps(tx, loss, params=PARAMS, count=3):
    """Parameters and states after each step on a loss."""

    @jax.jit
    def step(params, state):
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    state, states = tx.init(params), []
    for _ in range(count):
        params, state = step(params, state)
        states.append(state)
    return params, states


def data(params):
    return sum(jnp.sum(jnp.sin(3 * leaf)) for leaf in jax.tree.leaves(params))


def regularized(params):
    return data(params) + 0.3 * PLAN.value(params)


def test_the_link_is_the_loss_for_sgd_and_before_adam_and_not_after_it():
    link = dh2l.add_regularization(PLAN, 0.3)
    for optimizer in (optax.sgd(0.1, momentum=0.9), optax.adam(0.1)):
        in_chain, states = steps(optax.chain(link, optimizer), data)
        chex.assert_trees_all_close(in_chain, steps(optimizer, regularized)[0], rtol=2e-5)
    count, weight, value = states[0][0]
    assert (count, weight) == (1, jnp.float32(0.3))
    assert value == pytest.approx(float(PLAN.value(PARAMS)), rel=1e-6)
    lr = optax.scale_by_learning_rate(0.1)
    after = dh2l.add_regularization(PLAN, 0.3, decoupled=True)
    found, _ = steps(optax.chain(optax.scale_by_adam(), after, lr), data, count=1)
    alone, _ = steps(optax.adam(0.1), data, count=1)
    decay = jax.jit(jax.grad(PLAN.value))(PARAMS)
    expected = jax.tree.map(lambda p, g: p - 0.1 * 0.3 * g, alone, decay)
    chex.assert_trees_all_close(found, expected, rtol=1e-5)


def test_a_schedule_is_asked_with_the_number_of_updates():
    schedule = optax.linear_schedule(0.0, 0.3, 3)
    for tx in (
        optax.chain(dh2l.add_regularization(PLAN, schedule), optax.sgd(0.1)),
        optax.inject_hyperparams(dh2l.add_regularization)(plan=PLAN, weight=schedule),
    ):
        _, states = steps(tx, data)
        found = [optax.tree.get(state, "RegularizationState") for state in states]
        assert [s.weight for s in found] == [pytest.approx(x, abs=1e-7) for x in (0.0, 0.1, 0.2)]
    _, states = steps(optax.inject_hyperparams(dh2l.add_regularization)(PLAN, weight=0.3), data)
    assert states[-1].hyperparams["weight"] == states[-1].inner_state.weight == jnp.float32(0.3)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda link: optax.masked(link, FREEZE_A),
        lambda link: optax.multi_transform(
            {True: link, False: optax.set_to_zero()}, {"a": False, "b": True}
        ),
    ],
    ids=["masked", "multi_transform"],
)
def test_frozen_parameters_get_none_and_do_not_count(wrap):
    """What is kept from the link takes no part in its value either."""
    tx = wrap(dh2l.add_regularization(PLAN, 0.3))
    zero = jax.tree.map(jnp.zeros_like, PARAMS)
    updates, state = jax.jit(tx.update)(zero, tx.init(PARAMS), PARAMS)
    assert not any(leaf.any() for leaf in jax.tree.leaves(updates["a"]))
    expected = jax.grad(lambda b: 0.3 * PLAN.value({**PARAMS, "b": b}))(PARAMS["b"])
    chex.assert_trees_all_close(updates["b"], expected, rtol=1e-6)
    value = optax.tree.get(state, "RegularizationState").value
    assert value == pytest.approx(float(PLAN.report(PARAMS)["b/kernel"]), abs=1e-6)


def test_accumulated_steps():
    link = dh2l.add_regularization(PLAN, 0.3)
    every_second = optax.MultiSteps(optax.chain(link, optax.sgd(0.1)), 2)
    found, states = steps(every_second, data, count=2)
    chex.assert_trees_all_close(found, steps(optax.sgd(0.1), regularized, count=1)[0], rtol=1e-5)
    assert optax.tree.get(states[-1], "RegularizationState").count == 1


def test_half_precision_updates_keep_their_dtype():
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), PARAMS)
    link = dh2l.add_regularization(PLAN, 0.3)
    updates, _ = jax.jit(link.update)(half, link.init(half), half)
    assert {leaf.dtype for leaf in jax.tree.leaves(updates)} == {jnp.dtype(jnp.bfloat16)}


def test_parameters_that_are_not_the_plans():
    link = dh2l.add_regularization(PLAN, 0.3)
    with pytest.raises(ValueError, match="unknown leaf of the plan 'b/kernel'"):
        link.init({"a": PARAMS["a"]})
    with pytest.raises(ValueError, match="parameters are needed"):
        link.update(PARAMS, link.init(PARAMS))


def rows_of_length_1(n=40, d=6, seed=0):
    rows = np.random.default_rng(seed).normal(size=(n, d))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_a_step_on_the_sphere():
    """The published step: s = (δ·g)δ − g, δ ← (δ + hs)/‖δ + hs‖; others are the optimiser's."""
    params = {"on": jnp.array([[0.6, 0.8, 0.0]]), "off": jnp.ones((2, 3))}
    gradients = {"on": jnp.array([[1.0, 2.0, 3.0]]), "off": jnp.full((2, 3), 2.0)}
    tx = transform.riemannian(optax.sgd(0.1), lambda params: {"on": True, "off": False})
    updates, _ = tx.update(gradients, tx.init(params), params)
    found = optax.apply_updates(params, updates)
    expected = [[0.6049024100, 0.7427282756, -0.2871372199]]
    np.testing.assert_allclose(found["on"], expected, rtol=1e-6)
    np.testing.assert_allclose(found["off"], 0.8, rtol=1e-6)
    with pytest.raises(ValueError, match="parameters are needed"):
        tx.update(gradients, tx.init(params))


def test_momentum_on_the_sphere():
    """A float64 loop: momentum of projected gradients, projected again at each point."""
    h, mu, start = 0.1, 0.9, rows_of_length_1()
    gradients = np.random.default_rng(1).normal(size=(3, *start.shape))
    tx, delta = transform.riemannian(optax.sgd(h, momentum=mu)), jnp.asarray(start, jnp.float32)
    state, update = tx.init(delta), jax.jit(tx.update)
    for g in gradients:
        updates, state = update(jnp.asarray(g, jnp.float32), state, delta)
        delta = delta + updates
    for i, point in enumerate(start):
        m = np.zeros_like(point)
        for g in gradients[:, i]:
            m = mu * m + (g - (point @ g) * point)
            s = -h * m
            s -= (point @ s) * point
            point = (point + s) / np.linalg.norm(point + s)
        np.testing.assert_allclose(delta[i], point, atol=2e-6)


@pytest.mark.parametrize("optimizer", [optax.sgd(0.5, momentum=0.9), optax.adam(0.1)])
def test_lengths_stay_1_over_1000_steps(optimizer):
    tx, delta = transform.riemannian(optimizer), jnp.asarray(rows_of_length_1(), jnp.float32)

    def step(carry, key):
        delta, state = carry
        updates, state = tx.update(jax.random.normal(key, delta.shape), state, delta)
        delta = optax.apply_updates(delta, updates)
        return (delta, state), jnp.max(jnp.abs(jnp.linalg.norm(delta, axis=1) - 1))

    keys = jax.random.split(jax.random.key(0), 1000)
    worst = jax.jit(lambda carry: jax.lax.scan(step, carry, keys))((delta, tx.init(delta)))[1]
    assert float(worst.max()) < 1e-6


def test_no_gradient_no_step():
    """Also of a row of zeros, which has no direction."""
    delta = jnp.concatenate([jnp.asarray(rows_of_length_1(3), jnp.float32), jnp.zeros((1, 6))])
    tx = transform.riemannian(optax.sgd(0.1, momentum=0.9))
    updates, _ = tx.update(jnp.zeros_like(delta), tx.init(delta), delta)
    np.testing.assert_allclose(updates, 0, atol=1e-7)
