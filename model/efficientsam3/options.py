"""Choices that several commands offer."""

from __future__ import annotations

from enum import Enum


class Speed(str, Enum):
    exact = "exact"
    fast = "fast"


class Dtype(str, Enum):
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"
