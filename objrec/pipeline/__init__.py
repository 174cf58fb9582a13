"""How steps are declared, keyed, cached and run. Knows the steps only by their declarations."""
