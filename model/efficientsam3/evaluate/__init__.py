"""How good are the answers: figures for images, clips and single objects.

>>> from efficientsam3.evaluate import ConceptScore
>>> score = ConceptScore()
>>> score.add(out.masks, out.scores, true_masks)
>>> score.figures()["cgF1"]
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .clips import evaluate_clips, score_clips
    from .concept import ConceptScore, PairScore
    from .davis import JandF, contour_accuracy, region_similarity
    from .errors import AnnotationError, PredictionError, ResumeError
    from .hota import HotaScore
    from .images import evaluate_images
    from .objects import ObjectVideo, predict_objects, read_videos, score_objects
    from .overlap import box_iou, mask_iou, track_iou
    from .precision import average_precision
    from .predictions import Prediction, Predictions, read_predictions, write_results
    from .score import Progress, Report, score_images, score_pair
    from .truth import Pair, Target, Truth, read_truth
    from .veval import read_clips

_LATER = {
    "AnnotationError": "errors",
    "ConceptScore": "concept",
    "HotaScore": "hota",
    "JandF": "davis",
    "ObjectVideo": "objects",
    "Pair": "truth",
    "PairScore": "concept",
    "Prediction": "predictions",
    "PredictionError": "errors",
    "Predictions": "predictions",
    "Progress": "score",
    "Report": "score",
    "ResumeError": "errors",
    "Target": "truth",
    "Truth": "truth",
    "average_precision": "precision",
    "box_iou": "overlap",
    "contour_accuracy": "davis",
    "evaluate_clips": "clips",
    "evaluate_images": "images",
    "mask_iou": "overlap",
    "predict_objects": "objects",
    "read_clips": "veval",
    "read_predictions": "predictions",
    "read_truth": "truth",
    "read_videos": "objects",
    "region_similarity": "davis",
    "score_clips": "clips",
    "score_images": "score",
    "score_objects": "objects",
    "score_pair": "score",
    "track_iou": "overlap",
    "write_results": "predictions",
}

__all__ = [
    "AnnotationError",
    "ConceptScore",
    "HotaScore",
    "JandF",
    "ObjectVideo",
    "Pair",
    "PairScore",
    "Prediction",
    "PredictionError",
    "Predictions",
    "Progress",
    "Report",
    "ResumeError",
    "Target",
    "Truth",
    "average_precision",
    "box_iou",
    "contour_accuracy",
    "evaluate_clips",
    "evaluate_images",
    "mask_iou",
    "predict_objects",
    "read_clips",
    "read_predictions",
    "read_truth",
    "read_videos",
    "region_similarity",
    "score_clips",
    "score_images",
    "score_objects",
    "score_pair",
    "track_iou",
    "write_results",
]


def __getattr__(name: str) -> object:
    """Import a public name when it is first asked for."""
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f".{_LATER[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
