"""Post-training quantization as the start of training."""

from __future__ import annotations

from torch import nn

from qat.transform import quantizers


def adopt(network: nn.Module, made: nn.Module) -> None:
    """Give a prepared network the weights, biases, statistics and ranges of `made`. In place; parameters stay the same objects.

    A quantizer with another grid than its counterpart (levels of its own, a stage of other bits) is left as it is.

    Args:
        network: what `qat.prepare` made of a float network. made: what `apply_passes` made of the same one.

    Raises:
        ValueError: the passes have changed which modules there are.
    """
    own, theirs = quantizers(network), quantizers(made)
    inside = tuple(f"{name}." for name in (*own, *theirs))
    state = {key: value for key, value in made.state_dict().items() if not key.startswith(inside)}
    wanted = {key for key in network.state_dict() if not key.startswith(inside)}
    if wanted != set(state) or own.keys() != theirs.keys():
        raise ValueError(
            "a training cannot start from passes that change which modules there are: leave FoldBatchNorm out of them."
        )
    network.load_state_dict(state, strict=False)
    for name, quantizer in own.items():
        if quantizer.spec == theirs[name].spec:
            quantizer.set_qparams(theirs[name].qparams())
