"""Weight-space ensembles: WiSE-FT, soups, the path over alpha and the rules that choose alpha."""

from .batch_norm import has_batch_norm, reestimate_batch_norm
from .ensembles import OutputEnsemble, interpolate_clip, output_ensemble, wise_ft
from .path import alpha_grid, sweep_alpha
from .rules import choose_alpha, compare_alphas
from .soups import GreedySoup, SoupRecord, greedy_soup, model_stock_soup, uniform_soup

__all__ = [
    "GreedySoup",
    "OutputEnsemble",
    "SoupRecord",
    "alpha_grid",
    "choose_alpha",
    "compare_alphas",
    "greedy_soup",
    "has_batch_norm",
    "interpolate_clip",
    "model_stock_soup",
    "output_ensemble",
    "reestimate_batch_norm",
    "sweep_alpha",
    "uniform_soup",
    "wise_ft",
]
