"""Training on Lightning: the module, the callbacks, the experiment. The only floor that knows Lightning and Hydra."""
