"""The App's own click-to-segment, with a model of ours: ``python -m fiftyone_esam3.click_tool``.

Annotate mode has a tool that turns clicks into masks in the browser, by two ONNX files that it
fetches from a server of Voxel51's. With the environment variable that this sets, it fetches ours
from the App's own server, with no network.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from efficientsam3.variants import EMBEDDED

if TYPE_CHECKING:
    from efficientsam3 import ImageModel

logger = logging.getLogger(__name__)

VARIABLE = "FIFTYONE_MODEL_WEIGHTS_BASE_SAM2"
"""Where the App looks for the files of its tool."""


def use_click_tool(
    model: str | ImageModel = EMBEDDED, folder: str | os.PathLike[str] | None = None
) -> Path:
    """Gives the App's click tool our model: call it before ``fo.launch_app``.

    The files are written once. Browsers keep them under the tool's name: who changes the model
    clears the site's data.

    Args:
        model: a name of the table, the folder of a saved model, or a loaded one; it needs the
            ability "interactive".
        folder: for the files; by default in FiftyOne's zoo folder, under the model's name.

    Returns:
        the folder, to which the environment variable points now.

    Raises:
        MissingAbilityError, ExportError: the message says the way out.
    """
    from efficientsam3.export.clicks import DECODER, ENCODER, export_clicks

    name = model if isinstance(model, str) else model.name
    if folder is None:
        import fiftyone as fo

        folder = Path(fo.config.model_zoo_dir, "efficientsam3-clicks", re.sub(r"\W+", "-", name))
    place = Path(folder).resolve()
    if not all((place / file).is_file() for file in (ENCODER, DECODER)):
        if isinstance(model, str):
            from .shared import load_core

            model = load_core(model, device="cpu", dtype="float32")
        logger.info("writing the click tool's files to %s", place)
        export_clicks(model, place)
    os.environ[VARIABLE] = address(place)
    return place


def address(folder: Path) -> str:
    """The folder as the App's server gives its files; a file's name goes at the end."""
    return f"/media?filepath={folder}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes the files and prints the line that a shell needs."""
    import sys

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default=EMBEDDED)
    parser.add_argument("--folder", type=Path)
    chosen = parser.parse_args(arguments)
    place = use_click_tool(chosen.model, chosen.folder)
    sys.stdout.write(f"export {VARIABLE}='{address(place)}'\n")


if __name__ == "__main__":
    main()
