"""Learning and deciding with a tree: `losses`, `decoding` of logits, `frames` as fixed heads."""
