"""The emoji suite: the drawings, and the views that place them on backgrounds."""
