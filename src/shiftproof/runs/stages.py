"""One stage of the method at a time, for the commands that do one: zero-shot, fine-tune, sweep, evaluate, predict."""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shiftproof.data.captions import load_captioned_set
from shiftproof.data.labels import ClassSpace
from shiftproof.data.loading import decode
from shiftproof.data.sets import ImageSet
from shiftproof.data.suites import ShiftSuite, export_suite, load_data, load_suite
from shiftproof.ensembling.batch_norm import reestimate_batch_norm, require_batch_norm
from shiftproof.ensembling.ensembles import wise_ft
from shiftproof.ensembling.path import SPACES, choose_alpha, path_sets, sweep_alpha
from shiftproof.errors import InputError, listed, require_choice
from shiftproof.evaluation.inference import predict
from shiftproof.evaluation.metrics import evaluate, log_probabilities, scores
from shiftproof.finetuning.loop import finetune
from shiftproof.models.classifier import Classifier
from shiftproof.models.clip import load_clip
from shiftproof.models.devices import resolve_device
from shiftproof.models.directories import load_classifier, save_classifier
from shiftproof.models.identity import fingerprint, has_fingerprint
from shiftproof.pretraining.loop import pretrain
from shiftproof.records.accuracy import AccuracyRecord
from shiftproof.records.codec import document, to_json
from shiftproof.records.paths import PathRecord
from shiftproof.records.pretraining import PretrainRecord
from shiftproof.records.rules import RulesRecord
from shiftproof.records.summaries import path_json
from shiftproof.runs.directory import STAGE, SWEEP, TRAINING, Request, claim
from shiftproof.runs.file import RunFile, SuiteFile
from shiftproof.runs.pipeline import build_start, load_run_suite
from shiftproof.runs.predictions import PathFiles
from shiftproof.storage import json_text, read_json, write_json, write_text
from shiftproof.training.distributed import is_main_process, joined_processes, wait_for_main
from shiftproof.training.log import trackers_from


@dataclass(frozen=True)
class Answer:
    """One image's most probable classes, in falling order: (class name, probability)."""

    image: str
    top: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Sweep:
    """A measured alpha path, the alpha that the asked rule chose, and all rules compared, where 0.5 is on the path.

    ``batch_norm`` scores the ensemble with averaged statistics and with re-estimated ones, where that was asked for.
    """

    path: PathRecord
    alpha: float
    rules: RulesRecord | None
    batch_norm: tuple[AccuracyRecord, ...] = ()


def run_pretrain(asked: RunFile, out: Path, *, resume: bool = False, overwrite: bool = False) -> PretrainRecord:
    """Pretrains as the run file's ``pretrain`` section says."""
    if asked.pretrain is None:
        raise InputError("the run file has no pretrain section. Add one: pretrain: {data: csv:PATH, steps: 3000}.")
    # Data and model are found first, so that a misspelt name leaves no directory behind.
    clip, data = load_clip(asked.model, seed=asked.seed), load_captioned_set(asked.pretrain.data)
    device, trackers = resolve_device(asked.device), trackers_from(asked.report_to)
    with joined_processes(device), _training_in(out, asked, device, resume=resume, overwrite=overwrite):
        return pretrain(clip, data, asked.pretrain, seed=asked.seed, out=out, device=device, trackers=trackers)


def run_zero_shot(asked: RunFile, out: Path, *, overwrite: bool = False) -> tuple[AccuracyRecord, ...]:
    """Builds the zero-shot classifier of a suite, saves it to ``out`` and scores it on every test set."""
    suite, device = load_run_suite(asked), resolve_device(asked.device)
    classifier = build_start(asked, suite)
    with claim(out, STAGE, overwrite=overwrite):
        save_classifier(classifier, out)
        return score(classifier, suite.relabelled(classifier.classes).test_sets, "zero_shot", device, out)


