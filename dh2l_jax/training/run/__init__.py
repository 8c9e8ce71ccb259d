"""What a run leaves in its folder: config, records, checkpoints, and who may write them."""
