"""How FiftyOne's ``download_zoo_model`` and ``delete_zoo_model`` reach the weights.

FiftyOne imports this file whenever it reads its list of models, so nothing heavy is imported here.
"""

from __future__ import annotations

import fiftyone.core.models as fom

from .source import download_model


class WeightsManagerConfig(fom.ModelManagerConfig):
    """Settings of a :class:`WeightsManager`; ``model`` is a name of the core's table."""

    def __init__(self, d: dict[str, object]) -> None:
        super().__init__(d)
        self.model = self.parse_string(d, "model")


class WeightsManager(fom.ModelManager):
    """Downloads with the core, into the Hugging Face cache."""

    def _download_model(self, model_path: str) -> None:
        download_model(self.config.model, model_path)
