"""The folder of a finished run, all of its files true to form, made without training."""

import dataclasses

import jax
import numpy as np

from dh2l_jax.data.store.fingerprint import DataRecord, Fingerprint
from dh2l_jax.hierarchy.scores import evaluate
from dh2l_jax.training.config import Config, DataConfig, ModelConfig, to_dict
from dh2l_jax.training.experiment import without_data
from dh2l_jax.training.run import checkpoint, folder
from dh2l_jax.training.run.facts import Outputs, gravest
from dh2l_jax.training.run.records import (
    append_record,
    versions,
    write_bytes,
    write_confusion,
    write_json,
    write_sealed,
)

SIDE = 8
DATA = {"name": "folder", "data_dir": "/nowhere", "crop": SIDE, "holdout": 1}


def make_run(workdir, tree, *, seed=0, images=60, epochs=2, name=str, head="hierarchical", **data):
    """A run of ResNet-8 with random weights, whose answers are often right.

    `name` makes the number of an image its path; `data` are options of the images.
    """
    generator = np.random.default_rng(seed)
    workdir.mkdir(parents=True)
    config = Config(
        epochs=epochs,
        data=DataConfig(**(DATA | data)),
        model=ModelConfig(name="resnet8", head=head),
    )
    write_json(workdir / folder.CONFIG, to_dict(config))
    C = tree.num_classes
    labels = np.arange(images, dtype=np.int32) % C
    logits = generator.normal(size=(images, C)).astype(np.float32)
    logits[np.arange(images), labels] += 2.0
    worst = gravest(logits, labels, tree)
    pixels = generator.integers(0, 256, (len(worst), SIDE, SIDE, 3)).astype(np.uint8)
    names = [name(row) for row in worst.tolist()]
    outputs = Outputs(logits, labels, worst, names, pixels)
    for epoch in range(1, epochs + 1):
        terms = {"J": 2.0 / epoch, "L": 1.0 / epoch, "R_E": 0.3, "R_p/2": -0.1}
        record = {"epoch": epoch, "step": epoch, **terms, "train_accuracy": 0.5, "lr": 0.1}
        append_record(workdir / folder.METRICS, record)
    record = record_of(tree, labels)
    state = dataclasses.replace(state_of(config, record, generator), step=np.int32(epochs))
    checkpoint.save(workdir, state, data=record.pack())
    scores = {"split": "validation", **evaluate(logits, labels, tree)}
    write_bytes(workdir / folder.OUTPUTS, outputs.pack())
    files = [folder.CONFIG, folder.METRICS, folder.OUTPUTS, *write_confusion(workdir, scores)]
    result = {
        **scores,
        "last_epoch": {**terms, "train_accuracy": 0.5},
        "data": record.fingerprint.summary(),
        "parameters": 1,
        "steps": epochs,
        "seconds": 0.1,
        "versions": versions(),
    }
    write_sealed(workdir / folder.RESULT, result, files)
    return outputs


def record_of(tree, labels):
    """What a checkpoint holds of images with these labels."""
    splits = {"train": labels, "test": labels}
    digests = {split: np.arange(len(labels), dtype=np.uint64) for split in splits}
    mean, std = np.full(3, 0.5, np.float32), np.full(3, 0.25, np.float32)
    return DataRecord(Fingerprint(tree, splits, digests, 2), (None, None, 3), mean, std)


def state_of(config, data, generator):
    """A state of a run with random weights; nothing is compiled."""
    state = jax.tree.map(lambda leaf: _filled(leaf, generator), without_data(config, data)[1])
    return dataclasses.replace(state, batch_stats=jax.tree.map(np.abs, state.batch_stats))


def _filled(leaf, generator):
    if not np.issubdtype(leaf.dtype, np.floating):
        return np.zeros(leaf.shape, leaf.dtype)
    return generator.normal(0, 0.3, leaf.shape).astype(leaf.dtype)
