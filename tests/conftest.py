"""Settings of the suite: two fake devices, no implicit rank promotion, reproducible hypothesis."""

import gc
import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import hypothesis
import jax
import jaxlib

# The suite compiles thousands of small programs once each: optimising them takes most of its time.
FAST = "DH2L_FULL_OPTIMIZATION" not in os.environ
if FAST and jaxlib.__version__.startswith("0.10."):
    # As much again; XLA ends a process that is given a flag which its version does not know.
    flags = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    os.environ["XLA_FLAGS"] = f"{flags} {os.getenv('XLA_FLAGS', '')}"
jax.config.update("jax_disable_most_optimizations", FAST)
jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_numpy_rank_promotion", "raise")
gc.set_threshold(200_000, 20, 100)  # tracing makes many objects, which live as long as their jaxpr

hypothesis.settings.register_profile(
    "suite", deadline=None, max_examples=25, derandomize=True, print_blob=True
)
hypothesis.settings.load_profile("suite")
