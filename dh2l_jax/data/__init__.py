"""Data sets, their class trees and the input pipeline.

`datasets` loads images and labels as NumPy arrays, `taxonomies` the tree above the labels,
`pipeline` shuffles, crops and normalises inside jit. Nothing here downloads anything.
"""
