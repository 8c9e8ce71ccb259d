"""Data sets, their class trees and the input pipeline.

`datasets` loads images and labels as NumPy arrays, `taxonomies` the tree above the labels;
`pipeline` plans and cuts crops inside jit, `streaming` on the host. `python -m dh2l_jax.data`
prepares a data set, which may download it, or checks a folder; nothing else needs a network.
"""
