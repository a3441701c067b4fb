"""Train, compare with PTQ, export, verify, report: `python train.py recipe=cifar10_w4a8`; `--help` lists the recipes.

This is `qat train` for a checkout; the program is in qat/experiment/main.py.
"""

import sys

if __name__ == "__main__":
    try:
        from qat.experiment.main import main
    except KeyboardInterrupt:  # reading it takes a second, in which nothing has begun
        sys.exit(130)
    main("python train.py")
