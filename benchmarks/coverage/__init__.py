"""Networks that were written elsewhere, each taken from random weights to a verified file.

`networks.py` lists them, by where they come from; `measure.py` takes one through every stage, `worker.py` does so in a process
of its own, and `__main__.py` is the command. `judge.py` says what a right file is; `table.py` makes docs/models.md.
"""
