"""ResNet-110 on CIFAR-100 {20, 100}, E+H with D_h^bin, the paper's light recipe.

python train.py --config configs/cifar100_resnet110.py --set data.data_dir=DIR
python train.py --config configs/cifar100_resnet110.py --set data.data_dir=DIR --variant factored
dh2l tables table2 --data DIR --seeds 0 1 2

The paper (Table 2): 74.26 %, l2 72.90 %, neither 62.02 %; ours: not run yet.
"""

from dh2l_jax.training.config import Config, recipes


def get_config() -> Config:
    """E+H; `--variant NAME` trains another."""
    config = recipes.light("cifar100", "resnet110")
    return recipes.with_variant(config, "E+H", conv_metric="d_h_bin", fc_metric="d_h_bin")
