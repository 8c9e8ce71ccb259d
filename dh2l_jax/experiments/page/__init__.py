"""One HTML page about a run, which opens anywhere and asks nobody for anything."""
