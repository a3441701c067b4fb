"""A run of `qat train`: from a composed configuration to results.json. README.md in this folder says what is where."""
