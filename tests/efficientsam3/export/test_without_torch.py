"""An exported folder in an environment that has what its requirements.txt names, and no more."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from packaging.requirements import Requirement
from PIL import Image

import efficientsam3 as es3

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("exports")]

REPOSITORY = Path(__file__).parents[3]

SCRIPT = """
import importlib.util, sys
for name in ("torch", "torchvision", "timm", "open_clip", "transformers", "safetensors"):
    assert importlib.util.find_spec(name) is None, name
import numpy as np
import efficientsam3 as es3
folder, photo, out = sys.argv[1:]
model = es3.load(folder)
image = model.encode(photo)
found = model.segment(image, ["bus", "Straße"], threshold=0.0)
clicked = model.segment(image, points=[[30, 20]])
frames = [photo, photo]
from efficientsam3.video.settings import IoUSettings, TrackSettings
low = IoUSettings(new_track_threshold=0.0)
low = TrackSettings(detection_threshold=0.0, new_track_threshold=0.0, iou=low)
tracked = list(es3.track(model, frames, ["bus"], settings=low, tracker="iou"))
assert tracked[1].instances.track_ids.tolist() == tracked[0].instances.track_ids.tolist() != []
try:
    list(es3.track(model, frames, ["bus"], threshold=0.0))
except es3.EfficientSam3Error as error:
    assert "tracker='iou'" in str(error), error
else:
    raise AssertionError("tracking by the video memory needs torch")
np.savez(out, masks=found.masks, scores=found.scores, clicked=clicked.masks)
"""


def needed(requirements: list[str]) -> set[str]:
    """Names of the distributions that requirements need, directly and through others."""
    out: set[str] = set()
    waiting = [Requirement(line) for line in requirements]
    while waiting:
        asked = waiting.pop()
        extras = asked.extras or {""}
        if asked.marker and not any(asked.marker.evaluate({"extra": e}) for e in extras):
            continue
        if asked.name.lower() in out:
            continue
        out.add(asked.name.lower())
        for line in metadata.requires(asked.name) or []:
            further = Requirement(line)
            if further.marker is None or further.marker.evaluate({"extra": ""}):
                waiting.append(further)
    return out


@pytest.fixture(scope="module")
def python(exported: tuple[es3.ImageModel, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with an exported folder's requirements and this package.

    The package is installed by pip without its dependencies. Files of the requirements are those of
    the environment that runs the tests, so that no network is needed.
    """
    place = tmp_path_factory.mktemp("environment")
    venv.create(place, with_pip=False, symlinks=True)
    (site,) = place.glob("lib/python*/site-packages")
    for name in needed((exported[1] / "requirements.txt").read_text().split()):
        distribution = metadata.distribution(name)
        for top in {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}:
            target = site / top
            if not target.exists():
                target.symlink_to(Path(str(distribution.locate_file(top))).resolve())
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    command += ["--no-build-isolation", "--target", str(site), str(REPOSITORY)]
    subprocess.run(command, check=True, capture_output=True)
    return place / "bin" / "python"


def run(python: Path, *arguments: object) -> str:
    hidden = ("PYTHONPATH", "PYTHONHOME")
    environment = {key: value for key, value in os.environ.items() if key not in hidden}
    command = [str(python), *map(str, arguments)]
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=python.parent
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_segments_and_takes_clicks(
    exported: tuple[es3.ImageModel, Path], python: Path, photo: Any, tmp_path: Path
) -> None:
    model, folder = exported
    Image.fromarray(photo).save(tmp_path / "photo.png")
    run(python, "-c", SCRIPT, folder, tmp_path / "photo.png", tmp_path / "found.npz")
    ours = np.load(tmp_path / "found.npz")
    theirs = model.segment(photo, ["bus", "Straße"], threshold=0.0)
    np.testing.assert_allclose(ours["scores"], theirs.scores, atol=1e-3)
    assert (ours["masks"] != theirs.masks).mean() < 1e-3
    clicked = model.segment(photo, points=[[30, 20]]).masks
    assert clicked.any()
    assert (ours["clicked"] != clicked).mean() < 1e-3


def test_the_command_segments(
    exported: tuple[es3.ImageModel, Path], python: Path, photo: Any, tmp_path: Path
) -> None:
    Image.fromarray(photo).save(tmp_path / "photo.png")
    command = ["segment", tmp_path / "photo.png", "--model", exported[1], "--concept", "bus"]
    command += ["--threshold", "0", "--out", tmp_path / "out"]
    run(python, "-m", "efficientsam3", *command)
    assert any(path.suffix == ".json" for path in (tmp_path / "out").rglob("*"))
