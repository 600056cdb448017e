"""Does anything beat alpha 0.5 that reads no shift? Tuned on the development suite, then judged once on the task.

    python benchmarks/beyond_half.py tune --runs runs/beyond_half
    python benchmarks/beyond_half.py judge --demos runs/demo-0,runs/demo-1,runs/demo-2

``tune`` (20 minutes on two CPU cores, 10 where --runs holds the classifiers already) fine-tunes on two folds and tries
every candidate; ``judge`` (3 minutes) takes what `shiftproof demo --seed N --out runs/demo-N` left for seeds 0, 1, 2.

The criterion was written down first: the largest gain over alpha 0.5 on the mean of the natural shifts, among the
candidates that on neither fold lose more than 0.5 points of the reference. Expect per-sample weights from the distance
to the nearest training image to win, at the cost of two forward passes, and no single model to win by much.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from operator import itemgetter
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit, softmax

from shiftproof import (
    Classifier,
    FinetuneSettings,
    ImageSet,
    finetune,
    load_classifier,
    load_clip,
    load_suite,
    model_stock_soup,
    save_classifier,
    uniform_soup,
    wise_ft,
    zero_shot_classifier,
)
from shiftproof.data.batches import decoded_once, evaluation_batches
from shiftproof.ensembling.path import alpha_grid, choose_alpha
from shiftproof.evaluation import accuracy
from shiftproof.evaluation.inference import BATCH_SIZE
from shiftproof.evaluation.intervals import bootstrap_interval
from shiftproof.evaluation.metrics import top_margins
from shiftproof.models.identity import fingerprint
from shiftproof.records.paths import PathPoint, PathRecord
from shiftproof.weights.schedules import alphas_by_depth, alphas_by_pattern

BASE = FinetuneSettings(epochs=20, lr=2e-3, batch_size=128, warmup_steps=20)
RECIPES = {
    "plain": BASE,
    "mixing": replace(BASE, mixing="smoothmix-circle", mixing_probability=0.25, label_smoothing=0.1),
}
FOLDS, SEEDS = (1, 2), (0, 1)
SHIFT_IMAGES = 600  # of every shift while tuning; the reference is taken whole
ALLOWED_LOSS = 0.5  # points of the reference, on either fold
NATURAL = ("sketch", "painting", "monochrome", "clutter")
HELD_IN = ("train", "validation")
CHOSEN = ("winner", "best single model")

Rows: TypeAlias = NDArray[np.floating]


@dataclass(frozen=True)
class Seen:
    """What a network says of a set: (N, K) logits and (N, D) features of length 1."""

    logits: Rows
    features: Rows


@dataclass
class Case:
    """One fine-tuning with all that candidates may use: the start, the same recipe's other seeds, a mixing one."""

    sets: Mapping[str, ImageSet]
    zero: Classifier
    tuned: Classifier
    members: Sequence[Classifier]
    mixed: Classifier | None = None
    known: dict[tuple[str, str], Seen] = field(default_factory=dict)

    @property
    def tests(self) -> list[str]:
        """The reference's test split and the shifts."""
        return [name for name in self.sets if name not in HELD_IN]

    def look(self, classifier: Classifier, name: str) -> Seen:
        """What a classifier says of one of the sets; run once."""
        key = (fingerprint(classifier), name)
        if key not in self.known:
            network = classifier.network_on("cpu")
            with torch.inference_mode():
                batches = evaluation_batches(self.sets[name], classifier.preprocessing, BATCH_SIZE)
                features = torch.cat([network.features(batch) for batch in batches])
                self.known[key] = Seen(network.head(features).numpy(), features.numpy())
        return self.known[key]

    def end(self, which: str) -> Classifier:
        """The zero-shot and the fine-tuned classifier, alpha 0.5 between them, or the seeds' soup."""
        made: dict[str, Callable[[], Classifier]] = {
            "zero": lambda: self.zero,
            "tuned": lambda: self.tuned,
            "half": lambda: wise_ft(self.zero, self.tuned, 0.5),
            "soup": lambda: uniform_soup(self.members),
            "mixed": lambda: self.mixed or self.tuned,
        }
        return made[which]()


# A candidate's (N, K) scores of every test set; None where a case lacks what it needs.
Answer: TypeAlias = Callable[[Case], dict[str, Rows] | None]


