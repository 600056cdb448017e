"""Predictions, metrics and intervals; importing the package loads none of them."""
