"""Many images to files: overlays, masks and one COCO JSON. A stopped run continues.

out/instances.json      COCO: images, categories, annotations with run-length masks
out/overlays/<image>.jpg
out/masks/<image>.png   the number of the instance at each pixel
out/run.jsonl           what is known of each image (see ``io.jsonl``)
"""

from ..io.image_files import ImageFile as ImageFile
from ..io.image_files import find_images as find_images
from .annotations import to_annotations as to_annotations
from .coco_file import CocoSummary as CocoSummary
from .run import SegmentRun as SegmentRun
from .run import Task as Task
