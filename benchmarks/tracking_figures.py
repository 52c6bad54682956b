"""Figures of `benchmarks/tracking.py`, from the lines that it keeps, and their table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from efficientsam3.data.types import ClipAnnotations, ClipQuery, ClipRecord, ObjectTrack
from efficientsam3.evaluate.clips import evaluate_clips
from efficientsam3.evaluate.metrics.jf import JFScore
from efficientsam3.io import rle
from efficientsam3.io.jsonl import Record
from efficientsam3.masks.overlap import mask_iou

KINDS = {"own": "its own detections", "spoilt": "spoilt true masks", "true": "true masks"}


def figures(lines: Sequence[Record]) -> dict[str, Record]:
    """Of each tracker, over all clips."""
    numbers: dict[str, int] = {}
    out: dict[str, Record] = {}
    queries: dict[Any, ClipQuery] = {}
    for line in lines:
        for asked in line["truth"]:
            number = numbers.setdefault(asked["phrase"], len(numbers) + 1)
            key = (line["seed"], number)
            tracks = tuple(_track(masks) for masks in asked["tracks"])
            seed, size = line["seed"], tuple(line["size"])
            clip = ClipRecord(seed, str(seed), size, line["frames"])
            queries[key] = ClipQuery(key, clip, asked["phrase"], tracks)
    clips = {query.clip.id: query.clip for query in queries.values()}
    truth = ClipAnnotations(Path("clips"), queries, True, clips)
    for name in lines[0]["found"]:
        found: dict[Any, list[ObjectTrack]] = {}
        for line in lines:
            for track in line["found"][name]:
                key = (line["seed"], numbers[track["phrase"]])
                found.setdefault(key, []).append(_track(track["masks"], track["score"]))
        report = evaluate_clips(truth, found, jf=True)
        kept = {k: report.metrics[k] for k in ("pHOTA", "DetA", "AssA", "cgF1", "J&F", "J", "F")}
        kept["switches"] = sum(switches(q, found.get(key, [])) for key, q in queries.items())
        kept["ms"] = float(np.mean([line["ms"][name] for line in lines]))
        for way in ("mask", "click"):
            told = [
                line["given"][name][way]
                for line in lines
                if way in line.get("given", {}).get(name, {})
            ]
            if told:
                score = JFScore(
                    [j for g in told for j in g["j"]], [f for g in told for f in g["f"]]
                )
                kept[f"J&F by {way}"] = score.compute()["J&F"]
        out[name] = kept
    return out


def _track(masks: Sequence[Record | None], score: float = 1.0) -> ObjectTrack:
    return ObjectTrack(masks, [None if m is None else rle.box_of(m) for m in masks], False, score)


def switches(query: ClipQuery, found: Sequence[ObjectTrack]) -> int:
    """How often a true object changes its track."""
    last: dict[int, int] = {}
    count = 0
    for t in range(query.clip.length if found else 0):
        true = [(i, track.masks[t]) for i, track in enumerate(query.tracks) if track.masks[t]]
        mine = [(i, track.masks[t]) for i, track in enumerate(found) if track.masks[t]]
        if not true or not mine:
            continue
        overlap = mask_iou(*(np.array([rle.decode(m) for _, m in side]) for side in (true, mine)))
        for row, column in zip(*linear_sum_assignment(overlap, maximize=True), strict=True):
            if overlap[row, column] >= 0.5:
                object, track = true[row][0], mine[column][0]
                count += last.get(object, track) != track
                last[object] = track
    return count


def table(content: Mapping[str, Record]) -> str:
    """Markdown; a dash where nothing was measured."""
    titles = ["detections", "followed by", "pHOTA", "DetA", "AssA", "video cgF1", "J&F", "switches"]
    titles += ["J&F, given by mask", "by a click", "ms a frame", "peak MiB"]
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    for kind in KINDS:
        for name, kept in content.get(kind, {}).get("trackers", {}).items():
            cells = [KINDS[kind], name]
            keys = (
                "pHOTA",
                "DetA",
                "AssA",
                "cgF1",
                "J&F",
                "switches",
                "J&F by mask",
                "J&F by click",
            )
            cells += [_cell(kept.get(key), 0 if key == "switches" else 1) for key in keys]
            cells += [_cell(kept.get("ms"), 1), _cell(kept.get("peak"), 0)]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
