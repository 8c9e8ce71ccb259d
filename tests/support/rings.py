"""Measures the ring on eight fake devices, which its process must have: prints a JSON object."""

import functools
import json
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import dh2l_jax as dh2l

ROWS, WIDTH, BLOCK = 37, 6, 4
TERNARY = dh2l.get_metric("d_gm_cos", code="ternary", threshold=0.7)
# name: metric, devices, rows, options of the sum
CASES = {f"{n} devices": ("d_cos_hm", n, ROWS, {}) for n in (1, 2, 3, 5, 8)} | {
    "c alone": ("angular2", 3, ROWS, {}),
    "an affine part": ("d_am", 8, ROWS, {}),
    "a dead zone": (TERNARY, 2, ROWS, {}),
    "half a space": ("d_hm_cos", 5, ROWS, {"half_space": True}),
    "half a space, even": ("d_hm_cos", 8, ROWS, {"half_space": True}),
    "fewer rows than devices": ("d_cos_hm", 8, 5, {}),
    "closed": ("cosine", 8, ROWS, {}),
}


def mesh_of(devices):
    return Mesh(np.array(jax.devices()[:devices]), ("rows",), axis_types=(AxisType.Auto,))


def data(n):
    generator = np.random.default_rng(n)
    return generator.normal(size=(n, WIDTH)).astype(np.float32), generator.random(n) < 0.7


@functools.cache
def energy(metric, **options):
    """Jitted (W, where) → value and gradient."""

    def fn(W, where):
        return dh2l.mean_energy(W, metric, where=where, block=BLOCK, **options)

    return jax.jit(jax.value_and_grad(fn))


def errors(found, expected):
    """Relative to the value, and to the largest entry of the gradient."""
    (value, gradient), (exact, slope) = found, expected
    largest = np.abs(slope).max()
    assert largest > 1e-5
    return [
        float(abs(value - exact) / abs(exact)),
        float(np.abs(gradient - slope).max() / largest),
    ]


def compare(metric, devices, n, options):
    """The worse of all rows and some rows, against the dense sum."""
    W, some = data(n)
    ring = energy(metric, mesh=mesh_of(devices), axis="rows", **options)
    dense = energy(metric, method="dense", **options)
    return np.max(
        [errors(ring(W, where), dense(W, where)) for where in (some, np.ones(n, bool))], axis=0
    ).tolist()


def sharded():
    """Rows that lie on one axis of a 2 × 4 mesh already; the gradient stays there."""
    axes = (AxisType.Auto,) * 2
    mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("data", "rows"), axis_types=axes)
    W, where = data(40)
    place = NamedSharding(mesh, PartitionSpec("rows"))
    found = energy("d_am", mesh=mesh, axis="rows")(
        jax.device_put(W, place), jax.device_put(where, place)
    )
    return {
        "errors": errors(found, energy("d_am", method="dense")(W, where)),
        "stays": found[1].sharding.is_equivalent_to(place, 2),
    }


def compiled(devices, n, d):
    """Temporary bytes of a device, and the names of the collective operations."""
    mesh = mesh_of(devices)
    rows = NamedSharding(mesh, PartitionSpec("rows"))

    def fn(W):
        return dh2l.mean_energy(W, "d_cos_hm", mesh=mesh, axis="rows")

    shape = jax.ShapeDtypeStruct((n, d), jnp.float32, sharding=rows)
    step = jax.jit(jax.value_and_grad(fn), in_shardings=rows, out_shardings=(None, rows))
    program = step.lower(shape).compile()
    return {
        "bytes": program.memory_analysis().temp_size_in_bytes,
        "collectives": sorted(
            set(
                re.findall(
                    r"all-gather|all-reduce|all-to-all|collective-permute", program.as_text()
                )
            )
        ),
    }


def main():
    jax.config.update("jax_numpy_rank_promotion", "raise")
    large = {str(devices): compiled(devices, 20_000, 512) for devices in (1, 8)}
    jax.config.update("jax_disable_most_optimizations", True)
    found = {name: compare(*case) for name, case in CASES.items()}
    json.dump({"errors": found, "sharded": sharded(), "compiled": large}, sys.stdout)


if __name__ == "__main__":
    main()
