"""ResNet-20 on CIFAR-10, E on convolutions and FC with D_cos(HM), the paper's light recipe.

python train.py --config configs/cifar10_resnet20.py --set data.data_dir=DIR
python train.py --config configs/cifar10_resnet20.py --set data.data_dir=DIR --variant l2
dh2l tables table1 --data DIR --seeds 0 1 2

The paper (Table 1): 92.93 %, l2 92.21 %, neither 90.34 %; ours: not run yet.
"""

from dh2l_jax.training.config import Config, recipes


def get_config() -> Config:
    """E with l2: CIFAR-10 has no tree."""
    config = recipes.light("cifar10", "resnet20")
    return recipes.with_variant(config, "E", conv_metric="d_cos_hm", fc_metric="d_cos_hm")
