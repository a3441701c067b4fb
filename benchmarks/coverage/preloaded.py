"""Imported once, before networks are measured in processes of their own: what torch.onnx sets up in its first export."""

from __future__ import annotations

import io
from contextlib import redirect_stdout

import torch
from torch import nn

torch.set_num_threads(1)  # a pool of threads would not survive the fork
with redirect_stdout(io.StringIO()):
    torch.onnx.export(nn.GELU().eval(), (torch.ones(1),), dynamo=True, verbose=False)
