"""SAM3's memory tracker: the objects of one stream of frames, tracked together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import TrackError
from ..io.images import ImageLike
from ..nn.interactive import InteractiveFeatures, ObjectMasks
from ..outputs import EncodedImage
from ..predictor import ImageModel
from ..runtime.model import ExportedModel
from ..types import NOT_A_POINT
from .image_objects import ImageObjects
from .memory_bank import MemoryBank, stack_reads
from .settings import MemorySettings
from .tracker_parts import tracker_parts
from .types import NO_OBJECT, MemoryEntry, MemoryRead, TrackerFeatures, TrackerOutput

GIVEN_PRESENCE = 10.0
"""Presence logit of an object that is given by a mask with a pixel."""

MAX_PROMPT_LOGIT = 32.0
"""Mask logits that are given back as a prompt are clipped to this, as in SAM3."""


class MemoryTracker:
    """Objects of one stream of frames, given by masks or points and found again by memory.

    This is SAM3's tracker; ``multiplex_tracker.make_tracker`` makes the one of a model's release.

    A frame is encoded once by ``read``. Then ``propagate`` finds the objects on it, and
    ``remember`` adds its masks, which may be corrected before, to the memory. All objects are
    processed in one batch, whenever they began. Memory is bounded for each object: see
    ``MemoryBank``.

    Frames are numbered in the order of travel, without gaps; with ``reverse`` the numbers fall.
    Identities of objects are chosen by the caller.

    Args:
        model: A model with the ability "video".
        settings: How much of the past is kept and read; the defaults are SAM3's.

    Attributes:
        model: As given.
        settings: As given; ``memory_selection`` is that of the release where it was None.

    Raises:
        MissingAbilityError: The model has no video memory.
    """

    part: ClassVar[str] = "memory"
    selects_memory: ClassVar[bool] = True

    def __init__(
        self, model: ImageModel | ExportedModel, settings: MemorySettings | None = None
    ) -> None:
        model.require("video")
        self.model = model
        settings = settings if settings is not None else MemorySettings()
        if settings.memory_selection is None:
            settings = replace(settings, memory_selection=self.selects_memory)
        self.settings = settings
        self._parts = tracker_parts(model, self.part)
        self._banks: dict[int, MemoryBank] = {}
        self._image_objects = ImageObjects()
        # Objects in one batch. At full size three on a CPU, where larger batches are not faster:
        # each object needs some 150 MB while it is processed.
        cells = 1 << (14 if self._parts.device.type == "cpu" else 16)
        self._batch = max(1, cells // self._parts.config.grid**2)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_parts"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._parts = tracker_parts(self.model, self.part)

    @property
    def ids(self) -> list[int]:
        """Identities of the tracked objects, in the order in which they were added."""
        return list(self._banks)

    @property
    def adopt_detection_iou(self) -> float:
        """Default of ``TrackSettings.adopt_detection_iou`` for the model."""
        return self._parts.config.memory.adopt_detection_iou

    @property
    def nbytes(self) -> int:
        """Bytes of all memories."""
        return sum(bank.nbytes for bank in {*self._banks.values()})

    @torch.inference_mode()
    def read(self, image: EncodedImage | ImageLike) -> TrackerFeatures:
        """Encode a frame.

        Args:
            image: An image, or an encoded image of the same model, whose features are shared.
        """
        return self._parts.read(image)

    # Objects that are given ------------------------------------------------------------

    @torch.inference_mode()
    def add_masks(
        self,
        frame: int,
        features: TrackerFeatures,
        ids: Sequence[int],
        masks: Tensor,
        shared: str | None = None,
    ) -> TrackerOutput:
        """Give the masks of objects on a frame, which becomes a conditioning frame of them.

        Args:
            frame: Number of the frame.
            features: What ``read`` gave.
            ids: N identities, of new or known objects.
            masks: (N, h, w) bool of any size, of the whole image. A pixel that several of these
                masks share is remembered for the last of them; in SAM3.1, with ``shared``, for
                none.
            shared: SAM3.1: new objects share buckets with others of this name; None: each object
                gets a bucket of its own, as one that a person points at. SAM3: not used.

        Returns:
            The objects on the frame.

        Raises:
            TrackError: The masks have a wrong shape, or an identity occurs twice.
        """
        if masks.ndim != 3 or len(masks) != len(ids):
            raise TrackError(f"{len(ids)} ids need ({len(ids)}, h, w) masks; got {masks.shape}")
        if len(set(ids)) < len(ids):
            raise TrackError(f"an object is given once a frame; got ids {list(ids)}")
        if not ids:
            return self._empty_output()
        given = masks.to(self._parts.device).bool()
        logits = torch.cat([self.mask_to_logits(m) for m in given[:, None]])
        present = given.flatten(1).any(1)
        pointers = torch.cat(
            [
                self._pointers_of_masks(features, given[some], present[some])
                for some in self._batches(len(ids))
            ]
        )
        presence = torch.where(present, GIVEN_PRESENCE, -GIVEN_PRESENCE)
        quality = present.float().new_ones(len(ids))
        out = TrackerOutput(list(ids), logits, presence, quality, pointers)
        self._condition(frame, features, out, self._own(features, given, shared), shared)
        return out

    @torch.inference_mode()
    def add_points(
        self,
        frame: int,
        features: TrackerFeatures,
        id: int,
        xy: Tensor,
        point_labels: Tensor,
        previous: Tensor | None = None,
    ) -> TrackerOutput:
        """Point at an object on a frame, which becomes a conditioning frame of it.

        Args:
            frame: Number of the frame.
            features: What ``read`` gave.
            id: Identity of a new object, or of a known one, to correct it.
            xy: (K, 2) points in [0, 1] of width and height.
            point_labels: (K,) labels of ``nn.interactive``: points on and off the object, corners
                of a box.
            previous: (4g, 4g) mask logits of the object on this frame, to be corrected.

        Returns:
            The object on the frame.

        Raises:
            TrackError: The points or labels have a wrong shape.
        """
        device = self._parts.device
        if xy.ndim != 2 or xy.shape[1] != 2 or point_labels.shape != xy.shape[:1] or not len(xy):
            shapes = f"{tuple(xy.shape)}, {tuple(point_labels.shape)}"
            raise TrackError(f"points are (K, 2) with (K,) labels; got {shapes}")
        prompt = None
        if previous is not None:
            prompt = previous.to(device).clamp(-MAX_PROMPT_LOGIT, MAX_PROMPT_LOGIT)[None, None]
        predicted = self._parts.head(
            self._parts.head.without_memory(self._prompted(features)),
            xy[None].float().to(device),
            point_labels[None].long().to(device),
            prompt,
            multimask=len(xy) == 1,
        )
        out = self._best_masks([id], predicted)
        self._condition(frame, features, out, self._as_shown(features, out.logits))
        return out

    def _prompted(self, features: TrackerFeatures) -> InteractiveFeatures:
        """Features with which prompts are read."""
        return features.image

    def _own(self, features: TrackerFeatures, given: Tensor, shared: str | None) -> Tensor:
        """Given masks (N, h, w) as the logits that are remembered, without shared pixels."""
        later = torch.zeros_like(given[0])
        own = []
        for mask in given.flip(0):
            own.append(self.mask_to_logits((mask & ~later)[None]))
            later |= mask
        return torch.cat(own[::-1])

    def _as_shown(self, features: TrackerFeatures, logits: Tensor) -> Tensor:
        """Mask logits (N, 4g, 4g) of points as they are remembered."""
        return logits

    def _pointers_of_masks(
        self, features: TrackerFeatures, masks: Tensor, present: Tensor
    ) -> Tensor:
        """Object pointers (N, C) of given masks (N, h, w)."""
        predicted = self._predict_given(features.image, masks)
        return self._parts.memory.point(predicted.tokens[:, 0], (predicted.presence > 0) & present)

    def _predict_given(self, image: InteractiveFeatures, masks: Tensor) -> ObjectMasks:
        """What the interactive head makes of given masks (N, h, w)."""
        side = 16 * self._parts.config.grid
        large = masks[:, None].float()
        if large.shape[-2:] != (side, side):
            large = F.interpolate(large, (side, side), mode="bilinear", antialias=True)
        xy, labels = self._no_points(len(masks))
        return self._parts.head(image, xy, labels, self._parts.memory.mask_downsample(large))

    def _condition(
        self,
        frame: int,
        features: TrackerFeatures,
        given: TrackerOutput,
        logits: Tensor,
        shared: str | None = None,
    ) -> None:
        tokens = self._encode(features, logits, given.presence > 0, given=True)
        self._image_objects.note(frame, self._parts, features, given)
        for row, id in enumerate(given.ids):
            if id not in self._banks:
                self._banks[id] = MemoryBank(self.settings, self._parts.memory.frames)
            entry = MemoryEntry(tokens[row].clone(), given.pointers[row].clone(), 1.0)
            self._banks[id].condition(frame, entry)

    # Objects that are found again ------------------------------------------------------

    @torch.inference_mode()
    def propagate(
        self,
        frame: int,
        features: TrackerFeatures,
        *,
        reverse: bool = False,
        ids: Sequence[int] | None = None,
    ) -> TrackerOutput:
        """Find objects on a frame by their memory; nothing is remembered yet.

        Args:
            frame: Number of the frame.
            features: What ``read`` gave.
            reverse: Whether frames are tracked backward in time.
            ids: Some of the objects; None: all.

        Returns:
            The objects on the frame, in the order of ``ids``.

        Raises:
            TrackError: An object is not known.
        """
        asked = self.ids if ids is None else list(ids)
        for id in asked:
            self._check_known(id)
        found = self._find_all(frame, features, asked, reverse=reverse) if asked else []
        if not found:
            return self._empty_output()
        parts = [torch.cat(part) for part in zip(*(f[1:] for f in found), strict=True)]
        joined = TrackerOutput([id for f in found for id in f.ids], *parts)
        output = joined.take([joined.ids.index(id) for id in asked])
        return self._image_objects.adopt(frame, self._parts, features, output)

    def _find_all(
        self, frame: int, features: TrackerFeatures, asked: list[int], *, reverse: bool
    ) -> list[TrackerOutput]:
        """Find objects in batches; their order, and further objects, do not matter."""
        reads = [self._banks[id].read(frame, reverse=reverse) for id in asked]
        # Objects that read equally many frames are batched: padding of spatial memories would
        # cost as much as reading them. Pointers are few, and padded.
        by_length: dict[int, list[int]] = defaultdict(list)
        for row, read in enumerate(reads):
            by_length[len(read.tokens)].append(row)
        return [
            self._predict(features, [asked[row] for row in some], [reads[row] for row in some])
            for rows in by_length.values()
            for some in (rows[batch] for batch in self._batches(len(rows)))
        ]

    def _predict(
        self, features: TrackerFeatures, ids: list[int], reads: list[MemoryRead]
    ) -> TrackerOutput:
        coarse = self.attend(features, reads)
        xy, labels = self._no_points(len(ids))
        predicted = self._parts.head(
            features.image._replace(coarse=coarse), xy, labels, multimask=True
        )
        return self._best_masks(ids, predicted)

    def attend(self, features: TrackerFeatures, reads: list[MemoryRead]) -> Tensor:
        """Memory attention: the frame's features (B, C, h, w) after they read B memories.

        Args:
            features: Features of the frame.
            reads: What the frame reads of each object.
        """
        if features.attention_input is None:
            features.attention_input = self._parts.memory.look(features.image.coarse)
        oldest, device = self.settings.max_object_pointers - 1, self._parts.device
        memories = self._parts.memory.gather(
            *stack_reads(reads, oldest, self._parts.config.width, device)
        )
        return self._parts.memory.recall(features.attention_input, memories)

    def _best_masks(self, ids: list[int], predicted: ObjectMasks) -> TrackerOutput:
        """The best mask of each object, an empty one where it is absent, and its pointer."""
        rows = torch.arange(len(ids), device=predicted.quality.device)
        best = predicted.quality.argmax(1)
        present = predicted.presence > 0
        logits = torch.where(present[:, None, None], predicted.logits[rows, best], NO_OBJECT)
        token = predicted.tokens[rows, best.clamp(max=predicted.tokens.shape[1] - 1)]
        pointers = self._parts.memory.point(token, present)
        quality = predicted.quality[rows, best]
        return TrackerOutput(ids, logits, predicted.presence, quality, pointers)

    @torch.inference_mode()
    def remember(
        self,
        frame: int,
        features: TrackerFeatures,
        output: TrackerOutput,
        *,
        present: Tensor | None = None,
        overwrite: bool = False,
    ) -> None:
        """Add the masks of a frame to the memory.

        Args:
            frame: Number of the frame.
            features: What ``read`` gave.
            output: What ``propagate`` gave; its masks may have been corrected.
            present: (N,) bool, whether each object is in the frame; None: as ``output`` says.
            overwrite: Whether objects of which this is a conditioning frame are remembered with
                these masks too, instead of the given ones.
        """
        rows = [
            row
            for row, id in enumerate(output.ids)
            if id in self._banks and (overwrite or frame not in self._banks[id].conditioning)
        ]
        if not rows:
            return
        if len(rows) < len(output.ids):
            present = None if present is None else present[rows]
            output = output.take(rows)
        # SAM3's ``cal_mem_score``, copied to the host before the memory encoder is queued.
        certainty = (2 * output.presence.sigmoid() - 1).clamp(min=0)
        scores = (certainty * output.quality).tolist()
        seen = output.presence > 0 if present is None else present.to(output.presence.device)
        tokens = self._encode(features, output.logits, seen, given=False)
        self._image_objects.note(frame, self._parts, features, output)
        for row, id in enumerate(output.ids):
            bank, new = self._banks[id], tokens[row].clone()
            if frame in bank.conditioning:
                bank.conditioning[frame].tokens = new
            else:
                entry = MemoryEntry(new, output.pointers[row].clone(), scores[row])
                bank.remember(frame, entry)

    def remove(self, ids: Sequence[int] | int) -> None:
        """Forget objects.

        Args:
            ids: Identities of the objects, or one identity.

        Raises:
            TrackError: An object is not known.
        """
        for id in [ids] if isinstance(ids, int) else ids:
            self._check_known(id)
            del self._banks[id]
            self._image_objects.forget(id)

    def release(self, frame: int, id: int) -> None:
        """Remove a conditioning frame of an object; without any other, the object is forgotten.

        Args:
            frame: Number of the frame.
            id: Identity of the object.

        Raises:
            TrackError: The object is not known.
        """
        self._check_known(id)
        bank = self._banks[id]
        bank.conditioning.pop(frame, None)
        if not bank.conditioning:
            self.remove(id)

    def rewind(self, frame: int, *, reverse: bool = False, ids: Sequence[int]) -> None:
        """Prepare to track from a frame on; conditioning frames stay.

        What was tracked on that frame and beyond it is forgotten, and what is too far before it
        to be read.

        Args:
            frame: The frame that is tracked next.
            reverse: Whether frames are tracked backward in time.
            ids: The objects.

        Raises:
            TrackError: An object is not known.
        """
        for id in ids:
            self._check_known(id)
            self._banks[id].rewind(frame, -1 if reverse else 1)

    def conditioned(self, id: int) -> list[int]:
        """The conditioning frames of an object that are still kept, in order.

        Args:
            id: Identity of the object.
        """
        self._check_known(id)
        return sorted(self._banks[id].conditioning)

    # Parts ------------------------------------------------------------------------------

    def _encode(
        self, features: TrackerFeatures, logits: Tensor, present: Tensor, *, given: bool
    ) -> Tensor:
        """Encode mask logits (N, ., .) to memory tokens (N, T, memory width).

        Args:
            features: Features of the frame.
            logits: Mask logits.
            present: (N,) bool, whether each object is in the frame.
            given: Whether masks are encoded as 0 and 1; else as probabilities.
        """
        if features.projected is None:
            features.projected = self._parts.memory.encoder.project(features.image.coarse)
        c = self._parts.config
        small = self.settings.memory_mask_size == "memory" and not given
        side = 16 * c.grid if small else c.resolution
        out = []
        for some in self._batches(len(logits)):
            large = F.interpolate(logits[some, None].float(), (side, side), mode="bilinear")
            masks = (large > 0).float() if given else large.sigmoid_()
            out.append(self._parts.memory.tokens(features.projected, masks, present[some]))
        return torch.cat(out).to(self._parts.dtype)

    def _batches(self, count: int) -> list[slice]:
        """Rows that are processed together."""
        return [slice(i, i + self._batch) for i in range(0, count, self._batch)]

    def mask_to_logits(self, masks: Tensor) -> Tensor:
        """Masks (N, h, w) bool as logits (N, 4g, 4g) of plus or minus 1024.

        Args:
            masks: (N, h, w) bool.
        """
        side = 4 * self._parts.config.grid
        logits = torch.where(masks, -NO_OBJECT, NO_OBJECT)
        if masks.shape[-2:] == (side, side):
            return logits
        return F.interpolate(logits[:, None], (side, side), mode="bilinear", antialias=True)[:, 0]

    def _no_points(self, count: int) -> tuple[Tensor, Tensor]:
        xy = torch.zeros(count, 1, 2, device=self._parts.device)
        return xy, torch.full((count, 1), NOT_A_POINT, device=self._parts.device)

    def _empty_output(self) -> TrackerOutput:
        side, width = 4 * self._parts.config.grid, self._parts.config.width
        none = torch.zeros(0, device=self._parts.device)
        return TrackerOutput(
            [], none.new_zeros(0, side, side), none, none, none.new_zeros(0, width)
        )

    def _check_known(self, id: int) -> None:
        if id not in self._banks:
            known = ", ".join(map(str, self._banks)) or "none"
            raise TrackError(f"no object {id} is tracked; these are: {known}")
