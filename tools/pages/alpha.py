"""The tables about alpha: what a path costs, and what each rule would have cost on the paper's sweeps."""

from __future__ import annotations

import statistics
from collections.abc import Mapping

from pages.markdown import bullets, markdown, require, span
from pages.sources import Sources
from shiftproof.ensembling.rules import choose_alpha
from shiftproof.records.paths import PathPoint, PathRecord
from shiftproof.report.tables import per_cent, signed_points

# Each rule's name, and as choose_alpha takes it.
RULES: dict[str, tuple[str, float]] = {
    "fixed": ("fixed", 0.0),
    "reference": ("reference", 0.0),
    "tolerance, 0.5 points": ("tolerance", 0.005),
    "tolerance, 1 point": ("tolerance", 0.01),
    "tolerance, 2 points": ("tolerance", 0.02),
}
SHIFTS = "mean of the 5 shifts"
# The loss on ImageNet and on the shifts, as fractions of at most 0, for every sweep.
Losses = Mapping[str, list[tuple[float, ...]]]
_PATH_CONTENDERS = {
    "path": "`sweep_alpha`",
    "floor": "decodes once, then runs one forward pass per alpha",
    "loop": "runs one evaluation loop per alpha and decodes each time",
}


def path_tables(sources: Sources) -> str:
    """The time of the alpha path, and of an ensemble at inference."""
    path, inference = sources.benchmark("path"), sources.benchmark("inference")
    rows = [(name, f"{path['seconds'][name]:.1f}", description) for name, description in _PATH_CONTENDERS.items()]
    summary = (
        f"{path['images']:,} JPEGs of 256 px, {path['alphas']} alphas, medians of {path['rounds']} rounds: the path "
        f"takes {path['path_of_floor']:.2f} times the floor (the target is at most {path['targets'][0]['at_most']:g}) "
        f"and {path['path_of_loop']:.2f} times the loop; its accuracies are "
        f"{'the same' if path['accuracies_equal_the_loop_s'] else 'NOT the same'}, to the last image."
    )
    costs = [
        (table, name, f"{entry['milliseconds']:.2f}", f"{entry['of_fine_tuned']:.3f}")
        for table, entries in inference["tables"].items()
        for name, entry in entries.items()
    ]
    header = ("device and batch", "model", "ms per batch", "times the fine-tuned model")
    return f"{summary}\n\n{markdown(('', 'seconds', 'what it does'), rows)}\n\n{markdown(header, costs)}"


def paper_paths(sources: Sources) -> dict[tuple[str, str], PathRecord]:
    """WiSE-FT's published alpha sweeps; ImageNet's test column stands for the validation split as well."""
    points: dict[tuple[str, str], list[PathPoint]] = {}
    for row in sources.paper_sweeps():
        accuracy = {"ImageNet": float(row["ImageNet"]) / 100, SHIFTS: float(row["avg_shifts"]) / 100}
        point = PathPoint(float(row["alpha"]), accuracy["ImageNet"], accuracy, {})
        points.setdefault((row["model"], row["tuning"]), []).append(point)
    return {key: PathRecord("ImageNet", (SHIFTS,), tuple(sweep)) for key, sweep in points.items()}


def chosen_points(path: PathRecord) -> dict[str, PathPoint]:
    """The point of a path that each rule chooses."""
    return {name: path.at(choose_alpha(path, rule, tolerance=margin)) for name, (rule, margin) in RULES.items()}


def losses(path: PathRecord) -> dict[str, tuple[float, ...]]:
    """How far each rule's accuracy is from the best one of each column, as fractions of at most 0."""
    best = {name: path.at(alpha).accuracy[name] for name, alpha in path.oracle().items()}
    return {
        rule: tuple(point.accuracy[column] - best[column] for column in best)
        for rule, point in chosen_points(path).items()
    }


