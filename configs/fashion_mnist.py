"""ResNet-20, hierarchical head, D_AMcos on the whole of Fashion-MNIST, the paper's light recipe.

python train.py --config configs/fashion_mnist.py --set data.data_dir=FOLDER_OF_THE_IDX_FILES

The paper has no figure for this data set; ours: not run yet.
"""

from dh2l_jax.training.config import Config, recipes


def get_config() -> Config:
    """E+H; `--variant NAME` trains another."""
    return recipes.light("fashion_mnist", "resnet20")
