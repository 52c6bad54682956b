"""Exported models, run by ONNX Runtime or OpenVINO. Nothing here imports torch."""
