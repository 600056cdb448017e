"""Looks for ensembles that beat alpha 0.5 without reading a shift, and judges the best ones once on the task.

    python benchmarks/beyond_half.py tune --runs runs/beyond_half
    python benchmarks/beyond_half.py judge --demos runs/demo-0,runs/demo-1,runs/demo-2

``tune`` fine-tunes on two folds of the development suite and tries every candidate. It takes 20 minutes on two CPU
cores, or 10 if --runs already contains the classifiers. ``judge`` takes 3 minutes. It reads the runs that
`shiftproof demo --seed N --out runs/demo-N` wrote for the seeds 0, 1 and 2.

The criterion was fixed in advance: the largest gain over alpha 0.5 on the mean of the natural shifts, among the
candidates that lose at most 0.5 points on the reference on either fold. We expected per-sample weights from the
distance to the nearest training image to win, at the cost of two forward passes, and no single model to win by much.
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
from shiftproof.ensembling.path import alpha_grid
from shiftproof.ensembling.rules import choose_alpha
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
SHIFT_IMAGES = 600  # images of every shift while tuning; the reference is used in full
ALLOWED_LOSS = 0.5  # points of the reference, on either fold
NATURAL = ("sketch", "painting", "monochrome", "clutter")
HELD_IN = ("train", "validation")
CHOSEN = ("winner", "best single model")

Rows: TypeAlias = NDArray[np.floating]


@dataclass(frozen=True)
class Seen:
    """A network's output for a set: (N, K) logits and (N, D) features of length 1."""

    logits: Rows
    features: Rows


@dataclass
class Case:
    """A fine-tuned model and what candidates may also use: the start, other seeds, a model trained with mixing."""

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
        """A classifier's output for one of the sets, which is computed once."""
        key = (fingerprint(classifier), name)
        if key not in self.known:
            network = classifier.network_on(device="cpu")
            with torch.inference_mode():
                batches = evaluation_batches(self.sets[name], classifier.preprocessing, BATCH_SIZE)
                features = torch.cat([network.features(batch) for batch in batches])
                self.known[key] = Seen(network.head(features).numpy(), features.numpy())
        return self.known[key]

    def end(self, which: str) -> Classifier:
        """The classifier of this name: zero-shot, fine-tuned, alpha 0.5, the soup of the seeds, or mixing."""
        made: dict[str, Callable[[], Classifier]] = {
            "zero": lambda: self.zero,
            "tuned": lambda: self.tuned,
            "half": lambda: wise_ft(self.zero, self.tuned, 0.5),
            "soup": lambda: uniform_soup(self.members),
            "mixed": lambda: self.mixed or self.tuned,
        }
        return made[which]()


# A candidate's (N, K) scores on every test set, or None if the case lacks what the candidate needs.
Answer: TypeAlias = Callable[[Case], dict[str, Rows] | None]