def run_finetune(
    asked: RunFile, out: Path, *, resume: bool = False, overwrite: bool = False
) -> tuple[AccuracyRecord, ...]:
    """Fine-tunes the run file's model, or classifier directory, saves it to ``out`` and scores it.

    ``resume`` goes on from the last of ``out/checkpoints``. Processes that ``torchrun`` started share the work.
    """
    suite, device = load_run_suite(asked), resolve_device(asked.device)
    start = build_start(asked, suite)
    suite = suite.relabelled(start.classes)
    with joined_processes(device), _training_in(out, asked, device, resume=resume, overwrite=overwrite):
        tuned = finetune(
            start,
            suite,
            asked.finetune,
            seed=asked.seed,
            device=device,
            checkpoints=out / "checkpoints",
            trackers=trackers_from(asked.report_to),
        )
        records = score(tuned, suite.test_sets, "fine_tuned", device, None, together=True)
        if is_main_process():
            save_classifier(tuned, out)
            _write_results(records, out)
        return records


@contextlib.contextmanager
def _training_in(out: Path, asked: RunFile, device: str, *, resume: bool, overwrite: bool = False) -> Iterator[None]:
    """The directory of a training, new or the one to go on with, held by the process that writes."""
    with contextlib.ExitStack() as held:
        if is_main_process():
            request = Request(asked.to_yaml(), lambda file: RunFile.read(file).differences(asked))
            held.enter_context(claim(out, TRAINING, request, resume=resume, overwrite=overwrite))
        wait_for_main(device)  # the others read the checkpoints only now
        yield


def run_sweep(
    asked: RunFile,
    zero_shot: Path,
    fine_tuned: Path,
    out: Path,
    *,
    space: str = "weights",
    batch_norm: bool = False,
    resume: bool = False,
    overwrite: bool = False,
) -> Sweep:
    """Sweeps alpha between two classifier directories: predictions, ``path.json``, ``rules.json``, the ensemble.

    The ensemble at the chosen alpha is one classifier, so it is saved in the space of weights only. ``resume`` goes on
    with the same sweep: the predictions it has kept are not made again. ``batch_norm`` re-estimates the ensemble's
    batch-norm statistics on the training images, into ``ensemble_batch_norm``, and scores both in ``results.jsonl``.
    """
    require_choice("space", space, SPACES)
    ends, device = (load_classifier(zero_shot), load_classifier(fine_tuned)), resolve_device(asked.device)
    _require_unseen_validation(asked, ends[1])
    if batch_norm:
        require_batch_norm(ends[0])
    suite = load_run_suite(asked).relabelled(ends[0].classes)
    with claim(out, SWEEP, _sweep_request(asked, *ends, space), resume=resume, overwrite=overwrite):
        files = PathFiles(out / "predictions", path_sets(suite))
        path = sweep_alpha(*ends, suite, asked.alphas, space=space, device=device, keep=files.keep, kept=files.kept)
        alpha = choose_alpha(path, asked.alpha_rule, tolerance=asked.alpha_tolerance)
        write_json(out / "path.json", path_json(path))
        if rules := files.rules(path, suite, asked.alpha_tolerance):
            write_json(out / "rules.json", document(rules))
        else:
            (out / "rules.json").unlink(missing_ok=True)  # of other alphas, before it was resumed
        if space == "weights":
            save_classifier(wise_ft(*ends, alpha), out / "ensemble")
        renewed = _renew_batch_norm(wise_ft(*ends, alpha), suite, device, out) if batch_norm else ()
        return Sweep(path, alpha, rules, renewed)


def _renew_batch_norm(ensemble: Classifier, suite: ShiftSuite, device: str, out: Path) -> tuple[AccuracyRecord, ...]:
    """The ensemble's scores with averaged batch-norm statistics, and with those of the training images."""
    renewed = reestimate_batch_norm(ensemble, suite.reference.train, device=device)
    save_classifier(renewed, out / "ensemble_batch_norm")
    models = {"statistics averaged": ensemble, "statistics re-estimated": renewed}
    records = [r for name, model in models.items() for r in score(model, suite.test_sets, name, device, None)]
    _write_results(records, out)
    return tuple(records)


def _sweep_request(asked: RunFile, zero_shot: Classifier, fine_tuned: Classifier, space: str) -> Request:
    """The request of a sweep: what saved predictions depend on. More alphas, or another rule, are no other request."""
    ends = {"zero_shot": zero_shot, "fine_tuned": fine_tuned}
    settings = {
        "suite": asked.model_dump(mode="json")["suite"],
        "seed": asked.seed,
        "space": space,
    }

    def differences(file: Path) -> list[str]:
        recorded = read_json(file)
        if not isinstance(recorded, dict):
            return [*ends, *settings]
        other_ends = [name for name, end in ends.items() if not has_fingerprint(end, recorded.get(name))]
        return other_ends + [name for name in settings if recorded.get(name) != settings[name]]

    return Request(json_text({name: fingerprint(end) for name, end in ends.items()} | settings), differences)


