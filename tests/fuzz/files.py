"""Kinds of files: weights, saved models, checkpoints of training, pictures, videos."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save

from efficientsam3.checkpoints.assemble import load_folder, load_upstream
from efficientsam3.checkpoints.layout import table
from efficientsam3.checkpoints.read import Contents, read_state
from efficientsam3.data.object_videos import read_gray
from efficientsam3.io.frames import read_frames
from efficientsam3.io.images import read_rgb, read_rgb_of_size
from efficientsam3.train.checkpoint import load_checkpoint, save_checkpoint

from ..conftest import tiny_model
from ..parity.transformers_files import groups
from .mutate import VALUES, json_bytes, mutate_bytes, mutate_json, mutated
from .runner import Case, Kind


class Boom:
    """A pickle of it makes a file when it is loaded by Python's own unpickler."""

    def __reduce__(self) -> Any:
        return os.mkdir, (os.environ["FUZZ_BOOM"],)


def some_weights(random: Random) -> dict[str, Any]:
    """Tensors by upstream's names or transformers', some of them of wrong types and shapes."""
    rows = table("repvit-m1.1", "mobileclip-s0", "3.0") + table("sam3", "sam3", "3.1")
    names = [theirs.replace("#", "0") + "weight" for theirs, _ in random.sample(rows, 12)]
    names.append("backbone.vision_backbone.trunk.model.head.0.weight")
    names.append("backbone.vision_backbone.trunk.model.backbone.model.features.0.0.weight")
    names.append("backbone.language_backbone.encoder.positional_embedding.pos_embed.pos_embed")
    if random.randrange(4) == 0:
        names = random.sample(sorted(groups()["video"]), 12)
        names += ["text_projection.weight", "geometry_encoder.label_embed.weight"]
    shapes = ((), (0,), (1,), (4, 4), (1, 1, 77, 8), (2, 512, 1, 1), (3, 384, 1, 1))
    dtypes = (torch.float32, torch.float16, torch.int64, torch.bool, torch.complex64)
    return {
        random.choice(("", "", "module.", "detector.")) + name: torch.zeros(
            random.choice(shapes), dtype=random.choice(dtypes)
        )
        for name in names
    }


class Checkpoints(Kind):
    name = "checkpoint"
    about = "weight files of PyTorch, new and old format, wrapped and bare, with and without code"

    def prepare(self, folder: Path) -> None:
        self.boom = folder / "boom"
        os.environ["FUZZ_BOOM"] = str(self.boom)

    def make(self, random: Random) -> bytes:
        weights = some_weights(random)
        content: Any = weights
        match random.randrange(12):
            case 0:
                content = {"model": weights}
            case 1:
                content = {"state_dict": weights, "preserved_base_model": some_weights(random)}
            case 2:
                content = {"model": random.choice(VALUES), **weights}
            case 3:
                content = random.choice(VALUES)
            case 4:
                content = {random.choice((1, None, "", ("a",))): t for t in weights.values()}
            case 5:
                content = {**weights, "x": Boom()} if "FUZZ_BOOM" in os.environ else weights
            case 6:
                content = {**weights, "self": weights}
            case 7:
                content = {**weights, "layout": torch.zeros(2, 2).to_sparse()}
            case 8:
                content = {**weights, "view": torch.zeros(10**6)[:2], "nan": torch.tensor(np.nan)}
        file = io.BytesIO()
        if random.randrange(8) == 0:
            pickle.dump(content, file, protocol=random.randrange(5))
        else:
            torch.save(content, file, _use_new_zipfile_serialization=random.random() < 0.7)
        data = file.getvalue()
        return data if random.randrange(3) == 0 else mutate_bytes(random, data)

    def check(self, value: bytes, case: Case) -> None:
        path = case.write("w.pt", value)
        case.seal()
        try:
            contents = Contents.read(path)
            assert all(isinstance(t, torch.Tensor) for t in contents.renamed().values())
            load_upstream(path)
        finally:
            assert not self.boom.exists(), "code of the file has run"


class Safetensors(Kind):
    name = "safetensors"
    about = "headers and bodies of safetensors files"

    def make(self, random: Random) -> bytes:
        weights = {k: v for k, v in some_weights(random).items() if v.dtype != torch.complex64}
        data = save(weights, {"format": "pt"})
        (length,) = struct.unpack("<Q", data[:8])
        header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
        match random.randrange(4):
            case 0:
                return mutate_bytes(random, data)
            case 1:
                length = random.choice((0, 1, length - 1, length + 1, 2**31, 2**63, 2**64 - 1))
                return struct.pack("<Q", length) + data[8:]
            case _:
                text = json_bytes(random, header)
                return struct.pack("<Q", len(text)) + text + body

    def check(self, value: bytes, case: Case) -> None:
        path = case.write("w.safetensors", value)
        case.seal()
        state = read_state(path)
        assert all(isinstance(k, str) and t.numel() >= 0 for k, t in state.items())
        load_upstream(path)


