"""ResNet-50 on CUB-200-2011 {70, 200}, E+H with D_AMcos, the paper's heavy recipe.

python train.py --config configs/cub200_resnet50.py --set data.data_dir=DIR \
    --set model.pretrained=DIR/resnet50-19c8e357.pth
dh2l tables table5 --data DIR --pretrained DIR --seeds 0 1 2

The paper (Table 5): 77.32 %, l2 74.05 %, neither 74.21 %; ours: not run yet.
"""

from dh2l_jax.training.config import Config, recipes


def get_config() -> Config:
    """E+H; `--variant NAME` trains another."""
    return recipes.heavy("cub200", "resnet50")
