"""Drawing: overlays, contact sheets and videos."""
