"""Orders, batches, draws of crops and evaluation masks; test_feed compares the pixels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dh2l_jax.data.batches.augment import crop_images, draw_crops, normalize
from dh2l_jax.data.batches.order import epoch_order, padded_batches, sampled_order, take_batch


def batch_indices(seed, epoch, step, size, batch_size):
    """What training sees, by definition; the loop makes the first call once an epoch."""
    return take_batch(epoch_order(seed, epoch, size), step, batch_size)


def random_crop_flip(key, images, *, pad=4, flip=True):
    """Pads with zeros, crops to the old size at a random place, mirrors at random."""
    b, h, w, c = images.shape
    size, start = jnp.broadcast_to(jnp.array([h, w]), (b, 2)), jnp.arange(b) * h * w
    crops = draw_crops(key, size, (h, w), pad=pad, flip=flip)
    return crop_images(images.reshape(-1, c), start, size, crops, (h, w))


def some_images(shape, seed=0):
    """uint8 without zeros, so that the border can be told from the picture."""
    return np.random.default_rng(seed).integers(1, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("size", [1, 2, 77, 6000])
def test_order_is_a_permutation(size):
    order = epoch_order(0, 5, size)
    assert order.dtype == jnp.int32
    np.testing.assert_array_equal(np.sort(order), np.arange(size))


def test_order_differs_across_epochs_and_seeds():
    orders = {tuple(epoch_order(seed, epoch, 50).tolist()) for seed in (0, 1) for epoch in range(5)}
    assert len(orders) == 10


def test_order_is_fixed_for_good():
    """A golden value: a run resumed after an upgrade must go on in the old order."""
    assert epoch_order(0, 1, 8).tolist() == [0, 3, 5, 1, 4, 6, 2, 7]


def test_order_ignores_the_default_generator():
    expected = epoch_order(0, 1, 100)
    with jax.default_prng_impl("rbg"):
        np.testing.assert_array_equal(epoch_order(0, 1, 100), expected)


LABELS = np.repeat([5, 2, 9, 0], [100, 10, 1, 25])


@pytest.mark.parametrize(("power", "shares"), [(0.0, [0.25] * 4), (0.5, None), (1.0, None)])
def test_labels_are_drawn_by_their_shares(power, shares):
    """Every epoch to the next whole number, on average exactly; images of a label in turn."""
    sizes = {5: 100, 2: 10, 9: 1, 0: 25}
    if shares is None:
        weights = np.array([n**power for n in sizes.values()])
        shares = weights / weights.sum()
    expected = dict(zip(sizes, np.array(shares) * len(LABELS), strict=True))
    epochs = [np.asarray(sampled_order(3, epoch, LABELS, power)) for epoch in range(60)]
    assert len({tuple(order) for order in epochs}) == 60
    drawn = np.array([[np.sum(LABELS[order] == label) for label in sizes] for order in epochs])
    wanted = np.array(list(expected.values()))
    assert (np.abs(drawn - wanted) < 1 + 1e-9).all()
    deviation = 60**-0.5 / 2  # of the mean of 60 numbers that are rounded up or down
    np.testing.assert_allclose(drawn.mean(0), wanted, atol=4 * deviation)
    for order in epochs:
        times = np.bincount(order, minlength=len(LABELS))
        assert all(np.ptp(times[label == LABELS]) <= 1 for label in sizes)
    seen = np.sum([np.bincount(order, minlength=len(LABELS)) for order in epochs], axis=0)
    common = seen[LABELS == 5]
    mean = common.mean()
    assert np.abs(common - mean).max() < 5 * max(mean, 1) ** 0.5
    halves = np.mean([LABELS[order[: len(order) // 2]] == 5 for order in epochs])
    np.testing.assert_allclose(halves, wanted[0] / len(LABELS), atol=0.05)


def test_a_sampled_order_is_a_function_of_seed_and_epoch():
    first = sampled_order(0, 1, LABELS[-30:], 0.0).tolist()
    assert first == sampled_order(0, 1, LABELS[-30:], 0.0).tolist()
    assert first != sampled_order(1, 1, LABELS[-30:], 0.0).tolist()
    assert sorted(sampled_order(0, 1, LABELS, 1.0).tolist()) == list(range(len(LABELS)))


@pytest.mark.parametrize("seed", [0, 1, 2**31 - 1])
def test_batches_are_slices_of_the_order_jitted_or_not(seed):
    jitted = jax.jit(batch_indices, static_argnums=(3, 4))
    sliced = jax.jit(take_batch, static_argnums=2)
    for epoch in range(2):
        order = epoch_order(seed, epoch, 103)
        for step in range(10):
            expected = np.asarray(order)[10 * step : 10 * step + 10]
            for batch in (
                batch_indices(seed, epoch, step, 103, 10),
                jitted(seed, epoch, step, 103, 10),
                take_batch(order, step, 10),
                sliced(order, step, 10),
            ):
                np.testing.assert_array_equal(batch, expected)
    assert jitted._cache_size() == 1


@pytest.mark.parametrize("step", [-1, 10, np.int64(10)])
def test_a_step_beyond_the_epoch_is_refused(step):
    with pytest.raises(ValueError, match=r"step must lie in 0\.\.9, found"):
        batch_indices(0, 0, step, 103, 10)


@pytest.mark.parametrize("batch_size", [0, -1, 104])
def test_a_batch_larger_than_the_data_is_refused(batch_size):
    with pytest.raises(ValueError, match=r"batch_size must lie in 1\.\.103 .*found"):
        batch_indices(0, 0, 0, 103, batch_size)


def test_every_offset_and_both_directions_occur_alike():
    """Recovered from the output alone: one bright pixel in the middle of each of 8,100 images."""
    images = jnp.zeros((8100, 9, 9, 1), jnp.uint8).at[:, 4, 3].set(1)
    result = np.asarray(random_crop_flip(jax.random.key(0), images, pad=1))[..., 0]
    _, row, column = result.nonzero()
    # Row 4 and column 3, or 5 once mirrored, each moved by −1, 0 or 1.
    rows, columns = np.bincount(row, minlength=9), np.bincount(column, minlength=9)
    assert abs(rows[3:6] / 2700 - 1).max() < 0.06
    assert abs(columns[2:7] / np.array([1350, 1350, 2700, 1350, 1350]) - 1).max() < 0.1
    assert rows.sum() == columns.sum() == 8100


def test_no_crop_no_flip_is_the_identity():
    images = some_images((6, 8, 8, 3))
    result = random_crop_flip(jax.random.key(0), jnp.asarray(images), pad=0, flip=False)
    np.testing.assert_array_equal(result, images)


def test_normalize_is_the_formula():
    images = some_images((3, 4, 4, 3))
    mean, std = np.array([0.1, 0.5, 0.4], np.float32), np.array([0.2, 0.3, 1.0], np.float32)
    result = jax.jit(normalize)(jnp.asarray(images), mean, std)
    assert result.dtype == jnp.float32
    np.testing.assert_allclose(result, (images / 255.0 - mean) / std, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [1, 7, 8, 9, 15, 16, 100])
@pytest.mark.parametrize("batch_size", [1, 8, 200])
def test_evaluation_counts_every_image_once(size, batch_size):
    index, where = padded_batches(size, batch_size)
    assert index.shape == where.shape == (-(-size // batch_size), batch_size)
    assert index.dtype == np.int32
    assert where.dtype == bool
    assert (index >= 0).all()
    assert (index < size).all()
    np.testing.assert_array_equal(np.bincount(index[where], minlength=size), np.ones(size))


@pytest.mark.parametrize(("size", "batch_size"), [(0, 4), (4, 0), (-1, 4)])
def test_evaluation_refuses_empty_batches(size, batch_size):
    with pytest.raises(ValueError, match="expected size"):
        padded_batches(size, batch_size)
