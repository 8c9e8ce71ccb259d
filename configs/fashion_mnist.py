"""ResNet-20, hierarchical head, D_AMcos on the whole of Fashion-MNIST, the paper's light recipe.

python train.py --config configs/fashion_mnist.py --set data.data_dir=FOLDER_OF_THE_IDX_FILES

The paper has no figure for this data set.
"""

from dh2l_jax.training.config import Config, DataConfig


def get_config() -> Config:
    """Batch 512, 300 epochs, learning rate 0.1 → 0.01 → 0.001 at 50 % and 85 %."""
    return Config(data=DataConfig(name="fashion_mnist"))
