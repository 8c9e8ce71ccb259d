"""Hand-made vectors of kernels in float64, by loops, and the check that a plan reads the same."""

import jax
import numpy as np
from oracle import metrics as oracle

import dh2l_jax as dh2l


def columns(kernel, outputs=1):
    """(n, d) of a kernel whose last `outputs` axes count the vectors."""
    kernel = np.asarray(kernel, float)
    inputs = kernel.shape[: kernel.ndim - outputs]
    places = np.ndindex(kernel.shape[kernel.ndim - outputs :])
    return np.array([[kernel[(*i, *o)] for i in np.ndindex(inputs)] for o in places])


def rows(weight):
    """(n, d) of a weight whose first axis counts the vectors."""
    return np.array([[row[i] for i in np.ndindex(row.shape)] for row in np.asarray(weight, float)])


def grouped(matrix, groups):
    """The vectors of each group of a convolution."""
    return np.split(np.asarray(matrix), groups)


def energy(matrices, name="cosine"):
    """Σ of the mean energies of hand-made matrices."""
    return sum(oracle.mean_energy(np.asarray(W, float), name)[0] for W in matrices)


def assert_reads(plan, params, expected):
    """A plan looks at these vectors and no others: path → a matrix, or a list of a batch."""
    found = plan.matrices(params)
    assert found.keys() == expected.keys()
    for path, by_hand in expected.items():
        np.testing.assert_array_equal(found[path], np.asarray(by_hand, found[path].dtype), path)
    report = plan.report(params)
    for path, by_hand in expected.items():
        batch = by_hand if isinstance(by_hand, list) else [by_hand]
        np.testing.assert_allclose(report[path], energy(batch), rtol=2e-6, atol=1e-6, err_msg=path)
    total = sum(map(float, report.values()))
    np.testing.assert_allclose(
        jax.jit(plan.value)(plan.leaves(params)), total, rtol=2e-6, atol=1e-6
    )


def default(pattern):
    """Every leaf of a pattern, with weight 1."""
    return dh2l.rules({pattern: ("cosine", 1.0)})
