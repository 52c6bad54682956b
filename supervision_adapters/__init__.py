"""EfficientSAM3's instances as `supervision.Detections` and as Ultralytics results.

To come: detections with masks and presence scores, tracking, and labelled datasets in YOLO's
format. The conversions will be plain functions on `efficientsam3.Instances`.
"""
