"""From loss terms to the next patch: objective, gradient, step, loop and optimizer."""
