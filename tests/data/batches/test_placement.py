"""The pixels that each process reads of a split are those of all images."""

import jax
import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from dh2l_jax.data.batches import placement
from dh2l_jax.data.store.images import RaggedImages, pixel_rows


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3)), min_size=1, max_size=6), st.data())
def test_some_pixels_are_those_of_all_images(sizes, data):
    """In an order of the images that is not that of their pixels, with others between them."""
    size = np.array(sizes)
    count = size.prod(axis=1)
    pixels = np.random.default_rng(0).integers(1, 256, (2 * count.sum(), 2), np.uint8)
    start = (2 * (np.cumsum(count) - count))[::-1]
    images = RaggedImages(pixels, start, size[::-1])
    whole = np.concatenate([images[i].reshape(-1, 2) for i in range(len(images))])
    first = data.draw(st.integers(0, len(whole)))
    last = data.draw(st.integers(first, len(whole) + 3))
    expected = np.concatenate([whole, np.zeros((3, 2), np.uint8)])[first:last]
    np.testing.assert_array_equal(pixel_rows(images, first, last), expected)


def test_the_pixels_of_a_share_make_the_whole():
    """On the devices of one process; their number does not divide that of the pixels."""
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    split, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data",), ()))
    images = np.random.default_rng(0).integers(0, 256, (3, 3, 5, 2), np.uint8)
    pixels = placement.gather_pixels(images, split, whole)
    assert pixels.is_fully_replicated
    np.testing.assert_array_equal(pixels, images.reshape(-1, 2))
