"""Makers of tiny originals in the layouts of the real ones, and what a reader must find in them."""

import dataclasses
import functools
import gzip
import io
import tarfile
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import scipy.io
from PIL import Image
from tensorflow_datasets.core.download import checksums

from dh2l_jax.data.prepared import prepare
from dh2l_jax.data.prepared.read import BUILDERS
from dh2l_jax.hierarchy.published import taxonomy

FIELDS = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "fname")


@dataclasses.dataclass(eq=False)
class Example:
    """What a reader must find: pixels (h, w, c) and the other features."""

    pixels: np.ndarray
    label: int
    features: dict


def tar(members):
    """The bytes of a tar archive of {name: bytes or TarInfo}; a list of pairs may repeat a name."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in members.items() if isinstance(members, Mapping) else members:
            if isinstance(content, tarfile.TarInfo):
                archive.addfile(content)
                continue
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


def tgz(members):
    return gzip.compress(tar(members), compresslevel=1, mtime=0)


def encoded(pixels, kind="JPEG", **options):
    file = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(file, kind, **options)
    return file.getvalue()


def decoded(data):
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def photo(seed, width=12, height=9):
    """A smooth picture, so that JPEG keeps it small."""
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([x * 20 + seed, y * 25 + 2 * seed, x * y + 3 * seed], -1)
    return (pixels % 256).astype(np.uint8)


# CIFAR.


def cifar_rows(labels, seed):
    """Rows of a batch file and their pixels; labels (n, 1 or 2)."""
    labels = np.asarray(labels, np.uint8)
    pixels = np.random.default_rng(seed).integers(0, 256, (len(labels), 32, 32, 3), np.uint8)
    planes = pixels.transpose(0, 3, 1, 2).reshape(len(labels), -1)
    return np.concatenate([labels, planes], 1).tobytes(), pixels


def cifar10():
    """Members of `cifar-10-binary.tar.gz`, and the examples by split and id."""
    members = {"cifar-10-batches-bin/readme.html": b"<html>"}
    names = b"airplane\nautomobile\nbird\ncat\ndeer\ndog\nfrog\nhorse\nship\ntruck\n\n"
    members["cifar-10-batches-bin/batches.meta.txt"] = names
    examples = {"train": {}, "test": {}}
    files = [("train", f"data_batch_{i}.bin") for i in range(1, 6)] + [("test", "test_batch.bin")]
    for seed, (split, name) in enumerate(files):
        labels = np.arange(4 + seed) % 10
        members[f"cifar-10-batches-bin/{name}"], pixels = cifar_rows(labels[:, None], seed)
        for image, label in zip(pixels, labels.tolist(), strict=True):
            key = f"{split}_{len(examples[split]):05d}"
            examples[split][key] = Example(image, label, {})
    return members, examples


def cifar100():
    """Members of `cifar-100-binary.tar.gz`, and the examples by split and id."""
    tree = taxonomy("cifar100")
    members, examples = {}, {"train": {}, "test": {}}
    for level, kind in enumerate(("coarse", "fine"), 1):
        names = "\n".join(tree.names(level)) + "\n"
        members[f"cifar-100-binary/{kind}_label_names.txt"] = names.encode()
    for seed, split in enumerate(examples):
        fine = np.arange(100) if split == "train" else np.arange(0, 100, 7)
        coarse = np.asarray(tree.parents(2))[fine]
        rows, pixels = cifar_rows(np.stack([coarse, fine], 1), seed)
        members[f"cifar-100-binary/{split}.bin"] = rows
        for i, (image, parent, label) in enumerate(zip(pixels, coarse, fine, strict=True)):
            features = {"coarse_label": int(parent)}
            examples[split][f"{split}_{i:05d}"] = Example(image, int(label), features)
    return members, examples


# Fashion-MNIST.


def idx_bytes(array):
    header = bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">u4").tobytes()
    return gzip.compress(header + array.tobytes(), compresslevel=1, mtime=0)


def fashion_mnist():
    """The four files by name, and the examples by split and index."""
    files, examples = {}, {}
    for seed, (split, stem) in enumerate({"train": "train", "test": "t10k"}.items()):
        generator = np.random.default_rng(seed)
        images = generator.integers(0, 256, (20 - seed, 28, 28), np.uint8)
        labels = (np.arange(len(images)) % 10).astype(np.uint8)
        files[f"{stem}-images-idx3-ubyte.gz"] = idx_bytes(images)
        files[f"{stem}-labels-idx1-ubyte.gz"] = idx_bytes(labels)
        examples[split] = {
            i: Example(image[..., None], int(label), {})
            for i, (image, label) in enumerate(zip(images, labels, strict=True))
        }
    return files, examples


# CUB.


def cub():
    """Members of `CUB_200_2011.tgz`, and the examples by split and name of the member."""
    names = taxonomy("cub200").names(2)
    rows = {"images": [], "image_class_labels": [], "train_test_split": [], "bounding_boxes": []}
    images, examples = {}, {"train": {}, "test": {}}
    for i, label in enumerate([0, 0, 1, 57, 57, 84, 140, 199, 199, 21], 1):
        width, height = 12 + i, 9 + i % 3
        name = f"{label + 1:03d}.{names[label]}/{names[label]}_{i:04d}_{100 + i}.jpg"
        data = encoded(photo(i, width, height))
        # One box reaches beyond its image, as some of the real ones do.
        box = (1.0, 2.0, 200.0 if i == 3 else 6.0, 5.5)
        split = "train" if i % 2 else "test"
        rows["images"].append(f"{i} {name}")
        rows["image_class_labels"].append(f"{i} {label + 1}")
        rows["train_test_split"].append(f"{i} {i % 2}")
        rows["bounding_boxes"].append(" ".join(map(str, (i, *box))))
        images[f"CUB_200_2011/images/{name}"] = data
        right = min((box[0] + box[2]) / width, 1.0)
        bbox = (box[1] / height, box[0] / width, (box[1] + box[3]) / height, right)
        features = {"label_name": names[label].lower(), "bbox": bbox}
        examples[split][f"CUB_200_2011/images/{name}"] = Example(decoded(data), label, features)
    tables = {f"CUB_200_2011/{k}.txt": "\n".join(v).encode() + b"\n" for k, v in rows.items()}
    return {"attributes.txt": b"1 x\n", **tables, **images}, examples


# Cars.


def annotations(rows, fields=FIELDS, variable="annotations"):
    """A MATLAB file with the table as Stanford wrote it: a 1 × n struct array."""
    table = np.zeros((1, len(rows)), [(field, "O") for field in fields])
    for i, row in enumerate(rows):
        numbers = tuple(np.array([[number]]) for number in row[:-1])
        table[0, i] = (*numbers, np.array([row[-1]]))
    file = io.BytesIO()
    scipy.io.savemat(file, {variable: table}, do_compression=True)
    return file.getvalue()


def cars():
    """The files of the extracted layout by relative path, and the examples by split and id."""
    files, examples = {}, {"train": {}, "test": {}}
    tables = {"train": "devkit/cars_train_annos.mat", "test": "cars_test_annos_withlabels.mat"}
    for seed, split in enumerate(examples):
        rows = []
        for i, label in enumerate([0, 195, 3, 77, 77][seed:], 1):
            data = encoded(photo(10 * seed + i, 20 + i, 15))
            files[f"cars_{split}/{i:05d}.jpg"] = data
            rows.append((2, 3, 15 + i, 11, label + 1, f"{i:05d}.jpg"))
            bbox = (3 / 15, 2 / (20 + i), 11 / 15, (15 + i) / (20 + i))
            examples[split][f"{i:05d}"] = Example(decoded(data), label, {"bbox": bbox})
        files[tables[split]] = annotations(rows)
    return files, examples


def cars_archives(files):
    """The four original archives of the files of the extracted layout."""
    groups = {"cars_train.tgz": "cars_train/", "cars_test.tgz": "cars_test/"}
    groups["car_devkit.tgz"] = "devkit/"
    archives = {
        archive: tgz({name: data for name, data in files.items() if name.startswith(prefix)})
        for archive, prefix in groups.items()
    }
    test = "cars_test_annos_withlabels.mat"
    return {**archives, **({test: files[test]} if test in files else {})}


ARCHIVES = {
    "cifar10": "cifar-10-binary.tar.gz",
    "cifar100": "cifar-100-binary.tar.gz",
    "cub200": "CUB_200_2011.tgz",
}


@functools.cache
def _made(name):
    makers = {"cub200": cub, "cars196": cars, "cifar10": cifar10, "cifar100": cifar100}
    return makers.get(name, fashion_mnist)()


def members(name):
    """{path: bytes} of what the original files of a data set hold; not to be changed."""
    return MappingProxyType(_made(name)[0])


def examples(name):
    """{split: {key: Example}} that a reader must find."""
    return MappingProxyType(_made(name)[1])


def packed(name, members):
    """The original files of a data set, {name: bytes}, that hold some members."""
    if name in ARCHIVES:
        return {ARCHIVES[name]: tgz(members)}
    return cars_archives(members) if name == "cars196" else dict(members)


@functools.cache
def originals(name):
    """The original files of a data set by name."""
    return packed(name, members(name))


def prepare_tiny(monkeypatch, name, root, files=None):
    """Prepares the tiny originals, or others, from `root/manual` in `root/data`; the source."""
    manual = write(originals(name) if files is None else files, root / "manual")
    use_tiny(monkeypatch, name, manual)
    prepare.prepare(name, data_dir=root / "data", manual_dir=manual)
    return prepare.open_prepared(name, root / "data")


def write(files, folder):
    """Writes {relative path: bytes} into a folder and returns it."""
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def use_tiny(monkeypatch, name, manual):
    """Lets the builder of a data set expect the files in `manual` instead of the real originals."""
    builder = BUILDERS[name]
    infos = {
        url: checksums.compute_url_info(manual / info.filename)
        if (manual / info.filename).is_file()
        else info
        for url, info in builder.url_infos.items()
    }
    monkeypatch.setattr(builder, "url_infos", infos)
    # TFDS keeps one table in the process and writes ours into it: give it a throw-away one.
    monkeypatch.setattr(checksums, "get_all_url_infos", dict)