@dataclass(frozen=True)
class Gate:
    """Two models weighted by how far a sample is from training images: (1 - w) zero-shot + w ``partner``.

    w = sigmoid((t - d) / s): d is the distance to the ``k``-th nearest training image in the features of ``features``,
    t the ``quantile`` and s the standard deviation of d on the validation split. With ``failures``, only those training
    images count that zero-shot gets wrong and fine-tuned right, and probabilities are mixed, as in VRF (Zhu et al.
    2024).
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
        mixed: dict[str, Rows] = {}
        for name, weight in weights.items():
            ends = [case.look(model, name).logits for model in (first, second)]
            ends = [softmax(end, axis=1) for end in ends] if self.failures else ends
            mixed[name] = (1 - weight[:, None]) * ends[0] + weight[:, None] * ends[1]
        return mixed


def one_model(make: Callable[[Case], Classifier]) -> Answer:
    """A candidate that is one classifier."""

    def answer(case: Case) -> dict[str, Rows]:
        made = make(case)
        return {name: case.look(made, name).logits for name in case.tests}

    return answer


def between(alpha: float) -> Answer:
    """The logits of both ends, mixed with the same weight for every sample."""
    return lambda case: {
        name: (1 - alpha) * case.look(case.zero, name).logits + alpha * case.look(case.tuned, name).logits
        for name in case.tests
    }


def by_certainty(certainty: Callable[[Rows], Rows]) -> Answer:
    """The probabilities of both ends, each weighted by its certainty about the sample."""

    def answer(case: Case) -> dict[str, Rows]:
        weighted = {}
        for name in case.tests:
            ends = [softmax(case.look(end, name).logits, axis=1) for end in (case.zero, case.tuned)]
            weighted[name] = np.sum([certainty(end)[:, None] * end for end in ends], axis=0)
        return weighted

    return answer


def largest(probabilities: Rows) -> Rows:
    """The largest probability."""
    return np.asarray(probabilities.max(1))


def negentropy(probabilities: Rows) -> Rows:
    """1 if one class has all the probability, 0 if all classes have the same."""
    entropy = -(probabilities * np.log(np.maximum(probabilities, 1e-30))).sum(1)
    return np.asarray(1 - entropy / np.log(probabilities.shape[1]))


def by_rule(rule: str) -> Callable[[Case], Classifier]:
    """The ensemble at the alpha that a rule of the library chooses on the validation split."""

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
    makers = {f"alpha {alpha}": at(alpha) for alpha in (0.5, 0.3, 0.4, 0.6)}
    makers |= {f"rule {rule}": by_rule(rule) for rule in ("reference", "tolerance")}
    for first, last in ((0.25, 0.75), (0.4, 0.6), (0.6, 0.4), (0.75, 0.25)):
        makers[f"depth, {first} to {last}"] = by_layer(alphas_by_depth, first, last)
    for encoder, head in ((0.5, 0.25), (0.5, 0.75), (0.5, 1.0), (0.4, 1.0)):
        makers[f"head {head}, encoder {encoder}"] = by_layer(alphas_by_pattern, {"head.*": head}, encoder)
    makers |= {f"soup of the seeds, alpha {alpha}": at(alpha, "soup") for alpha in (0.4, 0.5)}
    makers["stock of the seeds (Model Stock)"] = lambda case: model_stock_soup(case.zero, case.members)
    answers = {name: one_model(make) for name, make in makers.items()}
    mixed = one_model(at(0.5, "mixed"))
    return answers | {"mixing and smoothing, alpha 0.5": lambda case: mixed(case) if case.mixed else None}


def pairs_of_models() -> dict[str, Answer]:
    """Candidates that run two models on every image."""
    answers: dict[str, Answer] = {f"outputs, alpha {alpha}": between(alpha) for alpha in (0.3, 0.4, 0.5, 0.6)}
    for name, certainty in {"probability": largest, "margin": top_margins, "entropy": negentropy}.items():
        answers[f"certainty by {name}"] = by_certainty(certainty)
    for quantile, k in product((0.5, 0.8, 0.9), (1, 5)):
        answers[f"VRF, k {k}, quantile {quantile}"] = Gate("tuned", "tuned", quantile, k, failures=True)
    for features, partner, quantile in product(("zero", "tuned"), ("half", "tuned"), (0.7, 0.8, 0.9, 0.95)):
        answers[f"novelty, {features} features, zero to {partner}, quantile {quantile}"] = Gate(
            features, partner, quantile
        )
    for quantile in (0.8, 0.9):
        answers[f"novelty, zero features, zero to soup, quantile {quantile}"] = Gate("zero", "soup", quantile)
    return answers


def cases_of(runs: Path, fold: int) -> list[Case]:
    """The cases of a fold, one per seed; the first one includes the model trained with mixing."""
    name = f"emoji-development-{fold}"
    zero = zero_shot_classifier(load_clip("tiny"), load_suite(name).classes)
    members = [fine_tuned(runs, zero, name, seed, "plain") for seed in SEEDS]
    mixed = [fine_tuned(runs, zero, name, SEEDS[0], "mixing"), *[None] * (len(SEEDS) - 1)]
    sets = [sets_of(name, seed, zero, SHIFT_IMAGES) for seed in SEEDS]
    return [Case(s, zero, member, members, other) for s, member, other in zip(sets, members, mixed, strict=True)]


def fine_tuned(runs: Path, zero: Classifier, name: str, seed: int, recipe: str) -> Classifier:
    """A classifier fine-tuned on a fold, read from --runs if it is already there."""
    place = runs / f"{name}-{recipe}-{seed}"
    if not place.is_dir():
        save_classifier(finetune(zero, load_suite(name, seed=seed), RECIPES[recipe], seed=seed), place)
    return load_classifier(place)


def sets_of(name: str, seed: int, start: Classifier, images: int | None = None) -> dict[str, ImageSet]:
    """The training and validation images, the reference's whole test split and the shifts, decoded once.

    ``images`` limits every shift to this number of images and leaves out the corruptions.
    """
    suite = load_suite(name, seed=seed)
    reference = suite.reference
    parts = {"train": reference.train, "validation": reference.validation, "reference": reference.test}
    shifts = [shift for shift in suite.limited(images).shifts if images is None or shift.kind == "natural"]
    parts |= {shift.name: shift.data for shift in shifts}
    return {part: decoded_once(data, start.preprocessing) for part, data in parts.items()}


def moved(answer: Answer, case: Case) -> dict[str, Rows] | None:
    """For each image of every test set, 1 if only the candidate is right, -1 if only alpha 0.5 is, and 0 otherwise."""
    scores_by_set = answer(case)
    if scores_by_set is None:
        return None
    half = case.end("half")
    differences = {}
    for name, scores in scores_by_set.items():
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
            changes = [change for case in cases if (change := moved(answer, case)) is not None]
            points = {
                part: round(100 * float(np.mean([one[part].mean() for one in changes])), 2) for part in changes[0]
            }
            points["mean"] = round(float(np.mean([points[part] for part in NATURAL])), 2)
            tried.setdefault(name, []).append(points)
            print(
                f"fold {fold}, {name}: {points['reference']:+.2f} points on the reference, "
                f"{points['mean']:+.2f} points on the mean of the shifts",
                flush=True,
            )
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
    cases = [Case(sets_of("emoji", seed, zero), zero, tuned, members) for seed, tuned in enumerate(members)]
    results["judgement"] = {}
    for what, name in results["choice"].items():
        answer = (SINGLE | PAIRS)[name]
        changes = [change for case in cases if (change := moved(answer, case)) is not None]
        labels = {part: cases[0].sets[part].labels for part in cases[0].tests}
        together = {part: np.mean([one[part] for one in changes], axis=0) for part in labels}
        entry: dict[str, Any] = {"candidate": name, "seeds together": intervals(together, labels)}
        entry["by seed"] = [intervals(one, labels) for one in changes]
        entry["beats alpha 0.5"] = [beats(one) for one in (entry["seeds together"], *entry["by seed"])]
        if isinstance(answer, Gate):
            entry["mean weight"] = {part: round(float(w.mean()), 3) for part, w in answer.weights(cases[0]).items()}
        results["judgement"][what] = entry
        print(f"{what}, {name}: points above alpha 0.5 {json.dumps(entry['seeds together'])}", flush=True)
        print(f"beats alpha 0.5, seeds together and one by one: {entry['beats alpha 0.5']}", flush=True)
    results["alpha 0.5"] = [_accuracies(case) for case in cases]
    write(options.out, results)


def intervals(differences: Mapping[str, Rows], labels: Mapping[str, NDArray[np.int64]]) -> dict[str, list[float]]:
    """Points above alpha 0.5 with the ends of the 95 % interval, which resamples whole classes."""
    series = {part: (values, labels[part]) for part, values in differences.items()}
    synthetic = [part for part in differences if part not in ("reference", *NATURAL)]
    # The sets of a mean agree in classes, view by view, so a class is resampled with its images in all shifts.
    for mean, parts in {"mean": NATURAL, "mean of synthetic": synthetic}.items():
        series[mean] = (np.mean([differences[part] for part in parts], axis=0), labels[parts[0]])
    return {
        part: [round(100 * x, 2) for x in (float(values.mean()), *bootstrap_interval(values, classes))]
        for part, (values, classes) in series.items()
    }


def beats(points: Mapping[str, Sequence[float]]) -> bool:
    """Whether the shifts' mean is clearly better, and the reference not clearly worse and within the allowed loss."""
    value, _, high = points["reference"]
    return points["mean"][1] > 0 and high >= 0 and value >= -ALLOWED_LOSS


def _accuracies(case: Case) -> dict[str, float]:
    """The accuracy of alpha 0.5 on every test set, in per cent."""
    logits = {part: case.look(case.end("half"), part).logits for part in case.tests}
    return {part: round(100 * accuracy(rows, case.sets[part].labels), 2) for part, rows in logits.items()}


def write(path: Path, results: Mapping[str, Any]) -> None:
    """Writes JSON with one line per candidate."""
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