class ModelFolders(Kind):
    name = "model-folder"
    about = "config.json and weights of saved models"
    slow = True

    def prepare(self, folder: Path) -> None:
        tiny_model().save(folder / "tiny")
        self.config = json.loads((folder / "tiny/config.json").read_text())
        self.weights = (folder / "tiny/model.safetensors").read_bytes()

    def make(self, random: Random) -> tuple[bytes | None, int]:
        """The configuration, None for a sound one, and a seed of the change of the weights."""
        if random.randrange(5) == 0:
            return None, random.randrange(1, 1 << 30)
        config = self.config
        if random.randrange(3):  # numbers of the configuration, which decide sizes
            model = mutate_json(random, config["model"])
            return json.dumps({**config, "model": model}).encode(), 0
        return json_bytes(random, config), 0

    def check(self, value: tuple[bytes | None, int], case: Case) -> None:
        config, change = value
        case.write("config.json", config or json.dumps(self.config).encode())
        weights = mutate_bytes(Random(change), self.weights) if change else self.weights
        case.write("model.safetensors", weights)
        case.seal()
        name, _, net = load_folder(case.inputs)
        assert isinstance(name, str)
        assert all(p.isfinite().all() for p in net.parameters() if p.is_floating_point())


class TrainingCheckpoints(Kind):
    name = "training-checkpoint"
    about = "checkpoints of training runs"

    def prepare(self, folder: Path) -> None:
        content = {"state": {"w": torch.arange(6.0)}, "settings": {"lr": 0.1}, "done": ["a"]}
        self.data = save_checkpoint(folder, 3, content, keep=1).read_bytes()

    def make(self, random: Random) -> bytes:
        if random.randrange(4) == 0:
            file = io.BytesIO()
            torch.save(random.choice(VALUES), file)
            return file.getvalue()
        return mutated(random, lambda r: mutate_bytes(r, self.data), self.data)

    def check(self, value: bytes, case: Case) -> None:
        path = case.write("checkpoints/step_0000003.pt", value)
        case.seal()
        content = load_checkpoint(path)
        # Everything is covered by checksums, so that what can be read is what was written.
        assert content["state"]["w"].tolist() == [0, 1, 2, 3, 4, 5] and content["step"] == 3


# Pictures -------------------------------------------------------------------------------------


