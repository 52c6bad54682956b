"""Makes the scenes and the clip that the demo shows: demo/scenes, which is committed.

    efficientsam3 scenes fetch && python demo/make_scenes.py

Scenes that no model trained on, of concepts and art styles that are trained on: stickers of Noto,
Fluent and Twemoji (see NOTICE), on textures and on photographs that are free of any condition.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from efficientsam3_stickers.art import StickerArt
from efficientsam3_stickers.clips import Clip, make_clip
from efficientsam3_stickers.concepts import SPLITS
from efficientsam3_stickers.recipes.common import RESOLUTION, recipe_concepts
from efficientsam3_stickers.scene_files import write_clips, write_scenes
from efficientsam3_stickers.scenes import Scene, SceneGenerator

SIZE = 336
# Chosen by eye, for variety: one large thing and many small ones, look-alikes, crowds, things
# behind things. Scenes on photographs that ask for a credit (scikit-learn's) were left out.
SEEDS = (0, 3, 4, 7, 8, 10, 13, 14, 21, 26, 28, 33)
CLIP, FRAMES = 7, 24
ALLOWED = 1_500_000, 300_000
"""Bytes of the scenes with their JSON, and of the clip."""


class Chosen(SceneGenerator):
    """Numbers 0, 1, ... are the scenes of chosen seeds."""

    def scene(self, seed: int) -> Scene:
        return super().scene(SEEDS[seed])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("scenes"))
    out = parser.parse_args().out
    art, split = StickerArt.open(), SPLITS["seen"]
    names = recipe_concepts(art, "seen")
    shutil.rmtree(out, ignore_errors=True)
    write_scenes(Chosen(art, split, SIZE, names), out, len(SEEDS))
    (out / "scenes.jsonl").unlink()  # the record of the run
    scenes = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())

    world = SceneGenerator(art, split, RESOLUTION, names)
    with tempfile.TemporaryDirectory() as folder:
        veval = write_clips(world, folder, 1, frames=FRAMES, first_seed=CLIP)
        shutil.copy(veval, out / veval.name)
    video = out / f"clip_{CLIP:07d}.mp4"
    encode(make_clip(world, CLIP, FRAMES), video)
    for what, size, allowed in zip(
        ("scenes", "clip"), (scenes, video.stat().st_size), ALLOWED, strict=True
    ):
        print(f"{what}: {size / 1e3:.0f} kB of {allowed / 1e3:.0f}")
        if size > allowed:
            sys.exit(f"the {what} would be too large to commit")


def encode(clip: Clip, path: Path, rate: int = 12) -> None:
    """H.264, which browsers play and FiftyOne reads."""
    size = f"{clip.size}x{clip.size}"
    command = [
        *("ffmpeg", "-loglevel", "error", "-y", "-f", "rawvideo", "-pix_fmt", "rgb24"),
        *("-s", size, "-r", str(rate), "-i", "-"),
        *("-c:v", "libx264", "-preset", "veryslow", "-crf", "18", "-pix_fmt", "yuv420p"),
        *("-movflags", "+faststart", "-threads", "1", "-bitexact", str(path)),
    ]
    pixels = b"".join(frame.image.tobytes() for frame in clip)
    subprocess.run(command, input=pixels, check=True)


if __name__ == "__main__":
    main()
