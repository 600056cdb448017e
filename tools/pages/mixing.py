"""The tables about mixing: how its settings were chosen, what it gains and loses, and what it costs."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from pages.markdown import accuracy_cell, bullets, markdown, out_of, points_cell, require, size_span, span, stacked
from pages.sources import Sources
from shiftproof.records.accuracy import CLUSTERED
from shiftproof.records.comparisons import Measured
from shiftproof.report.tables import signed_points, with_interval

Entry = dict[str, Any]
_MIXINGS = ("cutout", "mixup", "cutmix", "smoothmix-circle", "smoothmix-square")
_SMOOTHED = "none, smoothing 0.1"
_TUNED, _HALF, _CHOSEN = "fine-tuned", "alpha 0.5", "alpha by reference"
_ERRORS = ("calibration error, reference", "natural", "corruptions")


def regime_table(sources: Sources) -> str:
    """The candidates that were tried on the development suite."""
    rows = []
    for entry in sources.benchmark("tune_mixing"):
        cells = [
            f"{entry[model][what]:.1f}"
            for model in ("fine_tuned", "ensemble")
            for what in ("colour", "mean of natural", "mean of synthetic")
        ]
        rows.append((entry["candidate"], *cells))
    what = ("reference", "natural", "corruptions")
    header = ("", *(f"fine-tuned: {w}" for w in what), *(f"alpha 0.5: {w}" for w in what))
    return markdown(header, rows)


def findings(sources: Sources) -> str:
    """What the robustness tables show, favourable or not."""
    entries = sources.robustness()

    def differences(names: Iterable[str], model: str, what: str) -> list[float]:
        return [e["minus none"][what]["mean"] for e in _of(entries, names, model)]

    plain, smooth = ("mixup", "cutmix", "smoothmix-circle", "smoothmix-square"), "smoothmix-circle"
    costs = "every mixing costs the fine-tuned model accuracy under the natural shifts"
    lost = {
        name: size_span(differences(some, _TUNED, "natural"), costs, sign=-1)
        for name, some in {"mixing": plain, "cutout": ["cutout"], "smoothing": [_SMOOTHED]}.items()
    }
    gained = {
        (name, model): size_span(differences([name], model, "corruptions"), f"{name} on corruptions", sign=sign)
        for name, sign in {smooth: 1, "mixup": 1, "cutmix": -1, "smoothmix-square": -1}.items()
        for model in (_TUNED, _HALF)
    }
    halves = _of(entries, _MIXINGS, _HALF)
    kept = [_unclear(e, what) for e in _of(entries, [smooth], _HALF) for what in ("reference", "natural")]
    return bullets(
        "**Every mixing costs the fine-tuned model accuracy under the natural shifts**: "
        f"{lost['mixing']} points for MixUp, CutMix, and SmoothMix. Cutout loses {lost['cutout']} points, label "
        f"smoothing alone {lost['smoothing']}.",
        "**The ensemble recovers this loss**: at alpha 0.5, the differences to plain fine-tuning range from "
        f"{span((e['minus none']['natural']['mean'] for e in halves), signed_points)} "
        f"points, and {out_of(_unclear(e, 'natural') for e in halves)} are within chance.",
        "**SmoothMix-C and MixUp make models robust against corruptions; hard boxes do not**: SmoothMix-C gains "
        f"{gained[smooth, _TUNED]} points fine-tuned and {gained[smooth, _HALF]} at alpha 0.5, MixUp "
        f"{gained['mixup', _TUNED]} and {gained['mixup', _HALF]}. CutMix loses {gained['cutmix', _TUNED]} and "
        f"{gained['cutmix', _HALF]}, and SmoothMix-S, whose ramp is two pixels wide here, "
        f"{gained['smoothmix-square', _TUNED]} and {gained['smoothmix-square', _HALF]}.",
        "So **the combination pays when the shift is a corruption**: SmoothMix-C followed by alpha 0.5 changes the "
        f"accuracy on the reference and under the natural shifts within chance in {out_of(kept)} cases, and adds "
        f"{gained[smooth, _HALF]} points under corruptions. Under the natural shifts, it adds nothing beyond label "
        "smoothing alone.",
        *_about_calibration_and_alpha(entries),
    )


def _about_calibration_and_alpha(entries: Sequence[Entry]) -> tuple[str, str]:
    def error(augmentation: str, what: str) -> str:
        return f"{statistics.mean(_error(e, what) for e in _of(entries, [augmentation], _TUNED)):.1f} %"

    halves = _of(entries, [_SMOOTHED], _HALF)
    half = max(_error(e, what) for e in halves for what in ("reference", "natural"))
    augmented = [*_MIXINGS, _SMOOTHED, "none"]
    chosen = _of(entries, augmented, _CHOSEN)
    better = [
        half["means"]["natural"]["mean"] > by_reference["means"]["natural"]["mean"]
        for half, by_reference in zip(_of(entries, augmented, _HALF), chosen, strict=True)
    ]
    require(error(_SMOOTHED, "natural") < error("none", "natural"), "smoothing calibrates under the natural shifts")
    return (
        "Label smoothing, which is part of the regime, makes fine-tuned models underconfident on the reference "
        f"(calibration error {error(_SMOOTHED, 'reference')} instead of {error('none', 'reference')}, the mean of the "
        f"seeds) and better calibrated under the natural shifts ({error(_SMOOTHED, 'natural')} instead of "
        f"{error('none', 'natural')}). At alpha 0.5, both errors are at most {half:.1f} %.",
        f"The alpha that the reference chooses ranges from {span((e['alpha'] for e in chosen), '{:g}'.format)} and "
        f"varies with the seed. Under the natural shifts, 0.5 is better in {out_of(better)} cases.",
    )


def _of(entries: Sequence[Entry], names: Iterable[str], model: str) -> list[Entry]:
    return [e for name in names for e in entries if (e["augmentation"], e["model"]) == (name, model)]


def _unclear(entry: Entry, what: str) -> bool:
    low, high = entry["minus none"][what]["interval"]
    return bool(low <= 0 <= high)


def _error(entry: Entry, what: str) -> float:
    part = entry["sets"]["reference"] if what == "reference" else entry["means"][what]
    return 100 * float(part["calibration_error"])


def robustness_tables(sources: Sources) -> str:
    """Every augmentation, model and seed, and the paired differences to fine-tuning without one."""
    entries = sources.robustness()
    rows, differences = [], []
    for augmentation, model in dict.fromkeys((e["augmentation"], e["model"]) for e in entries):
        some = _of(entries, [augmentation], model)
        rows.append((augmentation, model, *(" / ".join(cells) for cells in zip(*map(_numbers, some), strict=True))))
        if augmentation != "none":
            lines = ([points_cell(**e["minus none"][what]) for what in e["minus none"]] for e in some)
            differences.append((augmentation, model, *map(stacked, zip(*lines, strict=True))))
    header = ("augmentation", "model", "alpha", "reference", "natural shifts", "corruptions", *_ERRORS)
    full = [
        (
            e["augmentation"],
            e["model"],
            str(e["seed"]),
            _reference_cell(e),
            *(accuracy_cell(*v) for v in _values(e)[1:]),
        )
        for e in entries
    ]
    return "\n\n".join(
        [
            "Seeds 0 / 1 / 2, in per cent:",
            markdown(header, rows),
            "Minus fine-tuning without augmentation, same seed and model, in points (one line per seed; 95 % paired "
            "bootstrap intervals that resample whole classes):",
            markdown(("augmentation", "model", "reference", "natural shifts", "corruptions"), differences),
            "<details><summary>Every seed with its intervals</summary>",
            markdown(("augmentation", "model", "seed", "reference", "natural shifts", "corruptions"), full),
            "</details>",
        ]
    )


def _reference_cell(entry: Entry) -> str:
    """The accuracy on the reference, without an interval that takes the views of one drawing as independent."""
    reference = entry["sets"]["reference"]
    clustered = reference.get("interval_method") == CLUSTERED
    return with_interval(Measured(reference["accuracy"], tuple(reference["interval"]) if clustered else None))


def _numbers(entry: Entry) -> tuple[str, ...]:
    errors = [entry["sets"]["reference"]["calibration_error"]]
    errors += [entry["means"][what]["calibration_error"] for what in ("natural", "corruptions")]
    numbers = [*(value for value, _ in _values(entry)), *errors]
    return (f"{entry['alpha']:g}", *(f"{100 * number:.1f}" for number in numbers))


def _values(entry: Entry) -> list[tuple[float, Sequence[float]]]:
    reference, means = entry["sets"]["reference"], entry["means"]
    return [
        (reference["accuracy"], reference["interval"]),
        *((means[what]["mean"], means[what]["interval"]) for what in ("natural", "corruptions")),
    ]


def speed_table(sources: Sources) -> str:
    """The time that mixing takes, as medians and ratios within one run of the benchmark."""
    results = sources.benchmark("mixing")
    targets = [
        (t["ours"], t["against"], f"{t['at_most']:g}", f"{t['ratio']:.2f}", "yes" if t["met"] else "no")
        for t in results["targets"]
    ]
    parts = [markdown(("ours", "against", "at most", "measured", "met"), targets)]
    for name, table in results["tables"].items():
        rows = [
            (
                contender,
                f"{entry['milliseconds']:.1f}",
                f"{entry['of_floor']:.2f}",
                _against(entry, "torchvision CutMix"),
            )
            for contender, entry in table.items()
        ]
        header = ("", "ms per batch", "times the floor", "times torchvision's CutMix")
        parts.append(f"{name}:\n\n{markdown(header, rows)}")
    return "\n\n".join(parts)


def _against(entry: Entry, other: str) -> str:
    return f"{entry['of'][other]:.2f}" if other in entry.get("of", {}) else ""
