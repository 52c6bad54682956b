"""Weight files: read, assemble strictly, save, download, rename between layouts."""
