"""SAM3.1's memory tracker: sixteen objects share one pass through attention and mask decoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..io.images import ImageLike, read_rgb
from ..nn.interactive import InteractiveFeatures
from ..nn.multiplex import BucketTokens
from ..outputs import EncodedImage
from ..predictor import ImageModel
from ..runtime.model import ExportedModel
from .buckets import Bucket, fitting_group
from .memory_bank import MemoryBank
from .memory_tracker import MemoryTracker
from .settings import MemorySettings
from .types import NO_OBJECT, MemoryEntry, MemoryRead, TrackerFeatures, TrackerOutput

NOT_OWN = -10.0
"""Largest logit of a mask where another object has a larger one (SAM3.1:
``_apply_non_overlapping_constraints``)."""


class MultiplexTracker(MemoryTracker):
    """Objects of one stream of frames, in buckets of sixteen.

    Objects that are given together with one name (``shared``) go to one group of buckets. Later
    ones fill its empty slots where all fit, else begin a group. A bucket is stored as one memory,
    so the cost of a frame grows with the number of buckets.

    An object that a person points at has a bucket of its own. If it shared one before, it begins
    anew: its memory is that of the prompted frame.

    Args:
        model: A model of SAM3.1 with the ability "video".
        settings: How much of the past is kept and read; the defaults are SAM3.1's.

    Raises:
        MissingAbilityError: The model has no video memory.
    """

    part: ClassVar[str] = "multiplex"
    selects_memory: ClassVar[bool] = False

    model: ImageModel

    def __init__(self, model: ImageModel, settings: MemorySettings | None = None) -> None:
        super().__init__(model, settings)
        self._buckets: list[Bucket] = []
        self._bucket_of: dict[int, Bucket] = {}
        self._groups = 0

    @torch.inference_mode()
    def read(self, image: EncodedImage | ImageLike) -> TrackerFeatures:
        """Encode a frame.

        Args:
            image: An image of any kind, or an encoded image of the same model, whose features are
                shared.
        """
        net = self.model.net
        if isinstance(image, EncodedImage):
            encoded = self.model.encode(image)  # raises if it is of another model
            seen, size = encoded.features.map, encoded.size
        else:
            rgb = read_rgb(image)
            seen = net.part("trunk")(self.model.preprocess(rgb))
            size = (rgb.shape[1], rgb.shape[2])
        return TrackerFeatures(net.read_tracked(seen), size, map=seen)

    # Objects that are given ------------------------------------------------------------

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
            point_labels: (K,) labels of ``nn.interactive``.
            previous: (4g, 4g) mask logits of the object on this frame, to be corrected. They are
                used where they come from an earlier prompt on this frame: SAM3.1 does not correct
                masks that were tracked, but segments anew.

        Returns:
            The object on the frame.

        Raises:
            TrackError: The points or labels have a wrong shape.
        """
        bucket = self._bucket_of.get(id)
        prompted = bucket is not None and not bucket.shared and frame in bucket.bank.conditioning
        chosen = previous if prompted else None
        return super().add_points(frame, features, id, xy, point_labels, chosen)

    def _prompted(self, features: TrackerFeatures) -> InteractiveFeatures:
        if features.prompted is None:
            features.prompted = self.model.net.read_frame(features.map)
        return features.prompted

    def _own(self, features: TrackerFeatures, given: Tensor, shared: str | None) -> Tensor:
        shown = given
        if given.shape[-2:] != features.size:
            sized = F.interpolate(
                given[:, None].float(), features.size, mode="bilinear", antialias=True
            )
            shown = sized[:, 0] > 0.5
        if shared is not None:
            shown = shown & (shown.sum(0) == 1)
        return torch.cat([self.mask_to_logits(mask) for mask in shown[:, None]])

    def _as_shown(self, features: TrackerFeatures, logits: Tensor) -> Tensor:
        # SAM3.1 remembers the mask that it shows, in the size of the video.
        shown = F.interpolate(logits[:, None], features.size, mode="bilinear")
        return F.interpolate(shown, logits.shape[-2:], mode="bilinear", antialias=True)[:, 0]

    def _pointers_of_masks(
        self, features: TrackerFeatures, masks: Tensor, present: Tensor
    ) -> Tensor:
        image = self._parts.head.without_memory(self._prompted(features))
        predicted = self._predict_given(image, masks)
        pointers = self._parts.memory.point(predicted.tokens[:, 0], predicted.presence > 0)
        return self._parts.memory.suppress(pointers, present)

    def _condition(
        self,
        frame: int,
        features: TrackerFeatures,
        given: TrackerOutput,
        logits: Tensor,
        shared: str | None = None,
    ) -> None:
        new = self._place(frame, given.ids, shared)
        for row, id in enumerate(given.ids):
            bucket = self._bucket_of[id]
            slot = bucket.slot(id)
            if bucket.frame != frame:
                bucket.begin_frame(frame, self._no_pointers())
            bucket.masks[slot] = logits[row], bool(given.presence[row] > 0)
            bucket.pointers[slot] = given.pointers[row]
            bucket.given.add(slot)
        for group in dict.fromkeys(self._bucket_of[id].group for id in given.ids):
            together = [b for b in self._buckets if b.group == group and b.frame == frame]
            encoded = self._encode_group(features, together)
            for bucket, tokens in zip(together, encoded, strict=True):
                bank, image = bucket.bank, self._image_tokens(features)
                begins = bucket in new or shared is None or frame in bank.conditioning
                entry = MemoryEntry(tokens, bucket.pointers.clone(), 1.0, image, {*bucket.given})
                (bank.condition if begins else bank.remember)(frame, entry)

    def _place(self, frame: int, ids: Sequence[int], shared: str | None) -> set[Bucket]:
        """Give each object a slot, and return the buckets that are new."""
        new: set[Bucket] = set()
        waiting = []
        for id in ids:
            bucket = self._bucket_of.get(id)
            if bucket is not None and shared is None and bucket.shared is not None:
                self._vacate(id)
                bucket = None
            if bucket is None:
                waiting.append(id)
        group: list[Bucket] = []
        if shared is not None and waiting:
            group = fitting_group(self._buckets, shared, len(waiting), frame)
        self._groups += 1
        for id in waiting:
            bucket = next((b for b in group if b.free), None)
            if bucket is None:
                if shared is None:
                    self._groups += 1
                bank = MemoryBank(self.settings, self._parts.memory.frames, aged=True)
                bucket = Bucket(bank, self._parts.memory.slots, shared, self._groups)
                self._buckets.append(bucket)
                new.add(bucket)
                group = [bucket] if shared is not None else []
            bucket.slots.append(id)
            self._bucket_of[id] = bucket
            self._banks[id] = bucket.bank
        return new

    def _vacate(self, id: int) -> None:
        """Take an object out of its bucket; a bucket without objects is dropped."""
        bucket = self._bucket_of.pop(id)
        bucket.remove(id)
        if not bucket.used:
            self._buckets.remove(bucket)

    # Objects that are found again ------------------------------------------------------

    def _find_all(
        self, frame: int, features: TrackerFeatures, asked: list[int], *, reverse: bool
    ) -> list[TrackerOutput]:
        buckets = dict.fromkeys(self._bucket_of[id] for id in asked)
        return [self._find(frame, features, bucket, reverse) for bucket in buckets]

    def _find(
        self, frame: int, features: TrackerFeatures, bucket: Bucket, reverse: bool
    ) -> TrackerOutput:
        """Find the objects of a bucket."""
        coarse = self.attend(features, [bucket.bank.read(frame, reverse=reverse)])
        used = bucket.used
        found = self._parts.memory.find(features.image._replace(coarse=coarse), used)
        rows = torch.arange(len(found.quality), device=found.quality.device)
        best = found.quality.argmax(1)
        present = found.presence > 0
        logits = torch.where(present[:, None, None], found.logits[rows, best], NO_OBJECT)
        pointers = self._parts.memory.point_tracked(found.tokens[rows, best], present)
        bucket.begin_frame(frame, self._no_pointers())
        bucket.pointers[used] = pointers[used]
        for slot, there in zip(used, present[used].tolist(), strict=True):
            bucket.masks[slot] = logits[slot], there
        ids = [id for id in bucket.slots if id is not None]
        parts = (logits, found.presence, found.quality[rows, best], pointers)
        return TrackerOutput(ids, *(part[used] for part in parts))

    def attend(self, features: TrackerFeatures, reads: list[MemoryRead]) -> Tensor:
        """Memory attention: the frame's features (B, C, h, w) after they read B memories.

        Args:
            features: Features of the frame.
            reads: What the frame reads of each bucket.
        """
        if features.attention_input is None:
            features.attention_input = self._parts.memory.look(features.image.coarse)
        looked, coarse = features.attention_input, features.image.coarse
        return torch.cat(
            [
                self._parts.memory.recall(looked, coarse, self._gather(read))
                if read.tokens
                else coarse
                for read in reads
            ]
        )

    def _gather(self, read: MemoryRead) -> BucketTokens:
        device = self.model.device
        oldest = self.settings.max_object_pointers - 1
        return self._parts.memory.gather(
            torch.stack(read.tokens),
            torch.stack(read.images),
            torch.tensor(read.positions, device=device),
            torch.stack(read.pointers),
            torch.tensor(read.ages, dtype=torch.float32, device=device) / oldest,
        )

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
            output: What ``propagate`` gave, with all objects of a bucket; its masks may have been
                corrected.
            present: (N,) bool, whether each object is in the frame; None: as ``output`` says.
            overwrite: Whether objects of which this is a conditioning frame are remembered with
                these masks too, instead of the given ones.
        """
        seen = (output.presence > 0 if present is None else present).tolist()
        certainty = (2 * output.presence.sigmoid() - 1).clamp(min=0)
        scores = (certainty * output.quality).tolist()
        rows_of: dict[Bucket, list[int]] = {}
        for row, id in enumerate(output.ids):
            if id in self._bucket_of:
                rows_of.setdefault(self._bucket_of[id], []).append(row)
        side = self._side(given=False)
        for bucket, rows in rows_of.items():
            if frame in bucket.bank.conditioning and not overwrite:
                continue
            entry = bucket.bank.entry(frame)
            slots = [bucket.slot(output.ids[row]) for row in rows]
            there = [slot for slot, row in zip(slots, rows, strict=True) if seen[row]]
            large = self._enlarge(output.logits[rows], side).sigmoid_()
            given = set() if entry is None else entry.given
            tokens = self._encode_bucket(features, large, slots, given, there)
            if entry is not None:
                entry.tokens = tokens
                continue
            pointers = self._no_pointers()
            pointers[slots] = output.pointers[rows]
            score = sum(scores[row] for row in rows) / len(rows)
            image = self._image_tokens(features)
            bucket.bank.remember(frame, MemoryEntry(tokens, pointers, score, image))

    def remove(self, ids: Sequence[int] | int) -> None:
        """Forget objects.

        Args:
            ids: Identities of the objects, or one identity.

        Raises:
            TrackError: An object is not known.
        """
        for id in [ids] if isinstance(ids, int) else ids:
            self._check_known(id)
            self._vacate(id)
            del self._banks[id]

    # Parts ------------------------------------------------------------------------------

    def _encode_group(self, features: TrackerFeatures, buckets: list[Bucket]) -> list[Tensor]:
        """Encode the masks that buckets have on their last frame; a pixel belongs to one object."""
        masks = [mask for bucket in buckets for mask, _ in bucket.masks.values()]
        large = self._enlarge(torch.stack(masks), self._side(given=True))
        if len(large) > 1:
            own = large.argmax(0) == torch.arange(len(large), device=large.device)[:, None, None]
            large = torch.where(own, large, large.clamp(max=NOT_OWN))
        out = []
        parts = large.sigmoid_().split([len(bucket.masks) for bucket in buckets])
        for bucket, part in zip(buckets, parts, strict=True):
            there = [slot for slot, (_, present) in bucket.masks.items() if present]
            out.append(self._encode_bucket(features, part, [*bucket.masks], bucket.given, there))
        return out

    def _encode_bucket(
        self,
        features: TrackerFeatures,
        masks: Tensor,
        slots: Sequence[int],
        given: set[int],
        present: Sequence[int],
    ) -> Tensor:
        """Encode masks (B, ., .) in [0, 1] of B slots to memory tokens (N, C)."""
        if features.projected is None:
            features.projected = self._parts.memory.encoder.project(features.image.coarse)
        tokens: Tensor = self._parts.memory.tokens(
            features.projected, masks, slots, sorted(given), present
        )
        return tokens.to(self.model.net.dtype)

    def _side(self, *, given: bool) -> int:
        """Side to which mask logits are enlarged before they become probabilities."""
        c = self.model.config
        small = self.settings.memory_mask_size == "memory" and not given
        return 16 * c.grid if small else c.resolution

    @staticmethod
    def _enlarge(logits: Tensor, side: int) -> Tensor:
        return F.interpolate(logits[:, None].float(), (side, side), mode="bilinear")[:, 0]

    def _image_tokens(self, features: TrackerFeatures) -> Tensor:
        """The coarse features (N, C) that memories of the frame keep, made once."""
        if features.remembered is None:
            coarse = features.image.coarse.flatten(2)[0].T
            features.remembered = coarse.to(self.model.net.dtype, copy=True)
        return features.remembered

    def _no_pointers(self) -> Tensor:
        shape = self._parts.memory.slots, self.model.config.width
        return torch.zeros(shape, device=self.model.device)


def make_tracker(
    model: ImageModel | ExportedModel, settings: MemorySettings | None = None
) -> MemoryTracker:
    """Make the memory tracker of a model's release.

    Args:
        model: A model with the ability "video".
        settings: How much of the past is kept and read; None: as the release does.

    Raises:
        MissingAbilityError: The model has no video memory.
    """
    multiplexed = isinstance(model, ImageModel) and model.config.multiplexed
    kind: Any = MultiplexTracker if multiplexed else MemoryTracker
    tracker: MemoryTracker = kind(model, settings)
    return tracker
