"""Ensembles in weight space: one model, soups, alpha paths, rules that choose alpha, checkpoint files."""
