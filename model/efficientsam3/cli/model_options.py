"""The options by which commands choose a model and how it computes."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from ..io.identity import identity
from ..variants import Packaged, find_variant
from .common import UsageError, status_console

if TYPE_CHECKING:
    from ..predictor import ImageModel

DEFAULT_MODEL = "efficientsam3-tinyvit-11m"


class Speed(str, Enum):
    """How exactly a model computes; see ``efficientsam3.load``."""

    exact = "exact"
    fast = "fast"


class Dtype(str, Enum):
    """Number formats in which a model can compute."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


ModelOption = Annotated[
    str,
    typer.Option("--model", "-m", help="A name that `efficientsam3 models` lists, or a folder."),
]
CheckpointOption = Annotated[
    Path | None, typer.Option(help="A local weight file instead of the hub's.", exists=True)
]
BaseOption = Annotated[
    Path | None,
    typer.Option(help="A second weight file, for parts that the first lacks.", exists=True),
]
TextOption = Annotated[
    str | None, typer.Option(help="Another text encoder, which the file or --base contains.")
]
ContextOption = Annotated[int | None, typer.Option(help="Tokens of a phrase: 16, 32 or 77.")]
DeviceOption = Annotated[
    str | None, typer.Option(help="cpu, cuda or mps; the fastest on this machine if omitted.")
]
DtypeOption = Annotated[
    Dtype | None, typer.Option(help="Number format; the fastest on this machine if omitted.")
]
SpeedOption = Annotated[
    Speed, typer.Option(help="fast: pooled keys and values, which change masks slightly.")
]
AdapterOption = Annotated[
    Path | None,
    typer.Option(
        help="What `efficientsam3 finetune` changed in the model: its file, or the run's folder.",
        exists=True,
    ),
]

BatchSizeOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Images that go through the model together: 1 by default on a CPU, 16 elsewhere.",
    ),
]


@dataclass(frozen=True)
class ModelOptions:
    """The options by which a command chooses a model and how it computes.

    Attributes:
        model: Name of the table, or a saved folder.
        checkpoint: Local weight file instead of the hub's.
        base: Second weight file, for parts that the first lacks.
        text: Another text encoder.
        context: Tokens of a phrase.
        device: "cpu", "cuda", "mps"; None: the fastest on this machine.
        dtype: Number format; None: the fastest on this machine.
        speed: "exact" or "fast".
        adapter: What fine-tuning changed: a file, or the folder of a run.
    """

    model: str = DEFAULT_MODEL
    checkpoint: Path | None = None
    base: Path | None = None
    text: str | None = None
    context: int | None = None
    device: str | None = None
    dtype: Dtype | None = None
    speed: Speed = Speed.exact
    adapter: Path | None = None

    @property
    def name(self) -> str:
        """The model's name in the table, or the absolute path of the folder."""
        if Path(self.model).is_dir():
            return str(Path(self.model).absolute())
        return find_variant(self.model).name

    @property
    def title(self) -> str:
        """A short name of the model and its adapter, for files."""
        name = Path(self.model).name
        if self.adapter is None:
            return name
        from ..checkpoints.adapter import Adapter

        return f"{name}+{Adapter.load(self.adapter).name}"

    def identity(self) -> dict[str, Any]:
        """The model, its weight files and its options, to tell whether a run is still the same."""
        return {
            "model": self.name,
            "weights": self._weight_files(),
            "text": self.text,
            "context": self.context,
            "dtype": self.dtype.value if self.dtype else None,
            "speed": self.speed.value,
            **({} if self.adapter is None else {"adapter": self._adapter_file()}),
        }

    def load(self) -> ImageModel:
        """Load the model.

        Raises:
            UsageError: a saved model was combined with options of a downloaded one.
            EfficientSam3Error: the weights or the device are not available.
        """
        if (self.checkpoint or self.base or self.text or self.context) and (
            Path(self.model).is_dir() or isinstance(find_variant(self.model).weights, Packaged)
        ):
            raise UsageError(
                f"{self.model} is a complete saved model; --checkpoint, --base, --text and "
                "--context go with models of `efficientsam3 models` that come from the hub"
            )
        with status_console().status(f"loading {self.model}"):
            from ..loading import load

            return load(
                self.model,
                checkpoint=self.checkpoint,
                text=self.text,
                context=self.context,
                base=self.base,
                device=self.device,
                dtype=self.dtype.value if self.dtype else None,
                speed=self.speed.value,
                adapter=self.adapter,
            )

    def _adapter_file(self) -> Any:
        from ..checkpoints.adapter import adapter_path

        return None if self.adapter is None else identity(adapter_path(self.adapter))

    def _weight_files(self) -> Any:
        """The weight files by their names, or where the hub has them."""
        from ..checkpoints.sources import weight_sources

        files, hub = weight_sources(self.model, self.checkpoint, self.base)
        return hub | {str(file): identity(file) for file in files}


_OPTIONS = {
    "model": ModelOption,
    "checkpoint": CheckpointOption,
    "base": BaseOption,
    "text": TextOption,
    "context": ContextOption,
    "device": DeviceOption,
    "dtype": DtypeOption,
    "speed": SpeedOption,
    "adapter": AdapterOption,
}


def with_model_options(
    model: Any = ModelOption, default: str | None = DEFAULT_MODEL
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of a model in the place of its parameter ``options``.

    The command's other parameters are keyword-only. It receives a ``ModelOptions``, or None where
    no model is named.

    Args:
        model: Annotation of the option ``--model``.
        default: Its default.

    Returns:
        A decorator.
    """
    annotations = _OPTIONS | {"model": model}

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def run(**values: Any) -> None:
            chosen = {name: values.pop(name) for name in annotations}
            command(options=ModelOptions(**chosen) if chosen["model"] else None, **values)

        hints = get_type_hints(command, include_extras=True)
        parameters = []
        for parameter in inspect.signature(command).parameters.values():
            if parameter.name != "options":
                parameters.append(parameter.replace(annotation=hints[parameter.name]))
                continue
            for field in fields(ModelOptions):
                value = default if field.name == "model" else field.default
                parameters.append(
                    inspect.Parameter(
                        field.name,
                        inspect.Parameter.KEYWORD_ONLY,
                        default=value,
                        annotation=annotations[field.name],
                    )
                )
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        return run

    return decorate
