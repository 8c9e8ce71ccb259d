"""The paper's training recipes, and the variants of the method that its tables compare.

config = light("cifar100", "resnet20")                     # batch 512, 300 epochs, 32 × 32
config = with_variant(config, "l2")                        # the baseline that counts
config = with_variant(config, "E+H", fc_metric="d_hm_cos")

| variant  | head         | λ_f  | E on        | λ_l  | λ_o  |
|----------|--------------|------|-------------|------|------|
| baseline | plain        | 0    | –           | –    | –    |
| l2       | plain        | 5e-4 | –           | –    | –    |
| E        | plain        | 5e-4 | conv and FC | –    | –    |
| factored | hierarchical | 5e-4 | conv        | 0    | 1e-4 |
| E+H      | hierarchical | 5e-4 | conv        | λ_l  | 1e-4 |

"factored" is E+H with λ_l = 0: factoring changes SGD by itself, so it is the control of E+H. E on a
layer has the weight λ_e; the metric of the convolutions and that of the head are chosen apart.
"""

from __future__ import annotations

import dataclasses

from dh2l_jax.checks import unknown_name
from dh2l_jax.training.config.optim import OptimConfig
from dh2l_jax.training.config.sections import (
    Config,
    DataConfig,
    ModelConfig,
    RegConfig,
)

__all__ = ["VARIANTS", "embedded", "heavy", "light", "with_variant"]

VARIANTS = ("baseline", "l2", "E", "factored", "E+H")


def light(data: str, model: str) -> Config:
    """The recipe of ResNet-20 and ResNet-110 on small images, from random weights.

    Args:
      data: data set, such as "cifar100".
      model: network, such as "resnet20".

    Returns:
      E+H with D_AMcos, λ_e = λ_l = 0.1.

    >>> config = light("cifar100", "resnet110")
    >>> config.batch_size, config.epochs, config.optim.milestones
    (512, 300, (0.5, 0.85))

    Reference: DH²L, §5; the milestones are those of the author's follow-up of 2021.
    """
    return Config(
        epochs=300,
        batch_size=512,
        data=DataConfig(name=data, pad=4, flip=True),
        model=ModelConfig(name=model),
        reg=_weights(),
        optim=_sgd(),
    )


def heavy(data: str, model: str) -> Config:
    """The recipe of ResNet-18 and ResNet-50 on 224 × 224 crops, from ImageNet weights.

    Args:
      data: data set, such as "cub200".
      model: network, such as "resnet50"; its weights are named by `model.pretrained`.

    Returns:
      E+H with D_AMcos, λ_e = λ_l = 0.1.

    >>> config = heavy("cub200", "resnet50")
    >>> config.batch_size, config.epochs, config.data.resize, config.data.crop
    (256, 100, 256, 224)

    Reference: DH²L, §5.
    """
    return Config(
        epochs=100,
        batch_size=256,
        # Activations of 224 × 224 images: the default of 500 images would need several gigabytes.
        eval_batch_size=256,
        data=DataConfig(name=data, resize=256, crop=224, pad=0, flip=True),
        model=ModelConfig(name=model),
        reg=_weights(),
        optim=_sgd(),
    )


def embedded() -> Config:
    """A few minutes on a laptop: ResNet-20 on the images inside the package; not the paper's.

    Batch, learning rate and epochs were chosen on held-out training images, with a plain head.

    >>> embedded().data.name
    'fashion_mnist_mini'
    """
    return Config(
        epochs=6,
        batch_size=32,
        data=DataConfig(name="fashion_mnist_mini", pad=0),
        reg=_weights(),
        optim=OptimConfig(lr=0.05, schedule="cosine", warmup_epochs=0.6),
    )


def with_variant(
    config: Config, name: str, *, conv_metric: str | None = None, fc_metric: str | None = None
) -> Config:
    """The config that trains one variant of the method; the table above says what each has.

    Args:
      config: with the weights λ of a full E+H; those that a variant has not become 0.
      name: one of `VARIANTS`.
      conv_metric: metric of E on the convolutions, instead of the config's.
      fc_metric: metric of the head, instead of the config's.

    Raises:
      ValueError: there is no such variant, or a λ that it needs is 0.

    >>> config = with_variant(light("cifar100", "resnet20"), "factored")
    >>> config.model.head, config.reg.lambda_e, config.reg.lambda_l
    ('hierarchical', 0.1, 0.0)
    """
    if name not in VARIANTS:
        raise ValueError(unknown_name("variant", name, VARIANTS))
    reg, in_tree = config.reg, name in ("factored", "E+H")
    _check_weights(config, name)
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, head="hierarchical" if in_tree else "plain"),
        reg=dataclasses.replace(
            reg if in_tree else _without_tree(reg),
            conv_metric=conv_metric or reg.conv_metric,
            fc_metric=fc_metric or reg.fc_metric,
            lambda_e=0.0 if name in ("baseline", "l2") else reg.lambda_e,
            rules=() if name in ("baseline", "l2") else reg.rules,
            lambda_l=reg.lambda_l if name == "E+H" else 0.0,
        ),
        optim=dataclasses.replace(
            config.optim, weight_decay=0.0 if name == "baseline" else config.optim.weight_decay
        ),
    )


def _weights() -> RegConfig:
    return RegConfig(lambda_e=0.1, lambda_l=0.1, lambda_o=1e-4)


def _sgd() -> OptimConfig:
    return OptimConfig(
        lr=0.1,
        momentum=0.9,
        weight_decay=5e-4,
        schedule="step",
        milestones=(0.5, 0.85),
        decay=0.1,
    )


def _without_tree(reg: RegConfig) -> RegConfig:
    """No term of a hierarchical head, so that equal runs have equal configs."""
    names = ("lambda_o", "lambda_c1", "lambda_c2", "lambda_c3", "parent_ce_weight")
    return dataclasses.replace(reg, **dict.fromkeys(names, 0.0))


def _check_weights(config: Config, name: str) -> None:
    """Refuses to call a run by the name of a variant whose term it has not."""
    needed = {
        "l2": {"optim.weight_decay": config.optim.weight_decay},
        "E": {"reg.lambda_e": config.reg.lambda_e},
        "E+H": {"reg.lambda_l": config.reg.lambda_l},
    }
    for key, value in needed.get(name, {}).items():
        if value == 0:
            raise ValueError(f"variant {name!r} needs {key} > 0, found {value}")
