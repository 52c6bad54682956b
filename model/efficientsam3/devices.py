"""Where a model computes, and in what numbers."""

from __future__ import annotations

import torch


def best_device() -> torch.device:
    """What this machine does best: a CUDA GPU, Apple's, or the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def find_device(device: torch.device | str) -> torch.device:
    """A device that is asked for, which must be here.

    Raises:
        ValueError: this machine has none that torch can use.
    """
    chosen = torch.device(device)
    missing = (chosen.type == "cuda" and not torch.cuda.is_available()) or (
        chosen.type == "mps" and not torch.backends.mps.is_available()
    )
    if missing:
        raise ValueError(
            f"device={str(device)!r}, but this machine has none that torch can use; leave device "
            "out for the best there is, and see `efficientsam3 doctor`"
        )
    return chosen


def best_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the hardware multiplies it, else float32."""
    if device.type == "cuda":
        native = torch.cuda.get_device_capability(device)[0] >= 8
    elif device.type == "cpu":
        if hasattr(torch.cpu, "get_capabilities"):
            can = torch.cpu.get_capabilities()
            native = bool(can.get("avx512_bf16") or can.get("amx_bf16") or can.get("bf16"))
        else:  # before torch 2.10
            native = bool(torch.cpu._is_avx512_bf16_supported())
    else:
        native = False
    return torch.bfloat16 if native else torch.float32


def parse_dtype(dtype: torch.dtype | str) -> torch.dtype:
    """float32, bfloat16 or float16, as a ``torch.dtype`` or by name."""
    value = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if value not in (torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(f"dtype is float32, bfloat16 or float16; got {dtype!r}")
    return value
