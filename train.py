"""Train, compare with PTQ, export, verify, report: `python train.py recipe=cifar10_w4a8`; `--help` lists the recipes.

This is `qat train` for a checkout; the program is in qat/experiment/main.py.
"""

from qat.experiment.main import main

if __name__ == "__main__":
    main("python train.py")
