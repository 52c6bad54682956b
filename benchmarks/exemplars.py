"""Measures what exemplars of the image, and of other images, find in scenes of stickers.

    python benchmarks/exemplars.py --scenes 160 --table docs/tables/exemplars.md

A question is a scene and a concept that another scene shows large enough. Half of the questions are
of concepts that the scene does not show. AP50 is COCO's, of masks, over all questions together.

Then a category of several objects is asked for, with and without a negative box around one of them:
how often the score of that object falls, and how often that of another one stays above it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from report import put_table, say

import efficientsam3 as es3
from efficientsam3.evaluate import (
    GroundTruth,
    ObjectAnnotation,
    Pair,
    Prediction,
    Predictions,
    score_images,
)
from efficientsam3.masks.overlap import mask_iou
from efficientsam3_stickers.recipes import common
from efficientsam3_stickers.scenes import SceneObject

FIRST_SEED = 1000
"""Seed of the first scene; the recipe validates on those before it."""
MIN_EXAMPLE, MIN_OBJECT = 900, 400
"""Least pixels of an example, and of the largest object of a concept that is asked for."""
MIN_SCORE, THRESHOLD = 0.05, 0.5
PAIRS = 200
"""Pairs of a prompt without and with a negative box, whose object is found without it."""
START, END = "<!-- table:exemplars -->", "<!-- /table:exemplars -->"

Example = tuple[int, SceneObject]
"""The number of a scene, and an object in it."""


class Question(NamedTuple):
    """A concept that is searched for in a scene."""

    scene: int
    name: str
    others: list[Example]
    """Examples in other scenes, in random order."""
    own: list[SceneObject]
    """The objects of the concept in the scene."""


def make_questions(scenes: Sequence[Any]) -> list[Question]:
    rng = np.random.default_rng(0)
    pool: dict[str, list[Example]] = {}
    for number, scene in enumerate(scenes):
        for one in scene.objects:
            if one.mask.sum() >= MIN_EXAMPLE:
                pool.setdefault(one.concept.name, []).append((number, one))
    out = []
    for number, scene in enumerate(scenes):
        shown = sorted({one.concept.name for one in scene.objects})
        asked = []
        for name in shown:
            others = [example for example in pool.get(name, ()) if example[0] != number]
            own = [one for one in scene.objects if one.concept.name == name]
            if others and max(one.mask.sum() for one in own) >= MIN_OBJECT:
                asked.append((name, others, own))
        absent = [name for name in pool if name not in shown]
        chosen = rng.choice(absent, len(asked), replace=False) if asked else []
        asked += [(str(name), pool[str(name)], []) for name in chosen]
        for name, others, own in asked:
            mixed = [others[i] for i in rng.permutation(len(others))]
            out.append(Question(number, name, mixed, own))
    return out


def ways(model: es3.ImageModel, encoded: Sequence[es3.EncodedImage]) -> dict[str, Any]:
    """Ways to ask a question, and whether each can be asked of absent concepts."""

    def largest(q: Question) -> SceneObject:
        return max(q.own, key=lambda one: int(one.mask.sum()))

    def inside(mask: Any) -> list[list[float]]:
        from scipy import ndimage

        far = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
        y, x = np.unravel_index(far.argmax(), far.shape)
        return [[x + 0.5, y + 0.5]]

    def ask(q: Question, **prompt: Any) -> es3.Instances:
        return model.segment(encoded[q.scene], threshold=MIN_SCORE, **prompt)

    def shown(q: Question, count: int) -> list[Any]:
        chosen = q.others[:count]
        return [model.exemplar(encoded[i], boxes=one.box[None]) for i, one in chosen]

    return {
        "its name": (lambda q: ask(q, concepts=q.name), True),
        "a box in the image": (lambda q: ask(q, boxes=largest(q).box[None]), False),
        "a box and a point in its mask": (
            lambda q: ask(q, boxes=largest(q).box[None], points=inside(largest(q).mask)),
            False,
        ),
        "a box in another image": (lambda q: ask(q, exemplars=shown(q, 1)), True),
        "boxes in up to four other images": (lambda q: ask(q, exemplars=shown(q, 4)), True),
        "name and a box in another image": (
            lambda q: ask(q, concepts=q.name, exemplars=shown(q, 1)),
            True,
        ),
    }


def measure(questions: Sequence[Question], answer: Callable[[Question], Any]) -> dict[str, float]:
    pairs, found = [], {}
    for number, q in enumerate(questions):
        out = answer(q)
        size = out.size
        objects = tuple(ObjectAnnotation.from_mask(one.mask) for one in q.own)
        pair = Pair((str(number), 1), f"scene {q.scene}", size, q.name, "all", (objects,))
        rows = zip(out.boxes.tolist(), out.rles, out.scores.tolist(), strict=True)
        found[pair.key] = [Prediction(tuple(box), mask, score) for box, mask, score in rows]
        pairs.append(pair)
    truth = GroundTruth("scenes", "saco", (), tuple(pairs))
    return score_images(truth, Predictions(found), threshold=THRESHOLD).metrics


def make_pairs(scenes: Sequence[Any]) -> list[tuple[int, str, SceneObject, SceneObject]]:
    """Scenes and categories of two things in them: the number, the category, and two objects."""
    out = []
    for number, scene in enumerate(scenes):
        large = [one for one in scene.objects if one.mask.sum() >= MIN_EXAMPLE]
        for category in sorted({name for one in large for name in one.concept.categories}):
            members = [one for one in large if category in one.concept.categories]
            names = {one.concept.name for one in members}
            if len(names) > 1:
                negated = members[number % len(members)]
                other = next(one for one in members if one.concept.name != negated.concept.name)
                out.append((number, category, negated, other))
    return out


def score_of(found: es3.Instances, mask: Any) -> float:
    """The highest score among the instances that cover an object, 0 where none does."""
    return float(found.scores[mask_iou(found.masks, mask[None])[:, 0] >= 0.5].max(initial=0.0))


def measure_negation(
    model: es3.ImageModel, scenes: Sequence[Any], encoded: Sequence[es3.EncodedImage]
) -> str:
    """A table of what a negative box does to its object and to another one."""
    lower = above = found = 0
    for number, category, negated, other in make_pairs(scenes):
        if found == PAIRS:
            break
        plain = model.segment(encoded[number], concepts=category, threshold=0)
        prompt = {"boxes": negated.box[None], "box_labels": [0]}
        changed = model.segment(encoded[number], concepts=category, threshold=0, **prompt)
        before = score_of(plain, negated.mask)
        if before == 0:
            continue
        found += 1
        after = score_of(changed, negated.mask)
        lower += after < before
        above += score_of(changed, other.mask) > after
    share, order = (100 * count / max(found, 1) for count in (lower, above))
    return (
        "| pairs | negated object scores lower | the other object scores above it |\n"
        "|---|---|---|\n"
        f"| {found} | {share:.0f} % | {order:.0f} % |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenes", type=int, default=120)
    parser.add_argument(
        "--negation-scenes", type=int, default=520, help="scenes of the pairs with a negative box"
    )
    parser.add_argument("--model", default="efficientsam3-stickers")
    parser.add_argument("--table", type=Path, help="a Markdown file that gets the table")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = es3.load(options.model, device="cpu", dtype="float32")
    generator = common.recipe_generator(model.config.resolution, "seen")
    scenes = [generator.scene(FIRST_SEED + number) for number in range(options.scenes)]
    encoded = [model.encode(scene.image) for scene in scenes]
    questions = make_questions(scenes)
    present = [q for q in questions if q.own]
    say(f"{len(questions)} questions, {len(present)} of them of concepts that the scene shows")
    lines = ["| shown by | AP50, concept in the image | AP50 | pmF1 | IL_MCC |", "|---" * 5 + "|"]
    for name, (answer, any_question) in ways(model, encoded).items():
        started = time.perf_counter()
        in_image = measure(present, answer)
        every = measure(questions, answer) if any_question else None
        cells = [name, f"{in_image['AP50']:.1f}"]
        cells += ["-"] * 3 if every is None else [f"{every['AP50']:.1f}", f"{every['pmF1']:.1f}"]
        cells += [] if every is None else [f"{every['IL_MCC']:.2f}"]
        lines.append("| " + " | ".join(cells) + " |")
        say(f"{lines[-1]} {time.perf_counter() - started:.0f} s")
    more = range(options.scenes, options.negation_scenes)
    scenes += [generator.scene(FIRST_SEED + number) for number in more]
    encoded += [model.encode(scene.image) for scene in scenes[options.scenes :]]
    table = "\n".join(lines) + "\n\n" + measure_negation(model, scenes, encoded)
    print(table)
    if options.table:
        put_table(table, options.table, START, END)


if __name__ == "__main__":
    main()
