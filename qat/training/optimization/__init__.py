"""Parameter groups, optimizers and weight averages of a network with quantizers."""
