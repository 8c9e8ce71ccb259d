"""The paper's data sets, prepared and read through TFDS without TensorFlow."""
