"""One step: the objective J, the state, the jitted steps, the optimiser, finite numbers."""
