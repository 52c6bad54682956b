"""The grounding task on low-rank changes of a model, or on some of its weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize

from ...checkpoints.adapter import Adapter, Figures, digests_by_part
from ...nn.detector import Detector
from ..losses.grounding import GroundingBatch
from ..low_rank import changed_weights, start_adapting
from ..optim import ParameterGroup, learning_rate_scale, parameter_groups
from ..settings import LoopSettings
from ..task import Picture
from .grounding import GroundingTask


class FineTuning(GroundingTask):
    """Train what an adapter holds.

    Args:
        net: The detector, as it was trained; it is changed in place.
        *args: As ``GroundingTask`` takes them.
        model: Name of the model.
        adapt: Beginnings of the names of weights that get low-rank changes.
        train_whole: Beginnings of the names of weights that train whole.
        rank: Rank of the changes, at least 1.
        scale: Factor on the changes.
        whole_lr: Factor on the learning rate of weights that train whole.
        seed: Seed of the changes, of prompts and of the order of samples.
        **options: As ``GroundingTask`` takes them.

    Raises:
        SettingsError: A beginning that no weight's name has.
        DataError: There are no samples, or the held-out ones have no masks.
    """

    def __init__(
        self,
        net: Detector,
        *args: Any,
        model: str,
        adapt: Sequence[str],
        train_whole: Sequence[str],
        rank: int,
        scale: float,
        whole_lr: float,
        seed: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(net, *args, seed=seed, **options)
        before = net.state_dict()
        start_adapting(net, adapt, train_whole, rank=rank, scale=scale, seed=seed)
        self.model, self.scale, self.whole_lr = model, scale, whole_lr
        low_rank, whole = changed_weights(net)
        self.base = digests_by_part(before, [*low_rank, *whole])

    def make_adapter(self, name: str, figures: Figures) -> Adapter:
        """What training has changed, as an adapter.

        Args:
            name: Name of the adapter.
            figures: Figures on held-out images, before and after.
        """
        low_rank, whole = changed_weights(self.module)
        config = self.collator.config
        return Adapter(name, self.model, config, low_rank, self.scale, whole, self.base, figures)

    # What the loop asks for -----------------------------------------------------------------

    def parameter_groups(self, settings: LoopSettings) -> list[ParameterGroup]:
        """As of every task; weights that train whole have a learning rate of their own.

        Args:
            settings: Settings of the loop.
        """
        _, whole = changed_weights(self.module)
        scales = {
            name: self.whole_lr * learning_rate_scale(name, settings.scales) for name in whole
        }
        own = replace(settings, scales={**settings.scales, **scales})
        return parameter_groups(self.module, own)

    def train_mode(self) -> None:
        """As of every task; statistics of batch norms stay, since a few images have others."""
        super().train_mode()
        for module in self.module.modules():
            if isinstance(module, _BatchNorm):
                module.eval()

    def loss(self, module: nn.Module, batch: GroundingBatch) -> Mapping[str, Tensor]:
        """The terms of ``GroundingLoss``; each changed weight is computed once.

        Args:
            module: The module that is trained.
            batch: On the module's device.
        """
        with parametrize.cached():
            return super().loss(module, batch)

    def validate(self, module: nn.Module) -> dict[str, float]:
        """cgF1 and its parts on the held-out samples; nothing without them.

        Args:
            module: The module that is trained.
        """
        with parametrize.cached():
            return super().validate(module)

    def pictures(self, module: nn.Module) -> dict[str, Picture]:
        """Predictions on held-out samples over the truth.

        Args:
            module: The module that is trained.
        """
        with parametrize.cached():
            return super().pictures(module)

    def result(self) -> Mapping[str, Tensor]:
        """The parameters that train; the others are those of the model."""
        return {n: p for n, p in self.module.named_parameters() if p.requires_grad}

    def describe(self) -> dict[str, Any]:
        """As of ``GroundingTask``, and what is changed in which weights."""
        low_rank, whole = changed_weights(self.module)
        return {
            **super().describe(),
            "base": self.base,
            "low rank": sorted(low_rank),
            "whole": sorted(whole),
            "scale": self.scale,
            "whole_lr": self.whole_lr,
        }
