"""The command line, `qat COMMAND`. Adding a command costs a module here and a line in `main.py`."""