@dataclass(frozen=True)
class Gate:
    """Two models weighted by how far a sample is from training images: (1 - w) zero-shot + w ``partner``.

    w = sigmoid((t - d) / s): d is the distance to the ``k``-th nearest training image in the features of ``features``,
    t the ``quantile`` and s the standard deviation of the validation split's d. ``failures`` keeps only the training
    images that zero-shot gets wrong and fine-tuned right and mixes probabilities, as in VRF (Zhu et al. 2024).
    """

    features: str
    partner: str
    quantile: float
    k: int = 1
    failures: bool = False

    def weights(self, case: Case) -> dict[str, Rows]:
        """(N,) w of every test set."""
        model = case.end(self.features)
        bank = case.look(model, "train").features
        if self.failures:
            labels = case.sets["train"].labels
            right = {end: case.look(case.end(end), "train").logits.argmax(1) == labels for end in ("zero", "tuned")}
            bank = bank[~right["zero"] & right["tuned"]]

        def distance(name: str) -> Rows:
            nearest = np.sort(case.look(model, name).features @ bank.T, axis=1)[:, -self.k]
            return np.asarray(np.sqrt(np.maximum(2 - 2 * nearest.astype(np.float64), 0)))

        held_out = distance("validation")
        threshold, scale = np.quantile(held_out, self.quantile), held_out.std()
        return {name: np.asarray(expit((threshold - distance(name)) / scale)) for name in case.tests}

    def __call__(self, case: Case) -> dict[str, Rows]:
        first, second, weights = case.zero, case.end(self.partner), self.weights(case)
        found: dict[str, Rows] = {}
        for name, weight in weights.items():
            ends = [case.look(model, name).logits for model in (first, second)]
            ends = [softmax(end, axis=1) for end in ends] if self.failures else ends
            found[name] = (1 - weight[:, None]) * ends[0] + weight[:, None] * ends[1]
        return found


def one_model(make: Callable[[Case], Classifier]) -> Answer:
    """A candidate that is one classifier."""

    def answer(case: Case) -> dict[str, Rows]:
        made = make(case)
        return {name: case.look(made, name).logits for name in case.tests}

    return answer


def between(alpha: float) -> Answer:
    """The ends' logits, mixed alike for every sample."""
    return lambda case: {
        name: (1 - alpha) * case.look(case.zero, name).logits + alpha * case.look(case.tuned, name).logits
        for name in case.tests
    }


def by_certainty(certainty: Callable[[Rows], Rows]) -> Answer:
    """The ends' probabilities, each weighted by how certain it is of the sample."""

    def answer(case: Case) -> dict[str, Rows]:
        found = {}
        for name in case.tests:
            ends = [softmax(case.look(end, name).logits, axis=1) for end in (case.zero, case.tuned)]
            found[name] = np.sum([certainty(end)[:, None] * end for end in ends], axis=0)
        return found

    return answer


def largest(probabilities: Rows) -> Rows:
    """The largest probability."""
    return np.asarray(probabilities.max(1))


def negentropy(probabilities: Rows) -> Rows:
    """1 where one class has all the probability, 0 where all have the same."""
    entropy = -(probabilities * np.log(np.maximum(probabilities, 1e-30))).sum(1)
    return np.asarray(1 - entropy / np.log(probabilities.shape[1]))


def by_rule(rule: str) -> Callable[[Case], Classifier]:
    """The alpha that a rule of the library reads off the validation split."""

    def make(case: Case) -> Classifier:
        def held_out(alpha: float) -> float:
            logits = case.look(wise_ft(case.zero, case.tuned, alpha), "validation").logits
            return accuracy(logits, case.sets["validation"].labels)

        path = PathRecord("reference", (), tuple(PathPoint(a, held_out(a), {}, {}) for a in alpha_grid(11)))
        return wise_ft(case.zero, case.tuned, choose_alpha(path, rule))

    return make


def at(alpha: float, end: str = "tuned") -> Callable[[Case], Classifier]:
    """A point on the path to an end."""
    return lambda case: wise_ft(case.zero, case.end(end), alpha)


def by_layer(schedule: Callable[..., Mapping[str, float]], *arguments: Any) -> Callable[[Case], Classifier]:
    """An alpha for every layer, by one of the library's schedules."""
    return lambda case: wise_ft(case.zero, case.tuned, schedule(case.zero.state_dict(), *arguments))


def single_models() -> dict[str, Answer]:
    """Candidates that cost no more at inference than alpha 0.5."""
    found = {f"alpha {alpha}": at(alpha) for alpha in (0.5, 0.3, 0.4, 0.6)}
    found |= {f"rule {rule}": by_rule(rule) for rule in ("reference", "tolerance")}
    for first, last in ((0.25, 0.75), (0.4, 0.6), (0.6, 0.4), (0.75, 0.25)):
        found[f"depth, {first} to {last}"] = by_layer(alphas_by_depth, first, last)
    for encoder, head in ((0.5, 0.25), (0.5, 0.75), (0.5, 1.0), (0.4, 1.0)):
        found[f"head {head}, encoder {encoder}"] = by_layer(alphas_by_pattern, {"head.*": head}, encoder)
    found |= {f"soup of the seeds, alpha {alpha}": at(alpha, "soup") for alpha in (0.4, 0.5)}
    found["stock of the seeds (Model Stock)"] = lambda case: model_stock_soup(case.zero, case.members)
    answers = {name: one_model(make) for name, make in found.items()}
    mixed = one_model(at(0.5, "mixed"))
    return answers | {"mixing and smoothing, alpha 0.5": lambda case: mixed(case) if case.mixed else None}


