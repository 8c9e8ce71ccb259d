"""Mixup, CutMix and RandAugment, pixel by pixel in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dh2l_jax.data.batches.mixing import mix
from dh2l_jax.data.batches.operations import OPERATIONS, randaugment

IMAGES = np.random.default_rng(0).normal(size=(3, 8, 6, 2)).astype(np.float32)


def mixed(**options):
    """Many times."""
    keys = jax.random.split(jax.random.key(0), 400)
    return jax.device_get(jax.jit(jax.vmap(lambda key: mix(key, IMAGES, **options)))(keys))


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_mixup(alpha):
    images, shares = mixed(mixup=alpha)
    for image, s in zip(images, shares, strict=True):
        np.testing.assert_allclose(image, s * IMAGES + (1 - s) * IMAGES[::-1], atol=1e-5)
    # Beta(α, α): mean ½, variance 1/(4 (2α + 1)); five standard errors.
    deviation = np.sqrt(1 / (4 * (2 * alpha + 1)))
    assert abs(shares.mean() - 0.5) < 5 * deviation / np.sqrt(len(shares))
    assert abs(shares.std() - deviation) < 5 * deviation / np.sqrt(len(shares))


def boxes(images, shares):
    """Whether each batch is its own but in one box, of which the share tells the area."""
    for batch, s in zip(images, shares, strict=True):
        other = np.any(batch[0] != IMAGES[0], axis=-1)
        rows, columns = np.flatnonzero(other.any(axis=1)), np.flatnonzero(other.any(axis=0))
        box = np.zeros((8, 6), bool)
        if other.any():
            box[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = True
        pasted = np.where(box[None, ..., None], IMAGES[::-1], IMAGES)
        yield np.isclose(s, 1 - box.mean(), atol=1e-6) and np.array_equal(batch, pasted)


def test_cutmix_pastes_a_box():
    images, shares = mixed(cutmix=1.0)
    assert all(boxes(images, shares))
    # The mean share: s uniform, sides rounded down, boxes cut off at the edges.
    expected = []
    for s in (np.arange(400) + 0.5) / 400:
        parts = []
        for side in (8, 6):
            cut = np.floor(side * np.sqrt(1 - s))
            low = np.ceil(np.arange(side) - cut / 2)
            parts.append(np.mean(np.minimum(low + cut, side) - np.maximum(low, 0)) / side)
        expected.append(1 - parts[0] * parts[1])
    assert abs(shares.mean() - np.mean(expected)) < 5 * shares.std() / np.sqrt(len(shares))


def test_with_both_a_coin_decides():
    cuts = sum(boxes(*mixed(mixup=50.0, cutmix=1.0)))
    assert abs(cuts - 200) < 50


def by_hand(name, x, a):
    """One pixel after the other."""
    h, w, _ = x.shape
    grey = x @ np.array([0.299, 0.587, 0.114])
    cos, sin = np.cos(np.pi / 6 * a), np.sin(np.pi / 6 * a)
    moves = {
        "translate_x": lambda r, c: (r, c + np.round(0.3 * a * w)),
        "translate_y": lambda r, c: (r + np.round(0.3 * a * h), c),
        "shear_x": lambda r, c: (r, c + 0.3 * a * r),
        "shear_y": lambda r, c: (r + 0.3 * a * c, c),
        "rotate": lambda r, c: (cos * r + sin * c, cos * c - sin * r),
    }
    found = np.zeros_like(x)
    for i, j, k in np.ndindex(x.shape):
        v, low, high = x[i, j, k], x[..., k].min(), x[..., k].max()
        if name in moves:
            r, c = moves[name](i - (h - 1) / 2, j - (w - 1) / 2)
            r, c = round(r + (h - 1) / 2), round(c + (w - 1) / 2)
            found[i, j, k] = x[r, c, k] if 0 <= r < h and 0 <= c < w else 0
            continue
        found[i, j, k] = {
            "identity": v,
            "autocontrast": (v - low) / (high - low) * 255,
            "brightness": (1 + 0.9 * a) * v,
            "contrast": grey.mean() + (1 + 0.9 * a) * (v - grey.mean()),
            "colour": grey[i, j] + (1 + 0.9 * a) * (v - grey[i, j]),
            "posterize": int(v) >> round(4 * abs(a)) << round(4 * abs(a)),
            "solarize": 255 - v if v >= 256 * (1 - abs(a)) else v,
        }[name]
    return found


@pytest.mark.parametrize("a", [0.55, -0.7])
def test_operations(a):
    x = np.random.default_rng(1).integers(0, 256, (7, 6, 3)).astype(float)

    def every(x):
        return {name: operation(x, jnp.float32(a)) for name, operation in OPERATIONS.items()}

    for name, found in jax.jit(every)(jnp.asarray(x, jnp.float32)).items():
        np.testing.assert_allclose(found, by_hand(name, x, a), rtol=1e-5, atol=1e-3, err_msg=name)


@pytest.mark.parametrize("channels", [1, 3])
def test_randaugment_is_two_operations_after_another(channels):
    """Each result is among those of all pairs and signs, and many of the pairs come up."""
    image = np.random.default_rng(2).integers(0, 256, (5, 4, channels)).astype(np.uint8)
    batch = np.repeat(image[None], 256, axis=0)
    found = np.asarray(jax.jit(lambda key: randaugment(key, batch, 6.0))(jax.random.key(3)))
    assert found.dtype == np.uint8

    def once(x):
        signed = [f(x, jnp.float32(a)) for f in OPERATIONS.values() for a in (0.6, -0.6)]
        return jnp.clip(jnp.round(jnp.stack(signed)), 0, 255)

    pairs = jax.jit(lambda x: jax.vmap(once)(once(x)))(jnp.asarray(image, jnp.float32))
    known = np.asarray(pairs).reshape(-1, *image.shape)
    nearest = [np.abs(known - result).max(axis=(1, 2, 3)).min() for result in found]
    assert max(nearest) <= 1  # a value at ½ may be rounded either way in another program
    assert len({result.tobytes() for result in found}) > 60
