"""The stage that sweeps alpha between two classifier directories."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shiftproof.data.readable import require_readable
from shiftproof.data.sets import ImageSet
from shiftproof.data.suites import ShiftSuite
from shiftproof.ensembling.batch_norm import reestimate_batch_norm, require_batch_norm
from shiftproof.ensembling.ensembles import wise_ft
from shiftproof.ensembling.interpolation import SPACES, ensemble_on_path
from shiftproof.ensembling.path import path_sets, sweep_alpha
from shiftproof.ensembling.rules import choose_alpha
from shiftproof.errors import refuse_path, require_choice
from shiftproof.models.classifier import Classifier
from shiftproof.models.devices import resolve_device
from shiftproof.models.directories import load_classifier, save_classifier
from shiftproof.models.identity import fingerprint, has_fingerprint
from shiftproof.records.accuracy import AccuracyRecord
from shiftproof.records.codec import document
from shiftproof.records.paths import PathRecord
from shiftproof.records.rules import RulesRecord
from shiftproof.records.summaries import path_json
from shiftproof.runs.directory import SWEEP, OutputDirectory, Request, claim_together
from shiftproof.runs.doubts import note_validation, warn_of_loss, warn_of_start_of_path
from shiftproof.runs.file import RunFile
from shiftproof.runs.inputs import batch_norm_images, load_run_suite, require_unseen_validation, training_images
from shiftproof.runs.locations import with_full_paths
from shiftproof.runs.predictions import PathFiles
from shiftproof.runs.scores import score, write_results
from shiftproof.storage import json_text, read_json, write_json
from shiftproof.training.distributed import is_main_process, joined_processes


@dataclass(frozen=True)
class Sweep:
    """A measured alpha path, the alpha chosen by the requested rule, and a comparison of all rules.

    The rules are compared only if alpha 0.5 is on the path, and by the main process. ``batch_norm`` scores the ensemble
    with averaged batch-norm statistics and with re-estimated ones, if that was requested.
    """

    path: PathRecord
    alpha: float
    rules: RulesRecord | None
    batch_norm: tuple[AccuracyRecord, ...] = ()


def run_sweep(
    run_file: RunFile,
    zero_shot: str | Path,
    fine_tuned: str | Path,
    out: str | Path,
    *,
    space: str = "weights",
    compare_batch_norm: bool = False,
    resume: bool = False,
    overwrite: bool = False,
) -> Sweep:
    """Sweeps alpha between two classifier directories and writes predictions, ``path.json`` and ``rules.json``.

    In the space "weights", the ensemble at the chosen alpha is one classifier and is saved to ``ensemble``. ``resume``
    continues the same sweep and reuses the predictions that it has saved. ``compare_batch_norm`` re-estimates the
    batch-norm statistics of the ensemble on the training images, saves the result to ``ensemble_batch_norm`` and scores
    it beside averaged statistics in ``results.jsonl``. Processes started by ``torchrun`` share the path; the main one
    does the rest and writes.

    Raises an InputError if the two classifiers do not belong together, for an unknown space, if the validation split
    was drawn with another seed than that of the fine-tuning, or if ``out`` cannot be claimed.
    """
    zero_shot, fine_tuned = Path(zero_shot), Path(fine_tuned)
    refuse_path("run_file", run_file, "a run file, e.g. RunFile.read('run.yaml')")
    out = Path(out)
    require_choice("space", space, SPACES)
    ends, device = (load_classifier(zero_shot), load_classifier(fine_tuned)), resolve_device(run_file.device)
    run_file = run_file.resolved_on(device=device)
    precision = run_file.evaluation.precision
    require_unseen_validation(run_file.suite, run_file.seed, ends[1])
    suite = load_run_suite(run_file).relabelled(ends[0].classes)
    images = batch_norm_images(run_file, suite, ends[1].training)
    reestimates = compare_batch_norm or images is not None
    if reestimates:
        require_batch_norm(ends[0])
    train = [("train", suite.reference.train)] if reestimates else []
    require_readable([*path_sets(suite).items(), *train])
    request = _sweep_request(run_file, *ends, space)
    with joined_processes(device), claim_together(out, SWEEP, request, device, resume=resume, overwrite=overwrite):
        note_validation(suite)
        files = PathFiles(OutputDirectory(out).predictions, path_sets(suite))
        pairs: dict[str, Any] = {"collect": files.save, "known": files.known}
        run: dict[str, Any] = {"space": space, "device": device, "precision": precision, "together": True}
        path = sweep_alpha(ends[0], ends[1], suite, run_file.alphas, batch_norm_images=images, **run, **pairs)
        alpha = choose_alpha(path, run_file.alpha_rule, tolerance=run_file.alpha_tolerance)
        if not is_main_process():
            return Sweep(path, alpha, None)
        warn_of_start_of_path(path, len(suite.classes))
        warn_of_loss(ends[1].training, len(suite.classes))
        if space == "weights":
            ensemble = ensemble_on_path(*ends, alpha, device=device, batch_norm_images=images)
            save_classifier(ensemble, OutputDirectory(out).classifier("ensemble"), overwrite=True)
        rules = _write_path(path, files, suite, run_file.alpha_tolerance, OutputDirectory(out))
        if not compare_batch_norm:
            return Sweep(path, alpha, rules)
        seen = training_images(run_file, suite, ends[1].training)
        return Sweep(path, alpha, rules, _score_batch_norm(wise_ft(*ends, alpha), seen, suite, device, precision, out))


def _write_path(
    path: PathRecord, files: PathFiles, suite: ShiftSuite, tolerance: float, directory: OutputDirectory
) -> RulesRecord | None:
    """Writes the path and the comparison of the rules, which it returns."""
    write_json(directory.path, path_json(path))
    rules = files.rules(path, suite, tolerance)
    if rules:
        write_json(directory.rules, document(rules))
    else:
        directory.rules.unlink(missing_ok=True)  # the file is about the alphas before the sweep was resumed
    return rules


def _score_batch_norm(
    ensemble: Classifier, images: ImageSet, suite: ShiftSuite, device: str, precision: str, out: Path
) -> tuple[AccuracyRecord, ...]:
    """Scores the ensemble with averaged batch-norm statistics, and with those of the training images ``images``."""
    reestimated = reestimate_batch_norm(ensemble, images, device=device)
    save_classifier(reestimated, OutputDirectory(out).classifier("ensemble_batch_norm"), overwrite=True)
    models = {"statistics averaged": ensemble, "statistics re-estimated": reestimated}
    sets, reference = suite.test_sets, suite.reference.name
    records = [
        record
        for name, model in models.items()
        for record in score(model, sets, name, device, None, precision=precision, reference=reference)
    ]
    write_results(records, out)
    return tuple(records)


def _sweep_request(run_file: RunFile, zero_shot: Classifier, fine_tuned: Classifier, space: str) -> Request:
    """The request of a sweep: everything that its saved predictions depend on, without the alphas and the rule."""
    ends = {"zero_shot": zero_shot, "fine_tuned": fine_tuned}
    settings = {
        "suite": run_file.with_full_paths().model_dump(mode="json")["suite"],
        "seed": run_file.seed,
        "space": space,
        "batch_norm": run_file.batch_norm,
        **run_file.evaluation.model_dump(),
    }
    earlier = {"batch_norm": "averaged", "precision": "float32", "jpeg_draft": False}  # as before these could be chosen

    def differences(file: Path) -> list[str]:
        recorded = read_json(file)
        if not isinstance(recorded, dict):
            return [*ends, *settings]
        recorded = with_full_paths(earlier | recorded)  # earlier versions recorded paths as they were given
        other_ends = [name for name, end in ends.items() if not has_fingerprint(end, recorded.get(name))]
        return other_ends + [name for name in settings if recorded.get(name) != settings[name]]

    text = json_text({name: fingerprint(end) for name, end in ends.items()} | settings)
    return Request(lambda earlier: text, differences)
