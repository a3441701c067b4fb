"""The result of `convert`: a graph of integer modules."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx

from qat.integer.modules import IntegerModule


class IntegerModel(fx.GraphModule):
    """A network on integer codes, float in and float out. `codes(x)` also returns the codes of every site."""

    def codes(self, *inputs: Any) -> tuple[Any, dict[str, Tensor]]:
        """(output, {site: uint8 codes}) for one batch."""
        codes: dict[str, Tensor] = {}
        hooks = [
            module.register_forward_hook(
                lambda _m, _i, out, name=name: codes.__setitem__(name, out if isinstance(out, Tensor) else out[0])
            )
            for name, module in self.named_modules()
            if isinstance(module, IntegerModule) and module.makes_codes
        ]
        try:
            return self(*inputs), codes
        finally:
            for hook in hooks:
                hook.remove()