def all_losses(sources: Sources) -> dict[str, list[tuple[float, ...]]]:
    """The losses of each rule on every sweep of the paper."""
    by_sweep = [losses(path) for path in paper_paths(sources).values()]
    return {rule: [lost[rule] for lost in by_sweep] for rule in RULES}


def choosing_tables(sources: Sources) -> str:
    """The choice of every rule on every sweep of the paper, and its loss to the best alpha of each column."""
    rows = []
    for (model, tuning), path in paper_paths(sources).items():
        lost = losses(path)
        for name, point in chosen_points(path).items():
            accuracies = [per_cent(value) for value in point.accuracy.values()]
            rows.append((model, tuning, name, f"{point.alpha:g}", *accuracies, *map(signed_points, lost[name])))
        oracle = path.oracle()
        cells = [f"{per_cent(path.at(alpha).accuracy[column])} at {alpha:g}" for column, alpha in oracle.items()]
        rows.append((model, tuning, "oracle (reads the column)", "", *cells, "", ""))
    header = ("model", "tuning", "rule", "alpha", "ImageNet", SHIFTS, "loss on ImageNet", "loss on the shifts")
    means = []
    for name, entries in all_losses(sources).items():
        columns = list(zip(*entries, strict=True))
        mean, worst = ([signed_points(by(column)) for column in columns] for by in (statistics.mean, min))
        means.append((name, *mean, *worst))
    over = ("rule", "ImageNet, mean", "shifts, mean", "ImageNet, worst", "shifts, worst")
    return (
        f"{_findings(sources)}\n\n"
        f"Loss to the best alpha of each column, over the four sweeps, in points:\n\n{markdown(over, means)}\n\n"
        f"Sweep by sweep, in per cent and points:\n\n{markdown(header, rows)}"
    )


def _findings(sources: Sources) -> str:
    lost = all_losses(sources)
    on = {rule: [[-100 * loss for loss in column] for column in zip(*lost[rule], strict=True)] for rule in RULES}
    paths = paper_paths(sources)
    linear = [path.oracle()["ImageNet"] for (_, tuning), path in paths.items() if tuning != "end-to-end"]
    whole = [path.oracle()["ImageNet"] for (_, tuning), path in paths.items() if tuning == "end-to-end"]
    require(min(linear) > max(whole), "the best alpha on ImageNet is larger for the linear classifier")
    require(max(on["reference"][0]) < 0.05, "`reference` loses nothing on ImageNet")
    one, half, two = (on[f"tolerance, {points}"] for points in ("1 point", "0.5 points", "2 points"))
    means = {rule: [statistics.mean(column) for column in on[rule]] for rule in ("fixed", "tolerance, 1 point")}
    return bullets(
        f"`reference` loses nothing on ImageNet and {span(on['reference'][1])} points on the shifts.",
        f"`fixed` loses at most {max(on['fixed'][1]):.1f} points on the shifts and {span(on['fixed'][0])} points on "
        "ImageNet. The price is higher when only the linear classifier was fine-tuned, because its best alpha on "
        f"ImageNet is large ({' and '.join(f'{alpha:g}' for alpha in linear)}).",
        f"`tolerance` with one point loses at most {max(one[0]):.1f} points on ImageNet, by definition, and at most "
        f"{max(one[1]):.1f} on the shifts. On average it gives up {means['tolerance, 1 point'][1]:.2f} points on the "
        f"shifts and {means['tolerance, 1 point'][0]:.2f} on ImageNet, and `fixed` {means['fixed'][1]:.2f} and "
        f"{means['fixed'][0]:.2f}. With half a point it loses up to {max(half[1]):.1f} points on the shifts; with two "
        f"points it loses up to {max(two[1]):.1f} points there and {max(two[0]):.1f} on ImageNet.",
        "On these four sweeps, no rule is best on both. `fixed` needs neither validation images nor a sweep, which is "
        "why it is the default. The paper itself reports models (JFT, BASIC-L) for which 0.5 is not near the best "
        "alpha.",
    )
