"""What a process of `test_distributed` does; the devices come from JAX_NUM_CPU_DEVICES."""

import dataclasses
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax.sharding import NamedSharding, PartitionSpec

from dh2l_jax.data.batches.order import epoch_order
from dh2l_jax.hierarchy.scores import summarize
from dh2l_jax.training.config import Config, DistributedConfig, from_dict
from dh2l_jax.training.epochs import counts_so_far, last_item
from dh2l_jax.training.experiment import build
from dh2l_jax.training.host import processes
from dh2l_jax.training.step.objective import make_objective
from dh2l_jax.training.step.steps import make_eval_step, make_train_step

STEPS, BATCH, STOP_AT = 4, 16, 2
KINDS = {"resident": 1.0, "streamed": 0.0}  # data.device_gb


class Small(nn.Module):
    """A network with batch statistics, quick to compile."""

    @nn.compact
    def __call__(self, images, *, train):
        """Logits of ten classes."""
        features = nn.Conv(8, (5, 5), strides=4)(images)
        norm = nn.BatchNorm(use_running_average=not train, momentum=0.5)
        return nn.Dense(10)(nn.relu(norm(features)).mean((1, 2)))

    def objective(self, params, batch_stats, images, labels, step=0, **unused):
        """Cross-entropy, the new statistics, and the terms."""
        variables = {"params": params, "batch_stats": batch_stats}
        logits, new = self.apply(variables, images, train=True, mutable=["batch_stats"])
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        return loss, (new["batch_stats"], {"J": loss})


class Counted(np.ndarray):
    """Images that note which of them are read."""

    seen: set

    def __array_finalize__(self, other):
        self.seen = getattr(other, "seen", set())

    def __getitem__(self, index):
        if self.ndim == 4 and isinstance(index, int | np.integer):
            self.seen.add(int(index))
        return super().__getitem__(index)


def config_of(kind):
    return Config(
        epochs=2,
        batch_size=BATCH,
        eval_batch_size=BATCH,
        data=from_dict({"data": {"fraction": 0.02, "device_gb": KINDS[kind]}}).data,
        model=from_dict({"model": {"name": "resnet8"}}).model,
        optim=from_dict({"optim": {"lr": 0.02}}).optim,
    )


def measure(kind, *, small):
    """Losses, statistics, scores, and the images that this process has read."""
    experiment = build(config_of(kind))
    dataset = experiment.dataset
    names = "train_images", "test_images"
    images = {name: getattr(dataset, name).view(Counted) for name in names}
    experiment = dataclasses.replace(experiment, dataset=dataclasses.replace(dataset, **images))
    dataset = experiment.dataset
    feed, test_feed = experiment.feeds()
    if small:
        experiment = dataclasses.replace(experiment, model=Small())
        objective = experiment.model.objective
    else:
        objective = make_objective(experiment.model, dataset.hierarchy, experiment.config.reg)
    step = make_train_step(objective, experiment.tx, dataset, feed)
    state, steps, flags = experiment.init(), [], processes.flags(experiment.mesh)
    key = jax.random.wrap_key_data(state.key.copy())
    order = epoch_order(0, 0, len(feed))
    for number, batch in enumerate(feed.training(key, order, 0, STEPS)):
        flag = number == STOP_AT and jax.process_index() == jax.process_count() - 1
        state, stepped = step(state, *batch, stop=flags(flag))
        steps.append(stepped)
    losses = [float(stepped.terms["J"]) for stepped in steps]
    eval_step = make_eval_step(experiment.model, dataset, test_feed)
    total = last_item(counts_so_far(eval_step, state, test_feed, dataset.hierarchy, BATCH))
    scores = summarize(total, dataset.hierarchy)
    statistics = [np.asarray(leaf).ravel() for leaf in jax.tree.leaves(state.batch_stats)]
    return {
        "losses": losses,
        "stops": [bool(stepped.stop) for stepped in steps],
        "statistics": np.concatenate(statistics).tolist(),
        "scores": {name: scores[name] for name in ("images", "loss", "accuracy")},
        "replicated": all(leaf.is_fully_replicated for leaf in jax.tree.leaves(state)),
        "train": sorted(dataset.train_images.seen),
        "test": sorted(dataset.test_images.seen),
    }


def share(size):
    """Rows of a batch that lie on this process' devices."""
    mesh = jax.make_mesh((jax.device_count(),), ("data",))
    parts = NamedSharding(mesh, PartitionSpec("data")).addressable_devices_indices_map((size,))
    return sorted({row for (part,) in parts.values() for row in range(size)[part]})


def expected_reads():
    """The training images that this process needs: of a resident feed, and of a streamed one."""
    images = build(config_of("streamed")).dataset.train_images
    order = np.asarray(epoch_order(0, 0, len(images))).tolist()
    rows = share(BATCH)
    streamed = sorted({order[BATCH * step + row] for step in range(STEPS) for row in rows})
    return {"resident": share(len(images)), "streamed": streamed, "images": len(images)}


def sum_forever():
    """Sums over all devices until somebody is gone."""
    total = jax.jit(jnp.sum)
    flags = processes.flags(jax.make_mesh((jax.device_count(),), ("data",)))
    try:
        print("ready", flush=True)
        while True:
            total(flags(True)).block_until_ready()
    except Exception as error:
        if not processes.lost(error):
            raise
        print(f"error: {processes.LOST_LINE}", file=sys.stderr)
        processes.abandon(processes.LOST)


def main():
    what, options = sys.argv[1], json.loads(sys.argv[2])
    try:
        processes.start(DistributedConfig(**options))
    except ValueError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    if what in ("small", "resnet8"):
        result = {kind: measure(kind, small=what == "small") for kind in KINDS}
        print(json.dumps(result | {"reads": expected_reads()}))
    if what == "meet":
        print(json.dumps([jax.process_index(), jax.process_count(), jax.device_count()]))
    if what == "sum":
        sum_forever()
    jax.distributed.shutdown()


if __name__ == "__main__":
    main()
