"""Mutations: of bytes, of JSON values, and the values that mutations put in their place."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

BYTES = (b"\x00", b"\xff", b"\x7f", b"\x80", b"\x00" * 4, b"\xff" * 4, b"\xff" * 8, b"\x7f\xff")
"""Bytes that stand for limits of numbers."""

VALUES: tuple[Any, ...] = (
    *(
        None,
        True,
        False,
        0,
        -1,
        1,
        2,
        255,
        2**31 - 1,
        2**31,
        2**32,
        2**53 + 1,
        2**63,
        2**64,
        -(2**63),
    ),
    *(10**400, 0.5, -0.0, 1e-320, 1e308, -1e308, float("nan"), float("inf"), float("-inf")),
    *(
        "",
        " ",
        "1",
        "person",
        "None",
        "\x00",
        "\ud800",
        "\U0001f98a",
        "../../etc/passwd",
        "x" * 5000,
    ),
    *([], [[]], [None], [1], [1, 2, 3, 4], [0] * 100, ["a"], {}, {"a": 1}, {"id": 1}, {"": None}),
    *({"size": [4, 6], "counts": [24]}, {"size": [10**6, 10**6], "counts": [10**12]}),
    *({"size": [10**5, 10**5], "counts": "a"}, [[0, 0, 1e9, 0, 1e9, 1e9]], [[[]]]),
)
"""Values that programs often take wrongly."""


def mutate_bytes(random: Random, data: bytes, others: Sequence[bytes] = ()) -> bytes:
    """Change bytes at one to four places.

    Args:
        random: What decides.
        data: The bytes.
        others: Bytes of the same kind, of which parts are inserted.
    """
    out = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 4))):
        at = random.randrange(len(out) + 1)
        # Headers decide more than bodies.
        at = random.choice((at, at, at % 64 if out else 0))
        length = random.choice((1, 2, 4, 8, 64, 1024))
        match random.randrange(9):
            case 0 if at < len(out):
                out[at] ^= 1 << random.randrange(8)
            case 1 if at < len(out):
                out[at] = random.randrange(256)
            case 2:
                piece = random.choice(BYTES)
                out[at : at + len(piece)] = piece
            case 3:
                del out[at:]
            case 4:
                del out[at : at + length]
            case 5:
                out[at:at] = out[at : at + length]
            case 6:
                out[at:at] = random.randbytes(length)
            case 7 if others:
                other = random.choice(others)
                start = random.randrange(len(other) + 1)
                out[at : at + length] = other[start : start + length]
            case _:
                start = random.randrange(len(out) + 1)
                out[at : at + length] = out[start : start + length]
    return bytes(out)


def mutate_json(random: Random, value: Any) -> Any:
    """Change a JSON value at one to three places.

    Args:
        random: What decides.
        value: The value; it is not changed itself.
    """
    out = {"": copy.deepcopy(value)}
    for _ in range(random.choice((1, 1, 2, 3))):
        holder, key = random.choice(_places(out))
        match random.randrange(8):
            case 0 if key != "":
                del holder[key]
            case 1 if isinstance(holder, list):
                holder.insert(key, copy.deepcopy(random.choice(holder)))
            case 2 if isinstance(holder, dict) and key != "":
                holder[random.choice(("", "id", "x", key.upper()))] = holder.pop(key)
            case 3:
                other, name = random.choice(_places(out))
                holder[key] = copy.deepcopy(other[name])
            case 4 if isinstance(holder[key], (int, float)) and not isinstance(holder[key], bool):
                number = holder[key]
                holder[key] = random.choice(
                    (-number, number + 1, number - 1, number * 1000, str(number))
                )
            case 5:
                for _ in range(random.choice((1, 3, 50))):
                    holder[key] = [holder[key]]
            case _:
                holder[key] = copy.deepcopy(random.choice(VALUES))
    return out[""]


def _places(value: Any) -> list[tuple[Any, Any]]:
    """All (container, key) in a value."""
    found: list[tuple[Any, Any]] = []
    stack = [value]
    while stack:
        holder = stack.pop()
        keys = list(holder) if isinstance(holder, dict) else range(len(holder))
        for key in keys:
            found.append((holder, key))
            if isinstance(holder[key], (dict, list)):
                stack.append(holder[key])
    return found


def json_bytes(random: Random, value: Any) -> bytes:
    """A mutated JSON value as a file; one of four files is damaged in its text too.

    Args:
        random: What decides.
        value: The value of the sound file.
    """
    choice = random.randrange(8)
    if choice == 0:
        return mutate_bytes(random, json.dumps(value).encode())
    if choice == 1:
        return random.choice(
            (
                b"",
                b"\xef\xbb\xbf" + json.dumps(value).encode(),
                json.dumps(value).encode("utf-16"),
                b"[" * 100_000,
                b'{"a":' * 50_000,
                b"9" * 10_000,
                json.dumps(value).encode()[:-1] + b", " + b"9" * 5000,
                b"\x00" * 64,
            )
        )
    return json.dumps(mutate_json(random, value)).encode()


def mutated(random: Random, change: Callable[[Random], bytes], sound: bytes) -> bytes:
    """A changed file; one of fifty stays sound, so that an answer is checked too.

    Args:
        random: What decides.
        change: Makes the changed file.
        sound: The sound file.
    """
    return sound if random.randrange(50) == 0 else change(random)
