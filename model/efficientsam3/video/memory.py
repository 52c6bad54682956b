"""SAM3's memory tracker: objects of one stream of frames, all in one pass, in constant memory."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..image import EncodedImage, ImageModel
from ..nn.interactive import NOT_A_POINT, InteractiveFeatures, ObjectMasks
from ..nn.memory import Remembered
from ..pixels import ImageLike, read_rgb
from .bank import Bank, Memento, MemorySettings, Reading
from .settings import TrackError

NO_OBJECT = -1024.0
"""Mask logits of an object that is not there."""

SURE = 10.0
"""Presence logit of what is given: an object is where its mask is."""

LARGEST = 32.0
"""Mask logits that are given back as a prompt are cut to this."""


@dataclass(eq=False)
class TrackerFeatures:
    """What the tracker reads of a frame, once. size: (height, width) of the image, pixels.

    image: features of the frame. looked: (1, N, C), the frame before any memory.
    projected: (1, C, h, w), what the image adds to a memory. The last two when first needed.
    """

    image: InteractiveFeatures
    size: tuple[int, int]
    looked: Tensor | None = None
    projected: Tensor | None = None


class Tracked(NamedTuple):
    """N objects on one frame.

    ids: N. logits: (N, 4g, 4g) of masks, ``NO_OBJECT`` where the object is not there.
    presence: (N,) logits. quality: (N,) predicted IoU, in [0, 1]. pointers: (N, C).
    """

    ids: list[int]
    logits: Tensor
    presence: Tensor
    quality: Tensor
    pointers: Tensor

    def take(self, rows: Sequence[int]) -> Tracked:
        """Some of the objects, by row."""
        index = torch.as_tensor(list(rows), dtype=torch.long, device=self.logits.device)
        parts = (self.logits, self.presence, self.quality, self.pointers)
        return Tracked([self.ids[i] for i in rows], *(p[index] for p in parts))


class MemoryTracker:
    """Objects of one stream of frames, given by masks or clicks and found again by memory.

    A frame is read once, then asked: ``propagate`` says where objects are, ``remember`` keeps
    what was said (or what became of it). Objects go through together, whenever they began.
    Memory is bounded for each object: see ``Bank``.

    Frames are numbered in the order of travel, without gaps; ``reverse`` says that the numbers
    fall. Ids of objects are the caller's own.

    Args:
        model: an image model whose weights have a memory ("video" in its ``abilities``).

    Raises:
        MissingAbilityError: the weights have none.
    """

    def __init__(self, model: ImageModel, settings: MemorySettings | None = None) -> None:
        model.require("video")
        self.model = model
        self.settings = settings if settings is not None else MemorySettings()
        self._head, self._memory = model.net.tracker()
        self._banks: dict[int, Bank] = {}
        # Objects that go through together. At full size three on a CPU, which gains nothing from
        # more: each needs some 150 MB meanwhile.
        most = 1 << (14 if model.device.type == "cpu" else 16)
        self._chunk = max(1, most // model.config.grid**2)

    @property
    def ids(self) -> list[int]:
        """Objects that are tracked, in the order in which they were added."""
        return list(self._banks)

    @property
    def adopt(self) -> float:
        """``TrackSettings.adopt`` that suits the weights."""
        return self.model.config.memory.adopt

    @property
    def nbytes(self) -> int:
        """Bytes that all memories hold."""
        return sum(bank.nbytes for bank in self._banks.values())

    @torch.inference_mode()
    def read(self, image: EncodedImage | ImageLike) -> TrackerFeatures:
        """Read a frame, once. An encoded image shares what concepts have read of it; for any
        other, only what the tracker needs is computed.
        """
        net = self.model.net
        if isinstance(image, EncodedImage):
            encoded = self.model.encode(image)  # or says whose it is
            return TrackerFeatures(net.frame_features(encoded.features), encoded.size)
        rgb = read_rgb(image)
        pixels = self.model.preprocess(rgb)
        features = net.read_frame(net.part("trunk")(pixels))
        return TrackerFeatures(features, (rgb.shape[1], rgb.shape[2]))

    # Objects that are given ------------------------------------------------------------

    @torch.inference_mode()
    def add_masks(
        self, frame: int, features: TrackerFeatures, ids: Sequence[int], masks: Tensor
    ) -> Tracked:
        """Say what objects look like on a frame: new ones, or known ones again.

        Args:
            masks: (N, h, w) bool at any size, of the whole image. Where masks that are given
                together overlap, the last is remembered.
        """
        self._check_ids(ids, masks)
        if not ids:
            return self._nothing()
        given = masks.to(self.model.device).bool()
        logits = torch.cat([self.logits_of(m) for m in given[:, None]])
        present = given.flatten(1).any(1)
        pointers = torch.cat(
            [self._point(features, given[some], present[some]) for some in self._parts(len(ids))]
        )
        later = torch.zeros_like(given[0])
        own = []
        for mask in given.flip(0):
            own.append(self.logits_of((mask & ~later)[None]))
            later |= mask
        presence = torch.where(present, SURE, -SURE)
        out = Tracked(list(ids), logits, presence, present.float().new_ones(len(ids)), pointers)
        self._condition(frame, features, out, torch.cat(own[::-1]))
        return out

    @torch.inference_mode()
    def add_points(
        self,
        frame: int,
        features: TrackerFeatures,
        id: int,
        xy: Tensor,
        labels: Tensor,
        previous: Tensor | None = None,
    ) -> Tracked:
        """Point at an object on a frame: a new one, or a known one to correct it.

        Args:
            xy: (K, 2) in [0, 1] of width and height. labels: (K,) of ``nn.interactive``:
                clicks on it and off it, corners of a box.
            previous: (4g, 4g) mask logits of the object on this frame, to be corrected.
        """
        device = self.model.device
        if xy.ndim != 2 or xy.shape[1] != 2 or labels.shape != xy.shape[:1] or not len(xy):
            raise TrackError(
                f"points are (K, 2) with (K,) labels; got {tuple(xy.shape)}, {tuple(labels.shape)}"
            )
        said = self._head(
            self._head.without_memory(features.image),
            xy[None].float().to(device),
            labels[None].long().to(device),
            None if previous is None else previous.to(device).clamp(-LARGEST, LARGEST)[None, None],
            multimask=len(xy) == 1,
        )
        out = self._best([id], said)
        self._condition(frame, features, out, out.logits)
        return out

    def _point(self, features: TrackerFeatures, masks: Tensor, present: Tensor) -> Tensor:
        """Object pointers (N, C) of given masks (N, h, w)."""
        side = 16 * self.model.config.grid
        large = masks[:, None].float()
        if large.shape[-2:] != (side, side):
            large = F.interpolate(large, (side, side), mode="bilinear", antialias=True)
        prompt = self._memory.mask_downsample(large)
        xy, labels = self._no_clicks(len(masks))
        said = self._head(features.image, xy, labels, prompt)
        return self._memory.point(said.tokens[:, 0], (said.presence > 0) & present)

    def _condition(
        self, frame: int, features: TrackerFeatures, given: Tracked, logits: Tensor
    ) -> None:
        tokens = self._encode(features, logits, given.presence > 0, given=True)
        for row, id in enumerate(given.ids):
            if id not in self._banks:
                self._banks[id] = Bank(self.settings, self._memory.frames)
            memento = Memento(tokens[row].clone(), given.pointers[row].clone(), 1.0)
            self._banks[id].condition(frame, memento)

    # Objects that are found again ------------------------------------------------------

    @torch.inference_mode()
    def propagate(
        self,
        frame: int,
        features: TrackerFeatures,
        *,
        reverse: bool = False,
        ids: Sequence[int] | None = None,
    ) -> Tracked:
        """Where objects are on a frame, by what is remembered; nothing is remembered yet.

        Args:
            ids: some of the objects; None: all.
        """
        asked = self.ids if ids is None else list(ids)
        for id in asked:
            self._check_known(id)
        readings = [self._banks[id].read(frame, reverse=reverse) for id in asked]
        # Objects that read as many frames go together: padding whole frames would cost as much
        # as reading them. Pointers are few, and padded.
        alike: dict[int, list[int]] = defaultdict(list)
        for row, reading in enumerate(readings):
            alike[len(reading.tokens)].append(row)
        found, order = [], []
        for rows in alike.values():
            for part in self._parts(len(rows)):
                some = rows[part]
                ids_here = [asked[row] for row in some]
                found.append(self._find(features, ids_here, [readings[row] for row in some]))
                order += some
        if not found:
            return self._nothing()
        parts = [torch.cat(part) for part in zip(*(f[1:] for f in found), strict=True)]
        joined = Tracked([asked[row] for row in order], *parts)
        places = {row: place for place, row in enumerate(order)}
        return joined.take([places[row] for row in range(len(asked))])

    def _find(self, features: TrackerFeatures, ids: list[int], readings: list[Reading]) -> Tracked:
        coarse = self.look(features, readings)
        xy, labels = self._no_clicks(len(ids))
        said = self._head(features.image._replace(coarse=coarse), xy, labels, multimask=True)
        return self._best(ids, said)

    def look(self, features: TrackerFeatures, readings: list[Reading]) -> Tensor:
        """The frame as the pasts of B objects show it, (B, C, h, w): the memory attention."""
        if features.looked is None:
            features.looked = self._memory.look(features.image.coarse)
        return self._memory.recall(features.looked, self._gather(readings))

    def _gather(self, readings: list[Reading]) -> Remembered:
        device = self.model.device
        most = max(len(r.pointers) for r in readings)
        nowhere = torch.zeros(self.model.config.width, device=device)
        oldest = self.settings.pointers - 1
        pointers = [r.pointers + [nowhere] * (most - len(r.pointers)) for r in readings]
        ages = [[a / oldest for a in r.ages] + [0.0] * (most - len(r.ages)) for r in readings]
        valid = None
        if any(len(r.pointers) < most for r in readings):
            counts = torch.tensor([[len(r.pointers)] for r in readings], device=device)
            valid = torch.arange(most, device=device) < counts
        stacked = (
            torch.stack([torch.stack(p) for p in pointers])
            if most
            else nowhere.expand(len(readings), 0, -1)
        )
        return self._memory.gather(
            torch.stack([torch.stack(r.tokens) for r in readings]),
            torch.tensor([r.when for r in readings], device=device),
            stacked,
            torch.tensor(ages, dtype=torch.float32, device=device).reshape(len(readings), most),
            valid,
        )

    def _best(self, ids: list[int], said: ObjectMasks) -> Tracked:
        """The best mask of each object, none where it is not there, and its pointer."""
        rows = torch.arange(len(ids), device=said.quality.device)
        best = said.quality.argmax(1)
        present = said.presence > 0
        logits = torch.where(present[:, None, None], said.logits[rows, best], NO_OBJECT)
        token = said.tokens[rows, best.clamp(max=said.tokens.shape[1] - 1)]
        pointers = self._memory.point(token, present)
        return Tracked(ids, logits, said.presence, said.quality[rows, best], pointers)

    @torch.inference_mode()
    def remember(
        self,
        frame: int,
        features: TrackerFeatures,
        tracked: Tracked,
        *,
        present: Tensor | None = None,
        overwrite: bool = False,
    ) -> None:
        """Keep what a frame showed, for the frames to come.

        Args:
            tracked: from ``propagate``, its masks perhaps corrected.
            present: (N,) bool, whether there is an object; None: as ``tracked`` says.
            overwrite: also replace the mask of objects that this frame conditions; else what
                they were given stays.
        """
        rows = [
            row
            for row, id in enumerate(tracked.ids)
            if id in self._banks and (overwrite or frame not in self._banks[id].conditioning)
        ]
        if not rows:
            return
        if len(rows) < len(tracked.ids):
            present = None if present is None else present[rows]
            tracked = tracked.take(rows)
        seen = tracked.presence > 0 if present is None else present.to(tracked.presence.device)
        tokens = self._encode(features, tracked.logits, seen, given=False)
        sure = (2 * tracked.presence.sigmoid() - 1).clamp(min=0)
        scores = (sure * tracked.quality).tolist()
        for row, id in enumerate(tracked.ids):
            bank, new = self._banks[id], tokens[row].clone()
            if frame in bank.conditioning:
                bank.conditioning[frame].tokens = new
            else:
                memento = Memento(new, tracked.pointers[row].clone(), scores[row])
                bank.remember(frame, memento)

    def remove(self, ids: Sequence[int] | int) -> None:
        """Forget objects."""
        for id in [ids] if isinstance(ids, int) else ids:
            self._check_known(id)
            del self._banks[id]

    def release(self, frame: int, id: int) -> None:
        """Take back what was given of an object on a frame; without any other, it is forgotten."""
        self._check_known(id)
        bank = self._banks[id]
        bank.conditioning.pop(frame, None)
        if not bank.conditioning:
            del self._banks[id]

    def rewind(self, frame: int, *, reverse: bool = False, ids: Sequence[int]) -> None:
        """Make ready to travel from ``frame`` on: forget what was tracked there and beyond, and
        what lies further back than pointers are read. What was given stays.
        """
        for id in ids:
            self._check_known(id)
            self._banks[id].rewind(frame, -1 if reverse else 1)

    def conditioned(self, id: int) -> list[int]:
        """Frames on which an object was given, of those still kept, in order."""
        self._check_known(id)
        return sorted(self._banks[id].conditioning)

    # Parts ------------------------------------------------------------------------------

    def _encode(
        self, features: TrackerFeatures, logits: Tensor, present: Tensor, *, given: bool
    ) -> Tensor:
        """Mask logits (N, ., .) -> tokens (N, T, memory width), in the model's dtype.

        Args:
            given: the masks are remembered as they are seen, not as likely as they are.
        """
        if features.projected is None:
            features.projected = self._memory.encoder.project(features.image.coarse)
        c = self.model.config
        side = 16 * c.grid if self.settings.mask_size == "memory" and not given else c.resolution
        out = []
        for some in self._parts(len(logits)):
            large = F.interpolate(logits[some, None].float(), (side, side), mode="bilinear")
            masks = (large > 0).float() if given else large.sigmoid_()
            out.append(self._memory.tokens(features.projected, masks, present[some]))
        return torch.cat(out).to(self.model.net.dtype)

    def _parts(self, count: int) -> list[slice]:
        """Rows that go through together."""
        return [slice(i, i + self._chunk) for i in range(0, count, self._chunk)]

    def logits_of(self, masks: Tensor) -> Tensor:
        """(N, h, w) bool -> (N, 4g, 4g) logits."""
        side = 4 * self.model.config.grid
        logits = torch.where(masks, -NO_OBJECT, NO_OBJECT)
        if masks.shape[-2:] == (side, side):
            return logits
        return F.interpolate(logits[:, None], (side, side), mode="bilinear", antialias=True)[:, 0]

    def _no_clicks(self, count: int) -> tuple[Tensor, Tensor]:
        xy = torch.zeros(count, 1, 2, device=self.model.device)
        return xy, torch.full((count, 1), NOT_A_POINT, device=self.model.device)

    def _nothing(self) -> Tracked:
        c = self.model.config
        none = torch.zeros(0, device=self.model.device)
        return Tracked(
            [],
            none.new_zeros(0, 4 * c.grid, 4 * c.grid),
            none,
            none,
            none.new_zeros(0, c.width),
        )

    def _check_ids(self, ids: Sequence[int], masks: Tensor) -> None:
        if masks.ndim != 3 or len(masks) != len(ids):
            raise TrackError(f"{len(ids)} ids need ({len(ids)}, h, w) masks; got {masks.shape}")
        if len(set(ids)) < len(ids):
            raise TrackError(f"an object is given once a frame; got ids {list(ids)}")

    def _check_known(self, id: int) -> None:
        if id not in self._banks:
            known = ", ".join(map(str, self._banks)) or "none"
            raise TrackError(f"no object {id} is tracked; these are: {known}")
