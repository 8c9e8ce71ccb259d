"""Float64 NumPy with loops: what the library should compute."""
