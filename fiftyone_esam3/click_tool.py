"""Use a model in the App's own click-to-segment tool: ``python -m fiftyone_esam3.click_tool``.

Annotate mode has a tool that turns clicks into masks in the browser. It needs two ONNX files,
which it fetches from a server of Voxel51. This module sets an environment variable, so that the
tool fetches files of our model from the App's own server, without a network.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from efficientsam3.variants import EMBEDDED

if TYPE_CHECKING:
    from efficientsam3 import ImageModel

logger = logging.getLogger(__name__)

VARIABLE = "FIFTYONE_MODEL_WEIGHTS_BASE_SAM2"
"""The environment variable that holds the address of the tool's files."""


def use_click_tool(
    model: str | ImageModel = EMBEDDED, folder: str | os.PathLike[str] | None = None
) -> Path:
    """Use a model in the App's click tool; call this before ``fo.launch_app``.

    The files are written once. Browsers cache them under the tool's name, so clear the site's data
    after a change of the model.

    Args:
        model: a model name, the folder of a saved model, or a loaded model. It needs the ability
            "interactive".
        folder: the folder for the files. None: a folder with the model's name in FiftyOne's zoo
            folder.

    Returns:
        the folder, to which the environment variable now points.

    Raises:
        MissingAbilityError: the weights cannot segment by clicks.
        ExportError: the export failed.
    """
    from efficientsam3.export.clicks import DECODER, ENCODER, export_clicks

    name = model if isinstance(model, str) else model.name
    if folder is None:
        import fiftyone as fo

        folder = Path(fo.config.model_zoo_dir, "efficientsam3-clicks", re.sub(r"\W+", "-", name))
    place = Path(folder).resolve()
    if not all((place / file).is_file() for file in (ENCODER, DECODER)):
        if isinstance(model, str):
            from .model_cache import load_core

            model = load_core(model, device="cpu", dtype="float32")
        logger.info("writing the click tool's files to %s", place)
        export_clicks(model, place)
    os.environ[VARIABLE] = _address(place)
    return place


def _address(folder: Path) -> str:
    """The address at which the App's server gives the files of a folder; a name follows it."""
    return f"/media?filepath={folder}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the files, and print the line that sets the variable in a shell.

    Args:
        arguments: of the command line. None: those of the process.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default=EMBEDDED)
    parser.add_argument("--folder", type=Path)
    chosen = parser.parse_args(arguments)
    place = use_click_tool(chosen.model, chosen.folder)
    sys.stdout.write(f"export {VARIABLE}='{_address(place)}'\n")


if __name__ == "__main__":
    main()
