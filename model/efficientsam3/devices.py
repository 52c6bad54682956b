"""Choose the device and the number format in which a model computes."""

from __future__ import annotations

import torch

from .errors import ArgumentError, shorten


def best_device() -> torch.device:
    """The fastest device of this machine: a CUDA GPU, Apple's GPU, or the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def find_device(device: torch.device | str) -> torch.device:
    """The device of a name, after a check that torch can use it.

    Args:
        device: "cpu", "cuda", "cuda:1", "mps", or a ``torch.device``.

    Raises:
        ArgumentError: torch cannot use this device on this machine, or there is no such device.
    """
    try:
        chosen = torch.device(device)
        torch.zeros(1, device=chosen)
    except (RuntimeError, AssertionError, TypeError) as error:  # "not compiled in" is an assertion
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise ArgumentError(
            f"device={shorten(str(device))} cannot be used on this machine ({reason}); leave "
            "device out for the fastest one, or see `efficientsam3 doctor`"
        ) from error
    return chosen


def best_dtype(device: torch.device) -> torch.dtype:
    """The fastest number format of a device.

    Args:
        device: A device of this machine.

    Returns:
        bfloat16 where the hardware multiplies it, else float32.
    """
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
    """Convert a number format.

    Args:
        dtype: float32, bfloat16 or float16, as a ``torch.dtype`` or by name.

    Raises:
        ArgumentError: It is another one.
    """
    value = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if value not in (torch.float32, torch.bfloat16, torch.float16):
        raise ArgumentError(f"dtype is float32, bfloat16 or float16; got {shorten(dtype)}")
    return value
