"""EfficientSAM3 in FiftyOne's model zoo; this folder also works when copied alone."""

from .source import download_model, load_model, parse_parameters, resolve_input

__all__ = ["download_model", "load_model", "parse_parameters", "resolve_input"]
