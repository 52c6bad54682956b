"""Files: images, masks as run lengths, video frames, and files of runs."""
