"""Data sets, their class trees and the input pipeline.

`catalog` loads a data set by name: images and labels as NumPy arrays, with the tree above them.
`batches` plans and cuts crops, inside jit or on the host. `dh2l data` prepares a data set, which
may download it, or checks a folder; nothing else needs a network.
"""
