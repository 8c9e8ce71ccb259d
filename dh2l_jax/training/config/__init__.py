"""The config of a run: its sections, recipes, typed options, and what contradicts what."""

from dh2l_jax.training.config.optim import OptimConfig
from dh2l_jax.training.config.sections import (
    Config,
    DataConfig,
    DistributedConfig,
    EvalConfig,
    LossConfig,
    ModelConfig,
    RegConfig,
    from_dict,
    identity,
    load,
    makes_another_run,
    override,
    same_run,
    to_dict,
)

__all__ = [
    "Config",
    "DataConfig",
    "DistributedConfig",
    "EvalConfig",
    "LossConfig",
    "ModelConfig",
    "OptimConfig",
    "RegConfig",
    "from_dict",
    "identity",
    "load",
    "makes_another_run",
    "override",
    "same_run",
    "to_dict",
]
