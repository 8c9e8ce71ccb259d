"""ResNet-20 on CIFAR-100 {20, 100}, E+H with D_AMcos, the paper's light recipe.

python train.py --config configs/cifar100_resnet20.py --set data.data_dir=DIR
python train.py --config configs/cifar100_resnet20.py --set data.data_dir=DIR --variant factored
dh2l tables table2 --data DIR --seeds 0 1 2        (also table3, table4)

The paper (Tables 2 and 3): 69.24 %, l2 68.03 %, neither 63.86 %; ours: not run yet.
"""

from dh2l_jax.training.config import Config, recipes


def get_config() -> Config:
    """E+H; `--variant NAME` trains another."""
    return recipes.light("cifar100", "resnet20")
