"""What a network sees of new pictures is what it saw of those that it learned from."""

import io
import os
import threading

import numpy as np
import pytest
from PIL import Image
from support.folders import encoded, noise

from dh2l_jax.data.store.decode import decode
from dh2l_jax.data.store.pictures import Sight, seen


@pytest.fixture
def file(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.write_bytes(content)
        return path

    return write


def middle(pixels, height, width):
    top, left = round((pixels.shape[0] - height) / 2), round((pixels.shape[1] - width) / 2)
    return pixels[top : top + height, left : left + width]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("resize", "cut", "size", "shape", "scaled_to"),
    [
        (0, True, (8, 8), (21, 30), 0),
        (12, True, (8, 8), (21, 30), 12),
        (12, True, (8, 8), (30, 21), 12),
        (0, False, (8, 8), (8, 8), 0),
        (0, False, (8, 8), (30, 20), 8),
        (12, False, (12, 12), (20, 30), 12),
        (0, False, (8, 20), (30, 31), 20),  # of scaled images both sides reach the size
        (0, False, (20, 8), (31, 30), 20),
        (0, False, (4, 9), (100, 199), 5),  # 4 × 7 would be too narrow
        (10, False, (10, 14), (100, 149), 10),  # as it was scaled for training
        (0, False, (8, 8), (3, 5), 8),
    ],
)
def test_a_picture_is_scaled_and_cut_as_in_training(
    file, channels, resize, cut, size, shape, scaled_to
):
    content = encoded(noise(*shape))
    expected = middle(decode(content, channels=channels, resize=scaled_to), *size)
    sight = Sight(size, channels, resize, cut)
    np.testing.assert_array_equal(sight.of(file("a.png", content)), expected)
    np.testing.assert_array_equal(sight.of(noise(*shape)), expected)  # Pillow's grey, to the bit


def test_files_stand_upright_on_their_background(file):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = file("a.jpg", encoded(noise(8, 12), "JPEG", exif=exif, quality=95))
    pixels = np.asarray(Image.open(io.BytesIO(path.read_bytes())))
    np.testing.assert_array_equal(Sight((12, 8)).of(str(path)), np.rot90(pixels, -1))
    clear = file("b.png", encoded(Image.new("RGBA", (4, 4), (9, 9, 9, 0))))
    assert Sight((4, 4), background="#010203").of(clear)[0, 0].tolist() == [1, 2, 3]


def test_arrays_are_bytes_or_floats_of_one_scale():
    pixels, sight = noise(8, 8), Sight((8, 8))
    for image in (pixels, pixels / 255, (pixels / 255).astype(np.float32)):
        np.testing.assert_array_equal(sight.of(image), pixels)
    grey = pixels[..., 0]
    for image in (grey, grey[..., None]):
        np.testing.assert_array_equal(sight.of(image), np.stack([grey] * 3, axis=-1))


@pytest.mark.parametrize(
    ("picture", "line"),
    [
        (np.full((8, 8), 9.0), r"expected floats in 0..1, found 9..9: pixels .* given as uint8"),
        (np.full((8, 8), np.nan), "expected floats in 0..1, found nan..nan"),
        (noise(8, 8).astype(int), "expected uint8, or floats in 0..1, found int64"),
        (np.zeros((8, 8, 4), np.uint8), r"expected an image .* found shape \(8, 8, 4\)"),
        (np.zeros((0, 8), np.uint8), r"found shape \(0, 8\)"),
        (noise(7, 9), "7 × 9 pixels, expected at least the crop, 8 × 8"),
    ],
)
def test_what_is_no_picture_is_said(picture, line):
    with pytest.raises(ValueError, match=line):
        Sight((8, 8), cut=True).of(picture)


def test_what_cannot_be_read_has_a_reason_and_a_place(file, tmp_path):
    good = file("good.png", encoded(noise(8, 8)))
    (tmp_path / "link.png").symlink_to(good)
    os.mkfifo(tmp_path / "pipe.png")
    pictures = [
        file("page.jpg", b"<html>"),
        tmp_path / "link.png",
        tmp_path / "gone.png",
        tmp_path,
        tmp_path / "pipe.png",
        str(good),
        file("half.png", good.read_bytes()[:60]),
    ]
    found = list(seen(pictures, Sight((8, 8))))
    assert [picture for picture, _ in found] == pictures
    reasons = [pixels if isinstance(pixels, str) else "" for _, pixels in found]
    starts = "expected a JPEG", "", "No such file", "not a plain", "not a plain", "", "expected a w"
    for reason, start in zip(reasons, starts, strict=True):
        assert reason.startswith(start)
        assert bool(reason) == bool(start)


def test_only_so_many_pictures_are_read_ahead():
    asked, threads = [], os.cpu_count() or 1
    ahead = 4 * threads + 3

    def endless():
        while True:
            asked.append(0)
            yield noise(8, 8)

    before, found = threading.active_count(), seen(endless(), Sight((8, 8)), ahead=ahead)
    for number in range(1, 50):
        next(found)
        assert len(asked) == number + ahead
    found.close()
    assert threading.active_count() == before
