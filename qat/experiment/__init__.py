"""What train.py runs: a LightningModule, its data, its float network, from a composed configuration to results.json."""
