"""Other libraries for quantization-aware training: one file per library, each measured in its own environment.

A file holds the packages to install (`PACKAGES`), a description for the table (`SETTINGS`), and `prepare`, which prepares a
network as the documentation of the library does. `__main__.py` makes the environments; `worker.py` measures inside one.
"""

NAMES = ("qat", "quanto", "modelopt", "mct", "torch_ao", "brevitas", "torchao", "aimet", "nncf")