def run_evaluate(
    directory: Path,
    sets: Mapping[str, str],
    suite: str | None,
    device: str,
    out: Path | None,
    *,
    overwrite: bool = False,
) -> tuple[AccuracyRecord, ...]:
    """Scores a classifier directory on a suite's test sets and on named data; writes ``results.jsonl`` to ``out``.

    A set may lack classes of the classifier; a warning names them.
    """
    classifier = load_classifier(directory)
    found: dict[str, ImageSet] = load_suite(suite).relabelled(classifier.classes).test_sets if suite else {}
    found |= {name: load_data(spec, classifier.classes, partial=True) for name, spec in sets.items()}
    if not found:
        raise InputError("no data to evaluate on. Name a `suite`, or data in `sets`.")
    for name, images in found.items():
        lacking = [i for label, i in enumerate(classifier.classes.ids) if label not in set(images.labels.tolist())]
        if lacking:
            warnings.warn(
                f"{name} has no image of {listed(lacking, 5)}; its accuracy is over the others.", stacklevel=2
            )
    with contextlib.nullcontext() if out is None else claim(out, STAGE, overwrite=overwrite):
        return score(classifier, found, directory.name, resolve_device(device), out)


def score(
    classifier: Classifier,
    sets: Mapping[str, ImageSet],
    model: str,
    device: str,
    out: Path | None,
    *,
    together: bool = False,
) -> tuple[AccuracyRecord, ...]:
    """Accuracy records of a classifier on every set, also as ``out/results.jsonl``; all processes ``together``."""
    records = []
    for name, images in sets.items():
        found = predict(classifier, images, device=device, stage=f"evaluate {name}", together=together)
        kept = scores(found.logits, found.labels)
        records.append(
            evaluate(
                kept,
                found.labels,
                classifier.classes.ids,
                model=model,
                alpha=classifier.alpha,
                set_name=name,
                groups=found.groups,
            )
        )
    if out is not None:
        _write_results(records, out)
    return tuple(records)


def _write_results(records: Sequence[AccuracyRecord], out: Path) -> None:
    write_text(out / "results.jsonl", "".join(json.dumps(to_json(record)) + "\n" for record in records))


def run_export(suite: str, out: Path, seed: int) -> int:
    """Exports an embedded suite as image folders; returns the number of images."""
    return export_suite(load_suite(suite, seed=seed), out)


def predict_images(directory: Path, images: Sequence[Path], *, top: int = 5, device: str = "auto") -> list[Answer]:
    """The ``top`` most probable classes of each image file, from a classifier directory alone."""
    classifier = load_classifier(directory)
    unlabelled = ImageSet(
        "images",
        classifier.classes,
        tuple(str(image) for image in images),
        np.zeros(len(images), dtype=np.int64),
        lambda i: decode(images[i]),
    )
    probabilities = np.exp(log_probabilities(predict(classifier, unlabelled, device=resolve_device(device)).logits))
    return [
        Answer(str(image), _top(row, classifier.classes, top)) for image, row in zip(images, probabilities, strict=True)
    ]


def _top(row: np.ndarray, classes: ClassSpace, top: int) -> tuple[tuple[str, float], ...]:
    order = np.argsort(-row, kind="stable")[:top]
    return tuple((classes.names[k], float(row[k])) for k in order)


def _require_unseen_validation(asked: RunFile, fine_tuned: Classifier) -> None:
    """A validation split held out with another seed than the training's would hold images trained on."""
    seed = fine_tuned.training.get("seed", asked.seed)
    if isinstance(asked.suite, SuiteFile) and asked.suite.reference.validation is None and seed != asked.seed:
        raise InputError(
            f"the fine-tuned classifier held out its validation images with seed {seed}, this sweep with {asked.seed}: "
            f"most of them were trained on. Add `seed={seed}`, or name `validation` data."
        )
