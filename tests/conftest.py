"""Settings of the suite: two fake devices, no implicit rank promotion, reproducible hypothesis."""

import gc
import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"  # commands keep programs: the user's folder

import hypothesis
import jax
import jaxlib
import pytest
from jax.experimental.compilation_cache import compilation_cache

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

SETTINGS = (
    "jax_compilation_cache_dir",
    "jax_compilation_cache_max_size",
    "jax_enable_compilation_cache",
    "jax_persistent_cache_enable_xla_caches",
    "jax_persistent_cache_min_compile_time_secs",
)


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """The folder of compiled programs of commands; what they set for their process is undone."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("dh2l_jax.training.host.allocator.keep_freed_memory", lambda: False)
    before = {name: getattr(jax.config, name) for name in SETTINGS}
    jax.config.update("jax_enable_compilation_cache", True)
    yield tmp_path / "cache" / "dh2l_jax" / "compiled" / f"{len(os.sched_getaffinity(0))}-cores"
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
