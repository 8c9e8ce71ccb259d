"""A network that compiles at once, with any head."""

from flax import linen as nn

from dh2l_jax.models import Network
from dh2l_jax.models.layers import batch_norm


class Tiny(Network):
    """One dense layer with a norm: images to features of a width."""

    width: int = 64

    @nn.compact
    def body(self, images, train):
        x = nn.Dense(self.width, name="dense")(images.reshape(images.shape[0], -1))
        return nn.relu(batch_norm("norm", x.dtype, train)(x))


def with_head_of(network):
    """A tiny network in place of one of 64 features."""
    return Tiny(1, network.head, neck=network.neck)
