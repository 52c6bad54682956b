"""Scenes and clips of stickers with exact masks, and the training of the packaged model."""
