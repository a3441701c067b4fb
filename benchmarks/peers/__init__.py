"""Other quantization-aware training libraries, each in an environment of its own: one file a library.

A file says what to install (`PACKAGES`), what it does (`SETTINGS`), and prepares a network as that library's documentation
does (`prepare`). `__main__.py` makes the environments; `worker.py` measures inside one.
"""

NAMES = ("qat", "quanto", "modelopt", "mct", "torch_ao", "brevitas", "torchao", "aimet", "nncf")
