"""Classifiers in the forms that other libraries and runtimes read."""
