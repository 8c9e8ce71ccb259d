"""The embedded images, a subset of Fashion-MNIST, and how they were made."""
