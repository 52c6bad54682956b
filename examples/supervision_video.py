"""Track concepts through a video; draw identities, traces and a zone with Supervision.

python examples/supervision_video.py film.mp4 --concepts person --model NAME
"""

import argparse
from pathlib import Path

import numpy as np
import supervision as sv

import efficientsam3 as es3
from supervision_adapters import ConceptDetector, MaskIoUTracker, iter_track


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("video", nargs="?", default="demo/scenes/clip_0000007.mp4")
    parser.add_argument("--concepts", nargs="+", default=["pig face", "spider", "cat face"])
    parser.add_argument("--model", default="efficientsam3-stickers")
    parser.add_argument("--threshold", type=float, default=0.5)
    parser.add_argument("--out", type=Path, default=Path("out/examples/supervision_video.mp4"))
    options = parser.parse_args(arguments)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    model, limit = es3.load(options.model), options.threshold
    detector = ConceptDetector(model, options.concepts, threshold=limit, color="bgr")
    info = sv.VideoInfo.from_video_path(options.video)
    x, y = info.width // 2, info.height
    zone = sv.PolygonZone(np.array([[0, 0], [x, 0], [x, y], [0, y]]), [sv.Position.CENTER_OF_MASS])
    mask = sv.MaskAnnotator(color_lookup=sv.ColorLookup.TRACK)
    trace, count = sv.TraceAnnotator(), sv.PolygonZoneAnnotator(zone)
    with sv.VideoSink(str(options.out), info) as sink:
        for _, frame, detections in iter_track(options.video, MaskIoUTracker(), detector):
            zone.trigger(detections)
            frame = trace.annotate(mask.annotate(frame, detections), detections)
            sink.write_frame(count.annotate(frame))


if __name__ == "__main__":
    main()
