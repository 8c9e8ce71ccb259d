"""The machine below a run: processes, signals, the allocator, traces."""
