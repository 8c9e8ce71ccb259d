"""ResNet-50 on Cars196 {9, 196}, E+H with D_AMcos, the paper's heavy recipe.

python train.py --config configs/cars196_resnet50.py --set data.data_dir=DIR \
    --set model.pretrained=DIR/resnet50-19c8e357.pth
dh2l tables table6 --data DIR --pretrained DIR --seeds 0 1 2

The paper (Table 6): 88.57 %, l2 87.92 %, neither 87.99 %; ours: not run yet.
"""

from dh2l_jax.training.config import Config, recipes


def get_config() -> Config:
    """E+H; `--variant NAME` trains another."""
    return recipes.heavy("cars196", "resnet50")
