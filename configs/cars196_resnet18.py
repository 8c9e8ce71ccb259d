"""ResNet-18 on Cars196 {9, 196}, E+H with D_AMcos, the paper's heavy recipe.

python train.py --config configs/cars196_resnet18.py --set data.data_dir=DIR \
    --set model.pretrained=DIR/resnet18-5c106cde.pth
dh2l tables table6 --data DIR --pretrained DIR --seeds 0 1 2

The paper (Table 6): 86.05 %, l2 85.58 %, neither 85.10 %; ours: not run yet.
"""

from dh2l_jax.training.config import Config, recipes


def get_config() -> Config:
    """E+H; `--variant NAME` trains another."""
    return recipes.heavy("cars196", "resnet18")