def pairs_of_models() -> dict[str, Answer]:
    """Candidates that run two models on every image."""
    found: dict[str, Answer] = {f"outputs, alpha {alpha}": between(alpha) for alpha in (0.3, 0.4, 0.5, 0.6)}
    for name, certainty in {"probability": largest, "margin": top_margins, "entropy": negentropy}.items():
        found[f"certainty by {name}"] = by_certainty(certainty)
    for quantile, k in product((0.5, 0.8, 0.9), (1, 5)):
        found[f"VRF, k {k}, quantile {quantile}"] = Gate("tuned", "tuned", quantile, k, failures=True)
    for features, partner, quantile in product(("zero", "tuned"), ("half", "tuned"), (0.7, 0.8, 0.9, 0.95)):
        found[f"novelty, {features} features, zero to {partner}, quantile {quantile}"] = Gate(
            features, partner, quantile
        )
    for quantile in (0.8, 0.9):
        found[f"novelty, zero features, zero to soup, quantile {quantile}"] = Gate("zero", "soup", quantile)
    return found


def cases_of(runs: Path, fold: int) -> list[Case]:
    """A fold's case for every seed; mixing with the first."""
    name = f"emoji-development-{fold}"
    zero = zero_shot_classifier(load_clip("tiny"), load_suite(name).classes)
    members = [fine_tuned(runs, zero, name, seed, "plain") for seed in SEEDS]
    mixed = [fine_tuned(runs, zero, name, SEEDS[0], "mixing"), *[None] * (len(SEEDS) - 1)]
    sets = [sets_of(name, seed, zero, SHIFT_IMAGES) for seed in SEEDS]
    return [Case(s, zero, own, members, other) for s, own, other in zip(sets, members, mixed, strict=True)]


def fine_tuned(runs: Path, zero: Classifier, name: str, seed: int, recipe: str) -> Classifier:
    """A classifier fine-tuned on a fold, from --runs where it is there already."""
    place = runs / f"{name}-{recipe}-{seed}"
    if not place.is_dir():
        save_classifier(finetune(zero, load_suite(name, seed=seed), RECIPES[recipe], seed=seed), place)
    return load_classifier(place)


def sets_of(name: str, seed: int, start: Classifier, images: int | None = None) -> dict[str, ImageSet]:
    """The training and validation images, the reference's whole test split and the shifts, decoded once.

    With ``images``, so many of every shift, and the natural ones only.
    """
    suite = load_suite(name, seed=seed)
    own = suite.reference
    parts = {"train": own.train, "validation": own.validation, "reference": own.test}
    shifts = [shift for shift in suite.limited(images).shifts if images is None or shift.kind == "natural"]
    parts |= {shift.name: shift.data for shift in shifts}
    return {part: decoded_once(data, start.preprocessing) for part, data in parts.items()}


def moved(answer: Answer, case: Case) -> dict[str, Rows] | None:
    """Per image, whether it is named right minus whether alpha 0.5 names it right, for every test set."""
    found = answer(case)
    if found is None:
        return None
    half = case.end("half")
    differences = {}
    for name, scores in found.items():
        labels = case.sets[name].labels
        right = [rows.argmax(1) == labels for rows in (scores, case.look(half, name).logits)]
        differences[name] = right[0].astype(float) - right[1]
    return differences


def tune(options: argparse.Namespace) -> None:
    """Tries every candidate on every fold and seed, and writes them with the choice."""
    tried: dict[str, list[dict[str, float]]] = {}
    for fold in FOLDS:
        cases = cases_of(options.runs, fold)
        for name, answer in (SINGLE | PAIRS).items():
            found = [change for case in cases if (change := moved(answer, case)) is not None]
            points = {part: round(100 * float(np.mean([one[part].mean() for one in found])), 2) for part in found[0]}
            points["mean"] = round(float(np.mean([points[part] for part in NATURAL])), 2)
            tried.setdefault(name, []).append(points)
            print(fold, name, points["reference"], points["mean"], flush=True)
    entries = [_entry(name, folds) for name, folds in tried.items()]
    allowed = [entry for entry in entries if entry["allowed"]]
    single = [entry for entry in allowed if entry["models at inference"] == 1]
    choice = {
        what: max(of, key=itemgetter("mean"))["candidate"] for what, of in zip(CHOSEN, (allowed, single), strict=True)
    }
    settings: dict[str, Any] = {
        "recipes": {name: asdict(recipe) for name, recipe in RECIPES.items()},
        "folds": FOLDS,
        "seeds": SEEDS,
    }
    settings |= {"images a shift": SHIFT_IMAGES, "allowed loss on the reference": ALLOWED_LOSS}
    write(options.out, {"settings": settings, "choice": choice, "candidates": entries})


