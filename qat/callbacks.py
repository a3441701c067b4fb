"""`qat.callbacks.*`: Lightning callbacks for any LightningModule."""

from qat.training.callbacks import *  # noqa: F403
from qat.training.callbacks import __all__ as __all__
