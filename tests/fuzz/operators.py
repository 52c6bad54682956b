"""Kinds of requests to the operators in FiftyOne: forms and runs, on a real database."""

from __future__ import annotations

import inspect
import os
import sys
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from efficientsam3.errors import EfficientSam3Error

from ..conftest import tiny_model
from .mutate import VALUES
from .runner import Case, Kind
from .samples import picture

NOT_JSON = (float("inf"), float("-inf"))
strange = st.sampled_from([v for v in VALUES if v not in NOT_JSON and v == v])
names = st.sampled_from(
    [
        "esam3",
        "human",
        "boxes",
        "words",
        "points",
        "missing",
        "id",
        "filepath",
        "a b",
        "_x",
        "",
        "é",
        "tags",
    ]
)
numbers = st.one_of(st.floats(-1, 2), st.integers(-1, 4))
phrases = st.one_of(
    st.sampled_from(["cat", "cat, dog", "", " ", ["cat"], [], ["cat", ""], [["cat"]]]), strange
)
SOUND: dict[str, st.SearchStrategy[Any]] = {
    "concepts": phrases,
    "concept": phrases,
    "threshold": numbers,
    "max_instances": numbers,
    "detect_every": numbers,
    "num_workers": st.sampled_from([0, 1, -1]),
    "restart": st.booleans(),
    "activate": st.booleans(),
    "class_agnostic": st.booleans(),
    "overlap": st.floats(0, 1),
    "nms": numbers,
    "existing": st.sampled_from(["refuse", "add", "replace", "overwrite", "esam3"]),
    "overlap_metric": st.sampled_from(["iou", "iom", "a"]),
    "tracker": st.sampled_from(["auto", "iou", "memory", "a"]),
    "direction": st.sampled_from(["both", "forward", "backward", "a"]),
    "fields": st.lists(names, max_size=2),
    "negative": st.lists(names, max_size=2),
    "label_field": st.one_of(st.sampled_from(["esam3", "found"]), names),
    "prompt_field": st.one_of(st.sampled_from(["boxes", "human", "points"]), names),
    "field": st.one_of(st.sampled_from(["boxes", "human"]), names),
    "truth": st.one_of(st.sampled_from(["boxes", "human"]), names),
    "delegated": st.just(False),
    "selected": st.lists(st.sampled_from(["boxes 0", "boxes 1", "points 0"]), max_size=2),
}
"""What the fields of forms hold; those that are not here hold names."""


def is_unexpected(error: object) -> bool:
    """Whether an operator shows an error that none of its checks raised, in a sentence."""
    return "the log has the details" in str(error)


class Operators(Kind):
    name = "operator"
    about = "values of the forms of all operators of FiftyOne's App"
    slow = True

    def prepare(self, folder: Path) -> None:
        for name, place in (
            *(
                ("CONFIG_PATH", "config.json"),
                ("DATABASE_DIR", "database"),
                ("PLUGINS_DIR", "plugins"),
            ),
            *(("MODEL_ZOO_DIR", "zoo"), ("DEFAULT_DATASET_DIR", "datasets")),
        ):
            os.environ[f"FIFTYONE_{name}"] = str(folder / place)
        os.environ["FIFTYONE_DATABASE_NAME"] = f"esam3-fuzz-{os.getpid()}"
        os.environ["FIFTYONE_DO_NOT_TRACK"] = "true"
        os.environ["FIFTYONE_SHOW_PROGRESS_BARS"] = "false"
        os.environ["HF_HUB_OFFLINE"] = "1"
        import fiftyone as fo

        tiny_model().save(folder / "tiny")
        self.model = str(folder / "tiny")
        samples = []
        for i in range(2):
            path = folder / f"{i}.png"
            path.write_bytes(picture())
            boxes = [fo.Detection(label="cat", bounding_box=[0.1, 0.1, 0.5, 0.5])]
            points = [fo.Keypoint(label="a", points=[(0.5, 0.5)])]
            samples.append(
                fo.Sample(
                    filepath=str(path),
                    words=["cat", "dog"],
                    human=fo.Detections(detections=boxes),
                    boxes=fo.Detections(detections=[b.copy() for b in boxes]),
                    points=fo.Keypoints(keypoints=points),
                )
            )
        self.dataset = fo.Dataset()
        self.dataset.add_samples(samples)
        self.fields = set(self.dataset.get_field_schema())
        self.selected = {
            f"{field} {i}": {"sample_id": sample.id, "field": field, "label_id": label.id}
            for i, sample in enumerate(self.dataset)
            for field, found in (("boxes", "detections"), ("points", "keypoints"))
            for label in sample[field][found]
        }

    def strategy(self) -> st.SearchStrategy[Any]:
        if "fiftyone" not in sys.modules:
            return st.nothing()  # only the child process imports FiftyOne
        from fiftyone_esam3.plugin import OPERATORS

        one: list[st.SearchStrategy[Any]] = []
        for place, operator in enumerate(OPERATORS):
            run = inspect.signature(operator.RUN).parameters
            fields = sorted({*run, "delegated"} - {"samples", "options", "model"})
            sound = {f: SOUND.get(f, names) for f in fields}
            needed = {f: v for f, v in sound.items() if f in run and run[f].default is run[f].empty}
            params = st.fixed_dictionaries(
                needed, optional={f: v for f, v in sound.items() if f not in needed}
            )
            wrong = st.dictionaries(st.sampled_from(fields), strange, max_size=1)
            left_out = st.sampled_from([None, None, None, *needed])
            with_model = st.sampled_from([True, True, True, False])
            one.append(st.tuples(st.just(place), with_model, params, wrong, left_out))
        return st.one_of(one)

    def check(
        self,
        value: tuple[int, bool, dict[str, Any], dict[str, Any], str | None],
        case: Case,
    ) -> None:
        from fiftyone.operators.executor import ExecutionContext, Executor

        from fiftyone_esam3.plugin import OPERATORS

        place, with_model, sound, wrong, left_out = value
        operator = OPERATORS[place]()
        if sound.get("selected"):
            sound = {**sound, "selected": [self.selected[one] for one in sound["selected"]]}
        params = {name: v for name, v in {**sound, **wrong}.items() if name != left_out}
        if with_model:
            params = {**params, "model": self.model}
        request = {"dataset_name": self.dataset.name, "params": params, "view": []}
        before = self.labels()
        try:
            form = operator.resolve_input(ExecutionContext(request, Executor()))
            errors = [str(p.error_message) for p in form.type.properties.values() if p.invalid]
            assert not any(is_unexpected(error) for error in errors), errors
            summary = operator.execute(ExecutionContext(request, Executor()))
            assert isinstance(summary, dict) and summary["message"]
        except EfficientSam3Error as error:
            assert not is_unexpected(error), error
            raise
        finally:
            extra = set(self.dataset.get_field_schema()) - self.fields
            if extra:
                self.dataset.delete_sample_fields(sorted(extra))
            after = self.labels()
        changed = [name for name in before if before[name] != after[name]]
        asked = {v for v in params.values() if isinstance(v, str)}
        assert set(changed) <= asked, f"{changed} have changed, and were not named"

    def labels(self) -> dict[str, Any]:
        """The labels of people, as text."""
        self.dataset.reload()
        return {
            name: str(self.dataset.values(name)) for name in ("human", "boxes", "points", "words")
        }


KINDS = (Operators,)
