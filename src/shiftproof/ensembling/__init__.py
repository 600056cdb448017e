"""Ensembles in weight space: one model, alpha paths, rules that choose alpha."""

from shiftproof.ensembling.ensembles import wise_ft
from shiftproof.ensembling.path import choose_alpha, sweep_alpha

__all__ = ["choose_alpha", "sweep_alpha", "wise_ft"]
