"""ResNet-18 on CUB-200-2011 {70, 200}, E+H with D_AMcos, the paper's heavy recipe.

python train.py --config configs/cub200_resnet18.py --set data.data_dir=DIR \
    --set model.pretrained=DIR/resnet18-5c106cde.pth
dh2l tables table5 --data DIR --pretrained DIR --seeds 0 1 2

The paper (Table 5): 76.14 %, l2 72.29 %, neither 72.17 %; ours: not run yet.
"""

from dh2l_jax.training.config import Config, recipes


def get_config() -> Config:
    """E+H; `--variant NAME` trains another."""
    return recipes.heavy("cub200", "resnet18")
