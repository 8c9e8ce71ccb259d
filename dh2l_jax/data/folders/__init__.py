"""Own images in folders: walked, scanned to a source and a tree, checked."""
