"""Formats of labelled data on disk, one module each; ``registry`` maps their names to readers."""