def _entry(name: str, folds: list[dict[str, float]]) -> dict[str, Any]:
    """A candidate's points above alpha 0.5: on the folds' mean, and on each fold."""
    return {
        "candidate": name,
        "models at inference": 1 if name in SINGLE else 2,
        "fine-tunings": len(SEEDS) if "seeds" in name or "soup" in name else 1,
        "reference": round(float(np.mean([fold["reference"] for fold in folds])), 2),
        "mean": round(float(np.mean([fold["mean"] for fold in folds])), 2),
        "allowed": all(fold["reference"] >= -ALLOWED_LOSS for fold in folds),
        "points by fold": folds,
    }


def judge(options: argparse.Namespace) -> None:
    """The frozen choice on the task: differences to alpha 0.5 of the same seed, with paired intervals."""
    results = json.loads(options.out.read_text(encoding="utf-8"))
    folders = [Path(folder) for folder in options.demos.split(",")]
    zero = load_classifier(folders[0] / "zero_shot")
    members = [load_classifier(folder / "fine_tuned") for folder in folders]
    cases = [Case(sets_of("emoji", seed, zero), zero, own, members) for seed, own in enumerate(members)]
    results["judgement"] = {}
    for what, name in results["choice"].items():
        answer = (SINGLE | PAIRS)[name]
        found = [change for case in cases if (change := moved(answer, case)) is not None]
        labels = {part: cases[0].sets[part].labels for part in cases[0].tests}
        together = {part: np.mean([one[part] for one in found], axis=0) for part in labels}
        entry: dict[str, Any] = {"candidate": name, "seeds together": intervals(together, labels)}
        entry["by seed"] = [intervals(one, labels) for one in found]
        entry["beats alpha 0.5"] = [beats(one) for one in (entry["seeds together"], *entry["by seed"])]
        if isinstance(answer, Gate):
            entry["mean weight"] = {part: round(float(w.mean()), 3) for part, w in answer.weights(cases[0]).items()}
        results["judgement"][what] = entry
        print(what, name, json.dumps(entry["seeds together"]), entry["beats alpha 0.5"], flush=True)
    results["alpha 0.5"] = [_accuracies(case) for case in cases]
    write(options.out, results)


def intervals(differences: Mapping[str, Rows], labels: Mapping[str, NDArray[np.int64]]) -> dict[str, list[float]]:
    """Points above alpha 0.5 with the ends of the 95 % interval, whole classes being resampled, for both at once."""
    series = {part: (values, labels[part]) for part, values in differences.items()}
    synthetic = [part for part in differences if part not in ("reference", *NATURAL)]
    # A mean's sets have the same classes, view by view, so that a class is drawn with its images of all shifts.
    for mean, parts in {"mean": NATURAL, "mean of synthetic": synthetic}.items():
        series[mean] = (np.mean([differences[part] for part in parts], axis=0), labels[parts[0]])
    return {
        part: [round(100 * x, 2) for x in (float(values.mean()), *bootstrap_interval(values, classes))]
        for part, (values, classes) in series.items()
    }


def beats(points: Mapping[str, Sequence[float]]) -> bool:
    """Whether the shifts' mean is clearly better and the reference neither clearly worse nor by more than allowed."""
    value, _, high = points["reference"]
    return points["mean"][1] > 0 and high >= 0 and value >= -ALLOWED_LOSS


def _accuracies(case: Case) -> dict[str, float]:
    """Alpha 0.5's own accuracy on every test set, in per cent."""
    logits = {part: case.look(case.end("half"), part).logits for part in case.tests}
    return {part: round(100 * accuracy(rows, case.sets[part].labels), 2) for part, rows in logits.items()}


def write(path: Path, results: Mapping[str, Any]) -> None:
    """JSON, one line a candidate."""
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = {key: value for key, value in results.items() if key != "candidates"}
    lines = ",\n".join(json.dumps(entry) for entry in results["candidates"])
    head = json.dumps(plain, indent=1).removesuffix("\n}")
    path.write_text(f'{head},\n "candidates": [\n{lines}\n]}}\n', encoding="utf-8")


SINGLE, PAIRS = single_models(), pairs_of_models()


def main() -> None:
    """Runs one of the two stages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("tune", "judge"))
    parser.add_argument("--runs", type=Path, default=Path("runs/beyond_half"))
    parser.add_argument("--demos", default="runs/demo-0,runs/demo-1,runs/demo-2")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/beyond_half.json"))
    options = parser.parse_args()
    (tune if options.stage == "tune" else judge)(options)


if __name__ == "__main__":
    main()
