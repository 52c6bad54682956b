"""The panel: try concepts, clicks and boxes on one sample, and accept the labels."""
