"""Zeros in the weights of a network that is quantized as it learns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from qat.nn import is_layer, layer_type
from qat.quantizers.codebook import Codebook
from qat.report.results.pruning import PruningResult, RemovedChannels
from qat.sparsity import (
    Pattern,
    cubic_sparsity,
    keep_largest,
    keep_largest_of_all,
    keep_pattern,
    pattern_axis_fits,
)
from qat.sparsity.channels import remove_channels
from qat.training.callbacks.prunable_weights import PrunableWeight, chosen_weights, prunable, weights_of
from qat.training.callbacks.pruning_checks import (
    check_masks_of_layers,
    check_same_masks,
    keep_zero,
    warn_of_zero_layers,
)
from qat.training.callbacks.pruning_options import check_names_of_layers, check_pruning, names_of_layers
from qat.training.callbacks.quantization_aware_training import QuantizationAwareTraining
from qat.training.comparison.zeros import zeros_of_layers
from qat.training.lightning.callback_lookup import NetworkExtension, require_callback
from qat.training.lightning.fit_progress import check_known_length, fraction_of_fit, last_fraction_of_fit
from qat.training.lightning.selection import (
    forget_best,
    restart_early_stopping,
    resume_selection,
    suspend_selection,
)
from qat.training.optimization.averaging import live_copies


class Pruning(NetworkExtension):
    """Sets the smallest weights to zero, more and more of them over the fit, and keeps them there.

    A pruned weight is zero in the parameter itself: before its quantizer, in every forward, checkpoint and export. Zero is a
    code of its own, so it is zero in the exported integers, where `Report` counts it. After each optimizer step the pruned
    weights are set to zero again, so neither momentum nor a gradient brings them back; a mask never gets smaller. The share of
    zeros rises as a cube (Zhu and Gupta 2017, https://arxiv.org/abs/1710.01878, equation 1) from `begin` to `end`.

    `pattern="2:4"` keeps the largest 2 of every 4 weights along the inputs of each output, which sparse units of GPUs take;
    layers whose inputs are not a multiple of 4 stay as they are. Until the share of zeros is final, no best checkpoint is
    chosen; averages of weights (EMA, SWA) have the same zeros. Masks are in the checkpoint: a resumed fit continues exactly,
    and all processes have the same, which is checked. `ProgressiveBits` does not touch them.

        trainer = L.Trainer(callbacks=[QuantizationAwareTraining("w4a8"), Pruning(0.7)])
        trainer = L.Trainer(callbacks=[QuantizationAwareTraining("w8a8"), Pruning(pattern="2:4")])

    `channels=0.3` takes channels out: three tenths of the output channels of each layer whose channels do not flow through
    adds, concatenations or out of the network, those of the smallest filters (Li et al. 2017,
    https://arxiv.org/abs/1608.08710), with their BatchNorm and the inputs of the next layer. The network that is prepared,
    trained and written is the smaller one.

        trainer = L.Trainer(callbacks=[QuantizationAwareTraining("w4a8"), Pruning(channels=0.3)])

    Differs from the paper: a pruned weight does not come back; there, masks are drawn anew from weights that were kept.

    Args:
        sparsity: share of zeros at the end, in [0, 1). None: that of the pattern.
        pattern: "N:M", at most N of M neighbours are not zero. None: anywhere.
        scope: "layer": every layer has this share; "global": all layers together, by one threshold (without a pattern).
        begin: share of the fit at which pruning begins.
        end: share of the fit, below 1, from which on the share of zeros is final.
        every: optimizer steps between two changes of the masks.
        match: layers to prune: a glob on names, "type:Conv2d", or a list of such.
        exclude: layers to leave as they are, likewise; also "first" and "last".
        channels: share of the channels that are taken out before the fit, in [0, 1).

    Raises:
        ValueError: a number is out of range; when the fit begins: no layer can be pruned, the length of the fit is unknown, or
            a quantizer has no zero (`Binary`).
        RuntimeError: during the fit: masks differ between processes.
    """

    def __init__(
        self,
        sparsity: float | None = None,
        pattern: str | None = None,
        scope: str = "layer",
        begin: float = 0.0,
        end: float = 0.5,
        every: int = 10,
        match: str | Sequence[str] = "*",
        exclude: str | Sequence[str] = ("first", "last"),
        channels: float = 0.0,
    ) -> None:
        check_pruning(sparsity, pattern, scope, begin, end, every, channels)
        self.pattern = None if pattern is None else Pattern.parse(pattern)
        self.sparsity = self.pattern.sparsity if self.pattern is not None else float(sparsity or 0.0)
        self.scope, self.begin, self.end, self.every = scope, begin, end, every
        self.match, self.exclude = names_of_layers("match", match), names_of_layers("exclude", exclude)
        self.channels, self.changes_float_network = channels, channels > 0
        self.removed: dict[str, tuple[int, int]] = {}
        """Layer -> output channels before and after some were taken out."""
        self.whole: list[str] = []
        """The chosen layers that keep all of their channels."""
        self.masks: dict[str, Tensor] = {}
        """Layer, or matrix of another module -> which weights stay, bool, in the shape of the weight."""
        self._suspended = False
        self._done = 0.0
        self._hooks: list[RemovableHandle] = []

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        require_callback(trainer, QuantizationAwareTraining, self)
        if stage == "fit":
            check_known_length(trainer, self)
            self.masks, self._suspended, self._done = {}, False, 0.0

    def on_float_network(self, pl_module: nn.Module, network: nn.Module) -> dict[str, int]:
        """Take channels out of the float network."""
        layers = {
            n: PrunableWeight(m, "weight", layer_type(m).__name__) for n, m in network.named_modules() if is_layer(m)
        }
        chosen = chosen_weights({n: w for n, w in layers.items() if not w.is_table}, self.match, self.exclude)
        multiple = 1 if self.pattern is None else self.pattern.group
        self.removed = remove_channels(network, self.channels, chosen.__contains__, multiple)
        self.whole = [name for name in chosen if name not in self.removed]
        return {name: kept for name, (_, kept) in self.removed.items()}

    def on_prepared(self, pl_module: nn.Module, network: nn.Module) -> None:
        """Check that the options name layers that can be pruned.

        Raises:
            ValueError: none can, or a name fits no layer.
        """
        if not self.sparsity:
            return
        weights = weights_of(network)
        modules = {name.removesuffix(f".{weight.name}"): weight.kind for name, weight in weights.items()}
        kinds = {name: weight.kind for name, weight in weights.items()}
        check_names_of_layers({"match": self.match, "exclude": self.exclude}, modules | kinds)
        if not self.layers(network):
            fits = "" if self.pattern is None else f" whose inputs are a multiple of {self.pattern.group}"
            raise ValueError(
                f"Pruning(match={list(self.match)}, exclude={list(self.exclude)}) finds no layer{fits} with a weight of its "
                "own (a weight that is parametrized, or masked by torch.nn.utils.prune, is left to that, and one that another "
                "layer shares to that layer): write others."
            )

    def layers(self, network: nn.Module) -> dict[str, PrunableWeight]:
        """The weights that are pruned, by name, in the order in which they run.

        A weight that several layers share is pruned if all of them are chosen.
        """
        found = prunable(network, chosen_weights(weights_of(network), self.match, self.exclude))
        fits = self.pattern
        return {n: w for n, w in found.items() if fits is None or pattern_axis_fits(w.outputs_first(w.value), fits)}

    # State -----------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return {"masks": {name: mask.cpu() for name, mask in self.masks.items()}, "suspended": self._suspended}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.masks, self._suspended = dict(state_dict["masks"]), bool(state_dict["suspended"])

    # The fit ---------------------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        network = self._network(trainer, pl_module)
        self._say_what_stays(network)
        if not self.sparsity:
            return
        if (last := last_fraction_of_fit(trainer)) < self.end:
            raise ValueError(
                f"this fit ends before its zeros are final: its last batch begins at {last:.0%}, end={self.end}: write a "
                "smaller end."
            )
        layers = self.layers(network)
        check_masks_of_layers(self.masks, layers)
        for name, layer in layers.items():
            keep_zero(name, layer)
        self.masks = {name: mask.to(layers[name].value.device) for name, mask in self.masks.items()}
        zero = partial(self._zero_again, layers)
        self._hooks = [optimizer.register_step_post_hook(zero) for optimizer in trainer.optimizers]
        if not self.masks or self._suspended:
            self._suspended = True
            suspend_selection(trainer, self)

    def _say_what_stays(self, network: nn.Module) -> None:
        """Name the weights and the channels that the options choose and that stay."""
        if self.whole:
            rank_zero_warn(
                f"Pruning(channels={self.channels}) takes no channel of {', '.join(self.whole)}: those that flow through adds, "
                "concatenations or other operations, or out of the network, stay."
            )
        chosen = chosen_weights(weights_of(network), self.match, self.exclude) if self.sparsity else {}
        pruned = self.layers(network)
        if dense := [name for name in chosen if name not in pruned]:
            fits = "" if self.pattern is None else f"inputs that are not a multiple of {self.pattern.group}, "
            rank_zero_warn(
                f"Pruning leaves the weights of {', '.join(dense)} as they are: {fits}embeddings, and weights that are "
                "parametrized, masked already or shared with what is not pruned."
            )

    @torch.no_grad()
    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if not self.sparsity:
            return
        done, before = fraction_of_fit(trainer, batch_idx), self._done
        self._done = done
        is_final = done >= self.end
        if self.masks and (before >= self.end or (trainer.global_step % self.every and not is_final)):
            return
        network = self._network(trainer, pl_module)
        layers = self.layers(network)
        weights = {name: layer.outputs_first(layer.value) for name, layer in layers.items()}
        masks = self._masks(weights, cubic_sparsity(done, self.sparsity, self.begin, self.end))
        masks = {name: layers[name].outputs_first(mask) for name, mask in masks.items()}
        # A fit that is resumed and made longer is further back in its schedule than its masks are.
        self.masks = {name: mask & self.masks[name] if name in self.masks else mask for name, mask in masks.items()}
        check_same_masks(self.masks)
        self._zero_again(layers)
        for copied in live_copies(trainer, pl_module, network):
            self._zero_again(weights_of(copied))
        if is_final:
            warn_of_zero_layers(self.masks)
        if is_final and self._suspended:
            forget_best(trainer)
            restart_early_stopping(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Choose the best checkpoint from now on, if masks are final. Lightning calls the hooks of checkpoints after this."""
        if self._suspended and not trainer.sanity_checking and self._done >= self.end:
            self._suspended = False
            resume_selection(trainer, self)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not self.sparsity:
            return
        zeros = sum(int((~mask).sum()) for mask in self.masks.values())
        pl_module.log("train/sparsity", zeros / max(1, sum(m.numel() for m in self.masks.values())), sync_dist=True)
        if not trainer.enable_validation:
            self.on_validation_end(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.sparsity and self._done < self.end:
            rank_zero_warn(
                f"the fit ended after {self._done:.0%}, before its zeros were final ({self.end:.0%}): resume it, so that it "
                "ends with all of them."
            )

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        resume_selection(trainer, self)
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def report(self, integer: nn.Module) -> PruningResult:
        """What was pruned, counted in an integer model."""
        pattern = None if self.pattern is None else str(self.pattern)
        removed = [RemovedChannels(name, before - kept, kept) for name, (before, kept) in self.removed.items()]
        return PruningResult(self.sparsity, pattern, zeros_of_layers(integer, self.masks, self.pattern), removed)

    def _masks(self, weights: Mapping[str, Tensor], sparsity: float) -> dict[str, Tensor]:
        if self.pattern is not None:
            return {name: keep_pattern(weight, self.pattern, sparsity) for name, weight in weights.items()}
        if self.scope == "global":
            return keep_largest_of_all(weights, sparsity)
        return {name: keep_largest(weight, sparsity) for name, weight in weights.items()}

    @torch.no_grad()
    def _zero_again(self, layers: Mapping[str, PrunableWeight], *_: Any) -> None:
        for name, mask in self.masks.items():
            layers[name].value.masked_fill_(~mask, 0.0)
            if isinstance(quantizer := layers[name].quantizer, Codebook):
                quantizer.keep_zero()

    def _network(self, trainer: L.Trainer, pl_module: L.LightningModule) -> nn.Module:
        return require_callback(trainer, QuantizationAwareTraining, self).network_of(pl_module)
