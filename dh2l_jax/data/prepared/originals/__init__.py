"""The original files of the data sets: where from, and how they are read safely."""
