"""Resident and streamed images: the same order, crops, training and scores, ragged or not."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from hypothesis import given
from hypothesis import strategies as st

import dh2l_jax as dh2l
from dh2l_jax.data.batches.augment import (
    BatchPlan,
    Crops,
    center_crops,
    crop_images,
    draw_crops,
    training_plan,
)
from dh2l_jax.data.batches.feed import CropOptions, Resident, Streamed, check_sizes, make_feed
from dh2l_jax.data.batches.order import epoch_order
from dh2l_jax.data.batches.stream import crop_image, stream
from dh2l_jax.data.datasets import Dataset
from dh2l_jax.data.store.images import RaggedImages, flat_pixels, pixel_counts, sizes, take
from dh2l_jax.hierarchy.scores import summarize
from dh2l_jax.training.epochs import counts_so_far, last_item
from dh2l_jax.training.step.state import TrainState
from dh2l_jax.training.step.steps import make_eval_step, make_train_step

KEY = jax.random.key(7)
CUT = CropOptions((9, 8), pad=1, flip=True, batch_size=4)


def mesh_of(devices=2):
    auto = (jax.sharding.AxisType.Auto,)
    return jax.make_mesh((devices,), ("data",), axis_types=auto, devices=jax.devices()[:devices])


def ragged(count=14, seed=0, low=8, channels=3):
    """Images of random sizes, at least as large as the crops of CUT."""
    generator = np.random.default_rng(seed)
    size = generator.integers(low, low + 7, (count, 2)) + np.array([1, 0])
    end = np.cumsum(size.prod(axis=1))
    pixels = generator.integers(0, 256, (end[-1], channels), np.uint8)
    return RaggedImages(pixels, end - size.prod(axis=1), size)


def uniform(count=14, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 9, 8, 3), np.uint8)


def crop_loop(image, top, left, mirrored, crop):
    """Pixel by pixel."""
    out = np.zeros((*crop, image.shape[2]), image.dtype)
    for i in range(crop[0]):
        for j in range(crop[1]):
            row, column = top + i, left + (crop[1] - 1 - j if mirrored else j)
            if 0 <= row < image.shape[0] and 0 <= column < image.shape[1]:
                out[i, j] = image[row, column]
    return out


@given(st.integers(-30, 30), st.integers(-30, 30), st.booleans(), st.integers(0, 9))
def test_device_and_host_cut_what_a_loop_cuts(top, left, mirrored, index):
    images = ragged()
    expected = crop_loop(images[index], top, left, mirrored, (9, 8))
    host = crop_image(images[index], top, left, mirrored, (9, 8))
    np.testing.assert_array_equal(host, expected)
    crops = Crops(jnp.array([top]), jnp.array([left]), jnp.array([mirrored]))
    start, size = images.start[[index]].astype(np.int32), images.size[[index]]
    device = crop_images(jnp.asarray(images.pixels), jnp.asarray(start), size, crops, (9, 8))
    np.testing.assert_array_equal(device[0], expected)


def test_crops_stay_inside_the_padding_and_reach_its_edges():
    size = jnp.asarray(np.random.default_rng(0).integers(10, 14, (4000, 2)))
    crops = draw_crops(KEY, size, (9, 8), pad=2)
    for offset, length, crop in ((crops.top, size[:, 0], 9), (crops.left, size[:, 1], 8)):
        room = np.asarray(length) + 2 - crop
        assert offset.min() == -2
        assert np.all(np.asarray(offset) <= room)
        assert np.any(np.asarray(offset) == room)
    assert 0.45 < float(crops.mirrored.mean()) < 0.55
    assert not draw_crops(KEY, size, (9, 8), flip=False).mirrored.any()


@pytest.mark.parametrize("length", [224, 225, 226, 227, 256, 341])
def test_central_crop_rounds_as_torchvision(length):
    crops = center_crops(jnp.array([[length, 300]]), (224, 224))
    assert crops.top.item() == round((length - 224) / 2)
    assert crops.left.item() == 38


@pytest.mark.parametrize("images", [ragged(), uniform()], ids=["ragged", "uniform"])
@pytest.mark.parametrize("devices", [1, 2])
def test_both_feeds_give_the_same_batches(images, devices):
    labels, mesh = np.arange(14, dtype=np.int32) % 5, mesh_of(devices)
    order = epoch_order(3, 1, 14)
    batches = []
    for kind in (Resident, Streamed):
        feed = kind(images, labels, CUT, mesh)
        crops = jax.jit(feed.training_crops)
        found = [crops(KEY, 3 + i, *b) for i, b in enumerate(feed.training(KEY, order, 3, 3))]
        central = jax.jit(feed.evaluation_crops)
        found += [central(*batch) for batch, _ in feed.evaluation(6)]
        masks = [where for _, where in feed.evaluation(6)]
        batches.append((jax.device_get(found), masks))
    chex.assert_trees_all_equal(*batches)
    assert len(batches[0][0]) == 3 + 3
    # What was asked for is what came: the order of the epoch, and the plan's crops.
    for step in range(3):
        plan = training_plan(
            KEY, 3 + step, order, sizes(images), batch_size=4, crop=(9, 8), pad=1, flip=True
        )
        np.testing.assert_array_equal(plan.index, order[4 * step : 4 * step + 4])
        pixels, found = batches[0][0][step]
        np.testing.assert_array_equal(found, labels[plan.index])
        for i, index in enumerate(plan.index.tolist()):
            crop = [int(values[i]) for values in plan.crops]
            np.testing.assert_array_equal(pixels[i], crop_loop(images[index], *crop, (9, 8)))


def test_a_streamed_evaluation_fetches_nothing(monkeypatch):
    """What is on the device comes after the steps that were sent before, so it is not asked for."""
    feed, get = Streamed(ragged(), np.zeros(14, np.int32), CUT, mesh_of()), jax.device_get

    def checked(tree):
        assert not any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(tree))
        return get(tree)

    monkeypatch.setattr(jax, "device_get", checked)
    assert len(list(feed.evaluation(6))) == 3


class Linear(nn.Module):
    """A classifier of pixels, quick to compile."""

    @nn.compact
    def __call__(self, images, *, train):
        """Logits."""
        return nn.Dense(3)(images.reshape(len(images), -1))


def test_both_feeds_train_to_the_same_weights_and_scores():
    split = ragged(12), np.arange(12) % 3
    dataset = Dataset.from_splits("sizes", split, split, dh2l.Hierarchy.two_level([0, 0, 1]))
    model, tx, ends = Linear(), optax.sgd(0.1), []

    def objective(params, batch_stats, images, labels, step, **unused):
        logits = model.apply({"params": params}, images, train=True)
        L = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        return L, (batch_stats, {"L": L})

    for kind in (Resident, Streamed):
        feed = kind(dataset.train_images, dataset.train_labels, CUT, mesh_of())
        params = model.init(KEY, jnp.zeros((1, 9, 8, 3)), train=False)["params"]
        key = jax.random.key_data(KEY).copy()  # it is donated
        rate = jnp.ones(())
        state = TrainState(jnp.zeros((), int), params, {}, tx.init(params), key, rate)
        step, losses = make_train_step(objective, tx, dataset, feed), []
        for batch in feed.training(KEY, epoch_order(0, 0, 12), 0, 3):
            state, stepped = step(state, *batch)
            losses.append(float(stepped.terms["L"]))
        eval_step = make_eval_step(model, dataset, feed)
        total = last_item(counts_so_far(eval_step, state, feed, dataset.hierarchy, 8))
        scores = summarize(total, dataset.hierarchy)
        ends.append((losses, jax.device_get(state), scores))
    (losses, first, scores), (other_losses, second, other_scores) = ends
    np.testing.assert_allclose(losses, other_losses, rtol=1e-6)
    assert len(set(losses)) == 3
    chex.assert_trees_all_close(first, second, rtol=1e-6)
    assert scores["accuracy"] == other_scores["accuracy"]
    assert scores["images"] == 12


def test_a_stream_that_is_left_early_ends():
    plan = BatchPlan(np.zeros((50, 4), np.int32), Crops(*np.zeros((3, 50, 4), np.int32)))
    batches = stream(uniform(), plan, (9, 8))
    assert next(batches).shape == (4, 9, 8, 3)
    del batches


@pytest.mark.parametrize(("device_gb", "kind"), [(1e-5, Resident), (1e-7, Streamed)])
def test_the_budget_decides_who_cuts(device_gb, kind):
    feed = make_feed(uniform(), np.zeros(14, np.int32), CUT, mesh_of(), device_gb=device_gb)
    assert type(feed) is kind


def test_a_crop_larger_than_the_smallest_image_is_refused():
    check_sizes(uniform(), (11, 10), pad=1)
    with pytest.raises(ValueError, match="smallest image is 9 × 8, expected at least the crop"):
        check_sizes(uniform(), (12, 10), pad=1)


# Images of different sizes.


def test_subsets_share_pixels_and_compact_copies_only_theirs():
    images = ragged()
    some = take(images, np.array([5, 2]))
    assert some.pixels is images.pixels
    compact = some.compact()
    assert len(compact.pixels) == sum(len(images[i].reshape(-1, 3)) for i in (5, 2))
    for i, original in enumerate((5, 2)):
        np.testing.assert_array_equal(compact[i], images[original])
    assert images.compact() is images


def test_pixel_counts_are_those_of_the_images_alone():
    images = ragged()
    some = take(images, np.arange(14) > 9)
    every = np.concatenate([some[i].reshape(-1, 3) for i in range(len(some))])
    expected = np.stack([np.bincount(every[:, c], minlength=256) for c in range(3)])
    np.testing.assert_array_equal(pixel_counts(some), expected)
    array = uniform()
    expected = np.stack([np.bincount(array[..., c].ravel(), minlength=256) for c in range(3)])
    np.testing.assert_array_equal(pixel_counts(array), expected)


def test_a_data_set_of_images_of_different_sizes():
    train, test = (ragged(14), np.arange(14) % 2), (ragged(6, 1), np.arange(6) % 2)
    dataset = Dataset.from_splits("sizes", train, test, dh2l.Hierarchy.flat(2))
    assert dataset.image_shape == (None, None, 3)
    pixels, _ = flat_pixels(train[0])
    np.testing.assert_allclose(dataset.mean, pixels.mean(axis=0) / 255, rtol=1e-5)
    np.testing.assert_allclose(dataset.std, pixels.std(axis=0) / 255, rtol=1e-5)
    grey = (ragged(6, 1, channels=1), np.arange(6) % 2)
    with pytest.raises(ValueError, match=r"one shape, found \(None, None, 3\) for training"):
        Dataset.from_splits("sizes", train, grey, dh2l.Hierarchy.flat(2))


@pytest.mark.parametrize(
    ("pixels", "start", "size", "message"),
    [
        (np.zeros((9, 3)), [0], [[3, 3]], "of uint8, found"),
        (np.zeros(9, np.uint8), [0], [[3, 3]], r"pixels \(p, c\)"),
        (np.zeros((9, 3), np.uint8), [1], [[3, 3]], "outside of the 9 pixels"),
        (np.zeros((9, 3), np.uint8), [-1], [[3, 3]], "outside of the 9 pixels"),
        (np.zeros((9, 3), np.uint8), [0], [[0, 3]], "is empty"),
        (np.zeros((9, 3), np.uint8), [0], [[2**31 - 1, 2**31 - 1]], "outside of the 9 pixels"),
        (np.zeros((9, 3), np.uint8), [0, 1], [[3, 3]], r"size \(n, 2\)"),
    ],
)
def test_images_outside_of_their_pixels_are_refused(pixels, start, size, message):
    with pytest.raises(ValueError, match=message):
        RaggedImages(pixels, np.array(start), np.array(size))
