"""Devices to compile for that need not be there: how they are described, and how fast they are.

JAX compiles ahead of time for a topology, a description of devices; only the plugin with the
compiler is needed. jax is imported inside of functions: what plugins read is set before.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import jax

__all__ = ["PLATFORMS", "Platform"]


@dataclasses.dataclass(frozen=True)
class Platform:
    """A kind of device, with its public peak rates.

    Attributes:
      plugin: the module that holds the compiler.
      install: what brings it.
      bandwidth: bytes a second of the main memory.
      peaks: FLOPs a second by precision as `programs.Counts` names it, "" for any other.
      launch: seconds that a launch is assumed to take; 0 where a program is one launch.
      flags: of XLA.
      environment: what else is set before jax is imported.
    """

    plugin: str
    install: str
    bandwidth: float
    peaks: dict[str, float]
    launch: float
    flags: str = ""
    environment: dict[str, str] = dataclasses.field(default_factory=dict)

    def missing(self) -> str:
        """What is to be installed, "" if nothing."""
        try:
            found = importlib.util.find_spec(self.plugin)
        except ModuleNotFoundError:  # of the package that holds it
            found = None
        what = f"pip install '{self.install}', in an environment without another plugin"
        return "" if found else f"{self.plugin}, the compiler, is missing: {what}"

    def prepare(self) -> None:
        """Sets what jax and the plugins read: the host's arrays live on CPU."""
        flags = f"{os.environ.get('XLA_FLAGS', '')} {self.flags}".strip()
        os.environ |= {"JAX_PLATFORMS": "cpu", **self.environment, "XLA_FLAGS": flags}

    def mesh(self, devices: int) -> jax.sharding.Mesh:
        """So many of the devices along one axis, "data"."""
        import jax
        import numpy as np
        from jax.experimental import topologies

        if self.plugin == "jax":
            found = jax.devices()
        elif self.plugin == "libtpu":
            name = "v5e:2x2" if devices <= 4 else "v5e:4x4"
            found = topologies.get_topology_desc(name, platform="tpu").devices
        else:
            importlib.import_module(self.plugin)  # registers the platform
            shape = f"1x{-(-devices // 8)}x{min(devices, 8)}"  # hosts of eight
            found = topologies.get_topology_desc(
                "", platform="cuda", topology=shape, target_config=H100
            ).devices
        auto = (jax.sharding.AxisType.Auto,)
        return jax.sharding.Mesh(np.array(found[:devices]), ("data",), axis_types=auto)

    def roofline_seconds(self, flops: dict[str, float], traffic: float) -> float:
        """The roofline: arithmetic or memory at its peak, whichever takes longer."""
        rates = self.peaks
        arithmetic = sum(n / rates.get(kind, rates[""]) for kind, n in flops.items())
        return max(arithmetic, traffic / self.bandwidth)


# Rates of an H100 SXM by type (number in xla_data.proto): GHz, units a core, operations a clock.
SCALAR = {4: (1.98, 64, 1), 8: (1.98, 64, 1), 10: (1.98, 128, 2), 11: (1.98, 128, 1)}
SCALAR |= {12: (1.98, 64, 1), 16: (1.98, 128, 2)}
MATRIX = dict.fromkeys((2, 6, 19, 20, 23, 24, 25, 28, 29, 33, 35, 36), (1.8295201, 4, 1024))
MATRIX |= {10: (1.8295201, 4, 512), 11: (1.8295201, 4, 256), 12: (1.98, 4, 32)}
MATRIX |= {16: (1.8295201, 4, 512)}


def _rates(rates: dict[int, tuple[float, int, int]]) -> str:
    return " ".join(
        f"rate_infos {{ key: {key} value {{ clock_rate_ghz: {ghz} units_per_core: {units} "
        f"ops_per_clock: {ops} }} }}"
        for key, (ghz, units, ops) in sorted(rates.items())
    )


# XLA's own figures of the device (openxla/xla, backends/gpu/target_config/specs).
H100 = f"""
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32
  shared_memory_per_block: 49152 shared_memory_per_core: 233472
  shared_memory_per_block_optin: 232448 threads_per_core_limit: 2048
  core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 84942979072
  cuda_compute_capability {{ major: 9 feature_extension: ACCELERATED_FEATURES }}
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  scalar_unit_description {{ {_rates(SCALAR)} }}
  matrix_unit_description {{ {_rates(MATRIX)} }}
  device_vendor: "NVIDIA Corporation" platform_version: "Compute Capability 9.0a"
  model_str: "sm_9.0a" device_address_bits: 64
  name: "NVIDIA H100 80GB HBM3"
  driver_version: "13.0.0" runtime_version: "12.8.0" compile_time_toolkit_version: "12.8.0"
  dnn_version: "9.10.0" cub_version: "3.1.2"
}}
platform_name: "CUDA"
dnn_version_info {{ major: 8 minor: 9 patch: 4 }}
device_description_str: "NVIDIA H100 80GB HBM3"
"""

PLATFORMS = {
    "h100": Platform(
        plugin="jax_plugins.xla_cuda12",
        install="dh2l-jax[accelerator]",
        bandwidth=3.35e12,
        # f32 that asks for no precision is TF32; f32 in three bf16 pieces is three passes.
        peaks={
            "": 67e12,
            "f32": 495e12,
            "f32 bf16_bf16_f32_x3": 989e12 / 3,
            "f32 bf16_bf16_f32_x6": 989e12 / 6,
            "bf16": 989e12,
        },
        launch=3e-6,
        # Autotuning would run kernels: without it products are a library call or a default tiling.
        flags="--xla_gpu_autotune_level=0",
    ),
    "v5e": Platform(
        plugin="libtpu",
        install="jax[tpu]",
        bandwidth=819e9,
        # Every product is made of bf16 passes: six where the highest precision is asked for.
        peaks={
            "": 197e12,
            "f32 highest": 197e12 / 6,
            "f32 bf16_bf16_f32_x6": 197e12 / 6,
            "f32 high": 197e12 / 3,
            "f32 bf16_bf16_f32_x3": 197e12 / 3,
        },
        launch=0.0,
        # libtpu would else ask a server of the cloud who it is, and let one process use it.
        environment={
            "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
            "TPU_SKIP_MDS_QUERY": "1",
            "TPU_ACCELERATOR_TYPE": "v5litepod-4",
            "TPU_WORKER_HOSTNAMES": "localhost",
            "TPU_WORKER_ID": "0",
        },
    ),
    "cpu": Platform(
        plugin="jax",
        install="jax",
        bandwidth=45e9,
        peaks={"": 200e9},
        launch=0.0,
        flags="--xla_force_host_platform_device_count=16",
    ),
}
