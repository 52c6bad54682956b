"""Evaluation: metrics of concept segmentation in images and clips, and of tracking given objects.

>>> from efficientsam3.evaluate import ConceptScore
>>> score = ConceptScore()
>>> score.update(found.masks, found.scores, true_masks)
>>> score.compute()["cgF1"]

A name is imported when it is first used, so that one metric does not import all of the package.
"""

from typing import TYPE_CHECKING

from ..lazy import lazy_names

if TYPE_CHECKING:
    from ..data.object_videos import ObjectVideo, read_object_videos
    from ..data.types import ObjectAnnotation
    from ..data.veval import read_clip_annotations
    from ..errors import AnnotationError
    from ..masks.overlap import box_iou, mask_iou, track_iou
    from .clips import evaluate_clips
    from .errors import PredictionError
    from .ground_truth import GroundTruth, Pair, read_ground_truth
    from .images import evaluate_images
    from .metrics.ap import average_precision
    from .metrics.cgf1 import ConceptScore, PairMatch
    from .metrics.hota import HotaScore
    from .metrics.jf import JFScore, contour_accuracy, region_similarity
    from .objects import predict_objects, score_objects
    from .predictions import Prediction, Predictions, read_predictions, write_coco_results
    from .report import Progress, Report
    from .score import score_images, score_pair

_MODULES = {
    "..data.object_videos": "ObjectVideo read_object_videos",
    "..data.types": "ObjectAnnotation",
    "..data.veval": "read_clip_annotations",
    "..errors": "AnnotationError",
    "..masks.overlap": "box_iou mask_iou track_iou",
    ".clips": "evaluate_clips",
    ".errors": "PredictionError",
    ".ground_truth": "GroundTruth Pair read_ground_truth",
    ".images": "evaluate_images",
    ".metrics.ap": "average_precision",
    ".metrics.cgf1": "ConceptScore PairMatch",
    ".metrics.hota": "HotaScore",
    ".metrics.jf": "JFScore contour_accuracy region_similarity",
    ".objects": "predict_objects score_objects",
    ".predictions": "Prediction Predictions read_predictions write_coco_results",
    ".report": "Progress Report",
    ".score": "score_images score_pair",
}

__all__ = [
    "AnnotationError",
    "ConceptScore",
    "GroundTruth",
    "HotaScore",
    "JFScore",
    "ObjectAnnotation",
    "ObjectVideo",
    "Pair",
    "PairMatch",
    "Prediction",
    "PredictionError",
    "Predictions",
    "Progress",
    "Report",
    "average_precision",
    "box_iou",
    "contour_accuracy",
    "evaluate_clips",
    "evaluate_images",
    "mask_iou",
    "predict_objects",
    "read_clip_annotations",
    "read_ground_truth",
    "read_object_videos",
    "read_predictions",
    "region_similarity",
    "score_images",
    "score_objects",
    "score_pair",
    "track_iou",
    "write_coco_results",
]

__getattr__, __dir__ = lazy_names(__name__, _MODULES)
