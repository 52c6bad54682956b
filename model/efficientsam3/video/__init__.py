"""Video: frames in, instances with lasting identities out."""
