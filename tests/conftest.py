"""Settings of the suite: two fake devices, no implicit rank promotion, reproducible hypothesis."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import hypothesis
import jax

jax.config.update("jax_num_cpu_devices", 2)
# The suite compiles hundreds of small programs once each: optimising them takes most of its time.
jax.config.update("jax_disable_most_optimizations", "DH2L_FULL_OPTIMIZATION" not in os.environ)
jax.config.update("jax_numpy_rank_promotion", "raise")

hypothesis.settings.register_profile(
    "suite", deadline=None, max_examples=25, derandomize=True, print_blob=True
)
hypothesis.settings.load_profile("suite")