def pictures() -> list[tuple[str, bytes]]:
    """A small picture in each format and mode that Pillow writes: suffix and bytes."""
    Image.init()
    ramp = np.add.outer(np.arange(24), np.arange(32) * 3).astype(np.uint8)
    colors = Image.fromarray(np.stack([ramp, 255 - ramp, ramp // 2], 2))
    deep = Image.fromarray(ramp.astype(np.uint16) * 257)
    real = Image.fromarray(ramp.astype(np.float32))
    whole = Image.fromarray(ramp.astype(np.int32) * 70_000)
    modes = [
        colors.convert(m) for m in ("RGB", "L", "1", "P", "RGBA", "LA", "CMYK", "YCbCr", "HSV")
    ]
    found = []
    for suffix, name in sorted(
        {name: s for s, name in Image.registered_extensions().items()}.items()
    ):
        if suffix not in Image.SAVE or suffix in ("PDF", "HDF5", "BUFR", "GRIB"):
            continue
        for image in (*modes, deep, real, whole):
            options: list[dict[str, Any]] = [{}]
            if suffix in Image.SAVE_ALL and image.mode in ("RGB", "P", "L"):
                options.append({"save_all": True, "append_images": [image.rotate(90), image]})
            if suffix == "TIFF" and image.mode == "RGB":
                options += [
                    {"compression": c} for c in ("tiff_lzw", "tiff_deflate", "jpeg", "packbits")
                ]
            if suffix == "JPEG":
                exif = Image.Exif()
                exif[0x112], exif[0x010E] = 6, "x"
                options += [{"progressive": True}, {"exif": exif}]
            for option in options:
                file = io.BytesIO()
                try:
                    image.save(file, suffix, **option)
                except (OSError, ValueError, KeyError, SystemError, TypeError):
                    continue  # the format does not have this mode
                if len(file.getvalue()) < 50_000:
                    found.append((name, file.getvalue()))
    return found


MANY_PIXELS = 20_000_000
"""Pictures of more pixels are read in one way only."""


def stated_pixels(path: Path) -> int:
    """How many pixels a picture says that it has; 0 if Pillow does not open it."""
    try:
        with Image.open(path) as image:
            return image.width * image.height
    except Exception:  # noqa: BLE001 - Pillow raises anything for damaged files
        return 0


class Pictures(Kind):
    name = "picture"
    about = "pictures of every format and mode that Pillow writes"
    _sound: list[tuple[str, bytes]] | None = None

    def make(self, random: Random) -> tuple[str, bytes]:
        if Pictures._sound is None:
            Pictures._sound = pictures()
        suffix, data = random.choice(self._sound or [])
        others = [other for name, other in self._sound or [] if name == suffix]
        data = mutated(random, lambda r: mutate_bytes(r, data, others), data)
        return random.choice((suffix, suffix, suffix, ".jpg", ".png")), data

    def check(self, value: tuple[str, bytes], case: Case) -> None:
        suffix, data = value
        path = case.write(f"picture{suffix}", data)
        case.seal()
        errors = []
        readers = (self.by_path, self.as_object, self.of_size, self.as_map, self.as_frames)
        if stated_pixels(path) > MANY_PIXELS:  # such a file may be whole, and takes its time
            readers = readers[:1]
        for read in readers:
            try:
                read(path)
            except Exception as error:  # noqa: BLE001 - the others are tried too
                errors.append(error)
        others = [e for e in errors if not type(e).__module__.startswith("efficientsam3")]
        if others or len(errors) == len(readers):
            raise (others or errors)[0]

    def by_path(self, path: Path) -> None:
        rgb = read_rgb(path)
        assert rgb.dtype == torch.uint8 and rgb.ndim == 3 and rgb.shape[0] == 3 and rgb.numel()

    def as_object(self, path: Path) -> None:
        try:
            image = Image.open(path)
        except Exception:  # noqa: BLE001
            return  # Pillow's own refusal
        with image:
            rgb = read_rgb(image)
        assert rgb.dtype == torch.uint8 and rgb.shape[0] == 3

    def of_size(self, path: Path) -> None:
        assert tuple(read_rgb_of_size(path, (24, 32)).shape) == (3, 24, 32)

    def as_map(self, path: Path) -> None:
        assert read_gray(path).ndim == 2

    def as_frames(self, path: Path) -> None:
        with read_frames(str(path), stop=8) as reader:
            for frame in reader:
                assert frame.image.dtype == np.uint8 and frame.image.shape[2] == 3


# Videos ---------------------------------------------------------------------------------------


def videos() -> list[tuple[str, bytes]]:
    """A small video in each of some containers and codecs: suffix and bytes."""
    import av

    found = []
    kinds = (
        *(
            (".mp4", "libx264", "yuv420p"),
            (".mkv", "libx264", "yuv420p"),
            (".mov", "mpeg4", "yuv420p"),
        ),
        *(
            (".avi", "mjpeg", "yuvj420p"),
            (".webm", "libvpx-vp9", "yuv420p"),
            (".ts", "mpeg2video", "yuv420p"),
        ),
        *((".gif", "gif", "rgb8"), (".mp4", "libx265", "yuv420p10le"), (".mkv", "ffv1", "yuv420p")),
        (".flv", "flv1", "yuv420p"),
    )
    noise = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8) // 8 * 8
    for suffix, codec, pixels in kinds:
        file = io.BytesIO()
        name = {".mkv": "matroska", ".ts": "mpegts"}.get(suffix, suffix[1:])
        try:
            with av.open(file, "w", format=name) as container:
                stream = container.add_stream(codec, rate=10)
                stream.width, stream.height, stream.pix_fmt = 64, 48, pixels
                for i in range(8):
                    shifted = np.ascontiguousarray(np.roll(noise, 3 * i, 1))
                    container.mux(stream.encode(av.VideoFrame.from_ndarray(shifted, "rgb24")))
                container.mux(stream.encode())
        except (av.error.FFmpegError, ValueError):
            continue  # this build lacks the codec
        found.append((suffix, file.getvalue()))
    return found


class Videos(Kind):
    name = "video"
    about = "videos of ten containers and codecs, made by FFmpeg"
    slow = True
    _sound: list[tuple[str, bytes]] | None = None

    def make(self, random: Random) -> tuple[str, bytes, int, int]:
        if Videos._sound is None:
            Videos._sound = videos()
        suffix, data = random.choice(self._sound or [])
        others = [other for _, other in self._sound or []]
        data = mutated(random, lambda r: mutate_bytes(r, data, others), data)
        return suffix, data, random.choice((0, 0, 0, 3, 100)), random.choice((1, 1, 2))

    def check(self, value: tuple[str, bytes, int, int], case: Case) -> None:
        suffix, data, start, stride = value
        path = case.write(f"video{suffix}", data)
        case.seal()
        with read_frames(str(path), start=start, stop=start + 40, stride=stride) as reader:
            last = -1
            for frame in reader:
                assert frame.index > last and (frame.index - start) % stride == 0
                assert frame.image.dtype == np.uint8 and frame.image.shape[2] == 3
                assert frame.time is None or np.isfinite(frame.time)
                last = frame.index


KINDS = (Checkpoints, Safetensors, ModelFolders, TrainingCheckpoints, Pictures, Videos)
