"""Predictions, metrics and intervals; loaded lazily, so that reading a run needs no torch."""
