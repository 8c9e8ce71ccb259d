"""Golden values by hand, and the facts of the documentation: what is true and what is false."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import metrics as oracle
from support.helpers import energy_and_gradient, every_metric, everyone, rows

import dh2l_jax as dh2l

CLIP = np.arccos(0.99) / np.pi  # 8.11° as a fraction of 180°: 0.045054


def plane(degrees):
    """The unit vector of a direction in the plane."""
    return jnp.float32([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))])


# u = (3, 4), v = (4, −3): c = 0, h = (1 − 1)/2 = 0, so θ = θ_h = 1/2 and A = B = 1.
RIGHT_ANGLE = {
    "cosine": (1.0, 0.0),
    "n_euclidean2": (2**0.5, 0.5),
    "angular2": (np.pi / 2, 4 / np.pi**2),
    "d_h_bin": (0.5, 0.5),
    "d_h_ter": (0.5, 0.5),
    "d_am": (0.5, 0.5),
    "d_gm": (0.25, 0.75),
    "d_hm": (1.0, 0.0),
    "d_gm_std": (0.5, 0.5),
    "d_hm_std": (0.5, 0.5),
    "d_cos_am": (0.5, 0.5),
    "d_cos_gm": (0.1464466, 0.8535534),  # (cos 45° + 1)/2
    "d_cos_hm": (1.0, 0.0),
    "d_cos_gm_std": (0.5, 0.5),
    "d_cos_hm_std": (0.5, 0.5),
    "d_am_cos": (0.5, 0.5),
    "d_gm_cos": (0.75, 0.25),
    "d_hm_cos": (0.5, 0.5),
}

# Directions 15° and 75°: c = 1/2 and h = 1, so θ = 1/3, θ_h = 0, A = 2, B = 3/2.
SIXTY_DEGREES = {
    "cosine": (0.5, 0.5),
    "n_euclidean2": (1.0, 1.0),
    "angular2": (np.pi / 3, 9 / np.pi**2),
    "d_h_bin": (0.0, 1.0),
    "d_am": (1 / 6, 5 / 6),
    "d_gm": (0.0, 1.0),
    "d_hm": (0.0, 1.0),
    "d_gm_std": (0.0, 1.0),
    "d_hm_std": (0.0, 1.0),
    "d_cos_am": (0.0669873, 0.9330127),  # (cos 30° + 1)/2
    "d_cos_gm": (0.0, 1.0),
    "d_cos_hm": (0.0, 1.0),
    "d_am_cos": (0.125, 0.875),
    "d_gm_cos": (0.25, 0.75),
    "d_hm_cos": (1 / 7, 6 / 7),
    "d_am_prime": (0.1891935, 0.8108065),  # (0.0450536 + 1/3)/2: the primed angle is clipped
    "d_gm_prime": (0.0150179, 0.9849821),
    "d_am_cos_prime": (0.125, 0.875),  # (1 + 1/2 + 2)/4, not clipped
    "d_gm_cos_prime": (0.25, 0.75),
    "d_hm_cos_prime": (1 / 7, 6 / 7),
}


def check(u, v, golden):
    for name, (distance, energy) in golden.items():
        values = dh2l.distance(u, v, name), dh2l.energy(u, v, name)
        np.testing.assert_allclose(values, (distance, energy), atol=2e-6, err_msg=name)


def test_golden_values_at_a_right_angle():
    check(jnp.float32([3, 4]), jnp.float32([4, -3]), RIGHT_ANGLE)
    primes = {f"{n}_prime": e for n, e in RIGHT_ANGLE.items() if f"{n}_prime" in dh2l.METRICS}
    assert len(primes) == 13
    check(jnp.float32([3, 4]), jnp.float32([4, -3]), primes)


def test_golden_values_at_sixty_degrees_in_one_orthant():
    check(plane(15), 7 * plane(75), SIXTY_DEGREES)


def test_golden_mean_over_pairs():
    """Cosines 1/2, 1/2, −1/2 at 0°, 60°, 120°; codes (+, +), (+, +), (−, +)."""
    W = jnp.stack([plane(0), 2 * plane(60), 3 * plane(120)])
    np.testing.assert_allclose(dh2l.mean_energy(W, "cosine"), 1 / 6, atol=1e-6)
    np.testing.assert_allclose(dh2l.mean_energy(W, "d_h_bin"), (1 + 0.5 + 0.5) / 3, atol=1e-6)
    # 1 − (θ_h + θ)/2 with θ_h = 0, 1/2, 1/2 and θ = 1/3, 1/3, 2/3
    np.testing.assert_allclose(
        dh2l.mean_energy(W, "d_am"), (5 / 6 + 7 / 12 + 5 / 12) / 3, atol=1e-6
    )


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_d_am_of_collinear_vectors_is_half_the_clip(scale):
    w = jnp.float32([0.3, -1.2, 2.0])
    np.testing.assert_allclose(dh2l.distance(w, scale * w, "d_am"), CLIP / 2, atol=1e-6)
    assert round(CLIP / 2, 4) == 0.0225


def test_eq9_of_the_printed_harmonic_mean_is_not_monotone():
    """D_HM is 4aθ/(a + θ): near 2 at antipodes, so its cosine is back near 1; 0 at right angles."""
    w = jnp.float32([1, 1])
    far = 4 * (1 - CLIP) / (2 - CLIP)  # h = −1 exactly and θ = 1 − CLIP; 2 without the clip
    np.testing.assert_allclose(dh2l.distance(w, -w, "d_hm"), far, atol=2e-6)
    assert far > 1.95
    assert dh2l.energy(w, -w, "d_cos_hm") > 0.99
    angles = np.linspace(0, 180, 37)
    energies = [dh2l.energy(plane(45), plane(45 + a), "d_cos_hm").item() for a in angles]
    assert angles[np.argmin(energies)] == 90
    assert min(energies) < 1e-6
    assert energies[-1] > 0.99


@pytest.mark.parametrize("name", ["d_gm", "d_hm", "d_gm_std", "d_hm_std"])
def test_products_are_zero_for_any_two_vectors_in_one_orthant(name):
    assert dh2l.distance(jnp.float32([1, 9]), jnp.float32([9, 1]), name) == 0
    assert dh2l.distance(jnp.float32([1, 9]), jnp.float32([9, 1]), f"{name}_prime") > 0.01


def test_the_triangle_inequality_fails_for_d_gm_and_d_hm():
    """Directions 5°, 85°, 95°: the last differs from the second by 10° and one sign."""
    a, b, c = plane(5), plane(85), plane(95)
    d_gm = [dh2l.distance(u, v, "d_gm").item() for u, v in ((a, c), (a, b), (b, c))]
    np.testing.assert_allclose(d_gm, [0.25, 0, 10 / 180 / 2], atol=1e-6)
    assert d_gm[0] > d_gm[1] + d_gm[2]
    d_hm = [dh2l.distance(u, v, "d_hm").item() for u, v in ((a, c), (a, b), (b, c))]
    np.testing.assert_allclose(d_hm, [1, 0, 4 * (0.5 / 18) / (0.5 + 1 / 18)], atol=1e-5)
    assert d_hm[0] > d_hm[1] + d_hm[2]


@pytest.mark.parametrize("prime", ["", "_prime"])
def test_the_root_of_one_minus_amcos_is_a_metric(prime):
    """A triangle inequality over all triples of close, far and collinear vectors."""
    W = np.concatenate([rows(s, n=5, d=4) for s in range(4)] + [-rows(0, n=5, d=4)])
    W = np.concatenate([W, W[:5] + 0.05 * W[5:10]])
    with jax.enable_x64(True):
        unit = W.astype(np.float64) / np.linalg.norm(W, axis=1, keepdims=True)
        c, h = unit @ unit.T, np.sign(unit) @ np.sign(unit).T / 4
        energy = np.asarray(dh2l.METRICS[f"d_am_cos{prime}"].energy(jnp.array(c), jnp.array(h)))
    assert energy.dtype == np.float64
    d = np.sqrt(np.maximum(1 - energy, 0))
    assert (d[:, None, :] <= d[:, :, None] + d[None, :, :] + 1e-7).all()


def test_any_zero_mean_set_minimises_the_sum_of_cosines():
    """Three pairs of antipodes on one line score as well as six well-spread vectors."""
    line = jnp.float32([[1, 0, 0], [-1, 0, 0]] * 3)
    spread = jnp.concatenate([jnp.eye(3), -jnp.eye(3)])
    cosine, diversity = energy_and_gradient("cosine"), energy_and_gradient("n_euclidean2")
    for W in (line, spread):
        value, gradient = cosine(W, everyone(W))
        np.testing.assert_allclose(value, -1 / 5, atol=1e-6)
        assert np.abs(gradient).max() < 1e-6
    assert diversity(line, everyone(line))[0] > 10 * diversity(spread, everyone(spread))[0]
    for seed in range(5):
        assert cosine(rows(seed), everyone(line))[0] >= -1 / 5 - 1e-6


@pytest.mark.parametrize("name", ["d_gm", "d_hm"])
def test_the_continuous_gradient_vanishes_where_codes_agree(name):
    by_c = jax.grad(dh2l.METRICS[name].energy)
    assert by_c(0.3, 1.0) == 0
    assert by_c(0.3, 0.5) > 0.05
    assert jax.grad(dh2l.METRICS["d_am"].energy)(0.3, 1.0) > 0.05


@pytest.mark.parametrize("name", ["angular2", "n_euclidean2"])
def test_pairs_nearer_than_the_clip_are_pushed_only_straight_through(name):
    W = jnp.stack([plane(40), plane(45)])
    assert np.degrees(np.arccos(0.99)) == pytest.approx(8.11, abs=0.005)

    hard, through = (energy_and_gradient(name, clamp) for clamp in ("hard", "straight_through"))
    (value, stopped), (same, gradient) = hard(W, everyone(W)), through(W, everyone(W))
    assert value == same
    assert not stopped.any()
    pushed = W - 1e-5 * gradient
    assert dh2l.cosine_similarity(*pushed) < dh2l.cosine_similarity(*W) - 1e-4
    wider = jnp.stack([plane(40), plane(48.2)])
    assert np.abs(hard(wider, everyone(wider))[1]).max() > 1e-3


@pytest.mark.parametrize("name", ["d_am", "d_cos_am", "d_gm_prime", "d_hm_prime", "d_hm_std_prime"])
def test_the_clip_stops_the_slope_in_c_only(name):
    hard = jax.grad(dh2l.METRICS[name].energy, argnums=(0, 1))(0.995, 0.2)
    through = dh2l.get_metric(name, clamp="straight_through")
    passed = jax.grad(through.energy, argnums=(0, 1))(0.995, 0.2)
    assert hard[0] == 0
    assert passed[0] > 1e-3
    assert hard[1] == passed[1] > 1e-3


def test_d_am_cos_prime_is_affine():
    W = jnp.asarray(rows(4))
    c, h = (dh2l.mean_energy(W, profile) for profile in (lambda c, h: c, lambda c, h: h))
    np.testing.assert_allclose(dh2l.mean_energy(W, "d_am_cos_prime"), (c + h + 2) / 4, rtol=1e-6)


@every_metric
def test_distance_grows_and_energy_falls_together(name):
    """Along any line of the grid of (c, h) the two move in opposite directions."""
    metric = dh2l.METRICS[name]
    c, h = (x.ravel() for x in np.meshgrid(np.linspace(-0.95, 0.95, 5), np.linspace(-0.9, 0.9, 5)))
    distance = np.broadcast_to(metric.distance(jnp.float32(c), jnp.float32(h)), c.shape)
    energy = np.broadcast_to(metric.energy(jnp.float32(c), jnp.float32(h)), c.shape)
    for i, j in itertools.combinations(range(25), 2):
        if abs(distance[i] - distance[j]) > 1e-5:
            assert (distance[i] < distance[j]) == (energy[i] > energy[j])


def test_zero_over_zero_is_zero():
    """A + B = 0 at antipodes with opposite codes."""
    w = jnp.float32([1, -1, 1, 1])
    for name in ("d_hm_cos", "d_hm_cos_prime"):
        assert oracle.pair(w, -w, name, "distance")[0] == 1
        value, gradient = jax.value_and_grad(lambda v, n=name: dh2l.energy(w, v, n))(-w)
        assert value == pytest.approx(0, abs=1e-6)
        assert np.isfinite(gradient).all()
