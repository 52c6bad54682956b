"""Network modules: tensors in, tensors out, without files, devices or downloads.

Each module computes in the dtype of its own weights and keeps residual sums, norms and
coordinates in float32, so the same code serves float32 training and bfloat16 inference.
"""
