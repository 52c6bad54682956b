"""Classes of several phrases, from a mapping to detections and data sets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import efficientsam3 as es3
from supervision_adapters import CocoWriter, ConceptDetector, from_detections
from supervision_adapters.ultralytics import auto_annotate

CLASSES = {"vehicle": ["red car", "bus"], "dog": ["dog"]}


def test_class_ids_follow_the_mapping(tiny: es3.ImageModel, photo: Any, tmp_path: Path) -> None:
    detector = ConceptDetector(tiny, CLASSES, threshold=0.0)
    found = detector.predict(photo)
    assert detector.class_names == ["vehicle", "dog"]
    assert detector.classes == CLASSES
    assert set(zip(found.class_id.tolist(), found.data["class_name"], strict=True)) == {
        (0, "vehicle"),
        (1, "dog"),
    }
    assert set(found.data["phrase"]) == {"red car", "bus", "dog"}
    core = tiny.segment(photo, CLASSES, threshold=0.0)
    assert found.data["phrase"].tolist() == core.phrases
    back = from_detections(found)
    assert (back.labels, back.phrases) == (core.labels, core.phrases)
    writer = CocoWriter(detector.class_names)
    writer.add("a.jpg", found)
    content = json.loads(writer.write(tmp_path / "a.json").read_text())
    assert [c["name"] for c in content["categories"]] == ["vehicle", "dog"]
    assert {a["category_id"] for a in content["annotations"]} == {1, 2}


def test_other_concepts_for_a_call(tiny: es3.ImageModel, photo: Any) -> None:
    detector = ConceptDetector(tiny, threshold=0.0)
    found = detector.predict(photo, concepts=CLASSES)
    assert set(found.data["class_name"]) == {"vehicle", "dog"}
    detector.set_concepts({"animal": ["dog"]})
    assert set(detector.predict(photo).data["phrase"]) == {"dog"}


def test_suppression_across_classes(tiny: es3.ImageModel, photo: Any) -> None:
    both = ConceptDetector(tiny, ["red car", "bus"], threshold=0.0).predict(photo)
    options: dict[str, Any] = {"threshold": 0.0, "class_agnostic": True}
    detector = ConceptDetector(tiny, ["red car", "bus"], **options)
    found = detector.predict(photo)
    core = tiny.segment(photo, ["red car", "bus"], **options)
    assert 0 < len(found) < len(both)
    assert np.array_equal(found.confidence, core.scores)
    boxes = {"bus": [[5, 5, 30, 30]]}
    shown = detector.predict(photo, exemplars=boxes)
    alone = ConceptDetector(tiny, ["red car", "bus"], threshold=0.0)
    assert 0 < len(shown) < len(alone.predict(photo, exemplars=boxes))


def test_a_data_set_has_the_classes(tiny: es3.ImageModel, photo: Any, tmp_path: Path) -> None:
    Image.fromarray(photo).save(tmp_path / "a.png")
    made = auto_annotate(tmp_path / "a.png", CLASSES, tmp_path / "set", tiny, threshold=0.0, val=0)
    text = made.data.read_text()
    assert "vehicle" in text and "red car" not in text
    (labels,) = (tmp_path / "set").glob("labels/*/*.txt")
    assert {row.split()[0] for row in labels.read_text().splitlines()} == {"0", "1"}
