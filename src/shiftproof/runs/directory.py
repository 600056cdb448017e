"""The one owner of output directories: their paths, the files that a command may delete, and the lock on writing."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from shiftproof.errors import DivergenceError, InputError, listed
from shiftproof.merging.layouts import alpha_folder
from shiftproof.records.runs import MODELS
from shiftproof.storage import locked, require_directory_name, write_text
from shiftproof.training.distributed import is_main_process, wait_for_main


@dataclass(frozen=True)
class JobFiles:
    """The files that one kind of job writes into its output directory.

    ``noun`` names the job in messages, and ``content`` describes the content of an occupied directory. ``request`` is
    the file that records the request, if there is one. ``artefacts`` are the names that the job writes and that
    ``overwrite`` may delete. ``results`` are those of them that starting again would lose; a directory without any of
    them counts as new.
    """

    noun: str
    content: str
    artefacts: frozenset[str]
    results: frozenset[str]
    request: str | None = None


_CLASSIFIER = ("classifier.json", "model.safetensors", "text_tower.safetensors")
_RUN_FILES = {
    *MODELS,
    *(
        "run.yaml",
        "stages.json",
        "conversions.json",
        "path.json",
        "rules.json",
        "results.jsonl",
        "summary.json",
        "report.html",
    ),
    *("diagnosis.json", "diagnosis"),
    *("checkpoints", "predictions", "samples", "maps", "figures"),
}
# The single stages share one list of names, so that any of them may replace the output of another.
_STAGE_FILES = frozenset(
    {
        *_CLASSIFIER,
        *("model", "card.json", "results.jsonl", "run.yaml", "checkpoints"),
        *("sweep.json", "path.json", "rules.json", "predictions", "ensemble", "ensemble_batch_norm"),
    }
)
_OF_A_COMMAND = "the output of an earlier command"
_INTERVENTION_FILES = {"strong_edge.json", "measurements.npz", "networks", "figures", "backgrounds.json"}
_STUDY_FILES = {"study.yaml", "study.json", "study.csv", "members", "soups", "figures"}

RUN = JobFiles("run", "a run", frozenset(_RUN_FILES), frozenset({"stages.json"}), "run.yaml")
STAGE = JobFiles("stage", _OF_A_COMMAND, _STAGE_FILES, _STAGE_FILES)
TRAINING = JobFiles("training run", _OF_A_COMMAND, _STAGE_FILES, _STAGE_FILES, "run.yaml")
SWEEP = JobFiles("sweep", _OF_A_COMMAND, _STAGE_FILES, _STAGE_FILES, "sweep.json")
STUDY = JobFiles("study", "a study", frozenset(_STUDY_FILES), frozenset({"members"}), "study.yaml")
# The networks of an interrupted study of windows are no results, so that the study continues without training them.
INTERVENTION = JobFiles(
    "diagnosis", "a diagnosis", frozenset(_INTERVENTION_FILES), frozenset({"strong_edge.json", "backgrounds.json"})
)


@dataclass(frozen=True)
class Request:
    """The request for a job: the text of its request file, and its comparison with one that was written earlier.

    ``text`` is given the request file that a continued job has, and None for a new one.
    ``differences`` returns the names of what differs from an earlier request file, none if both request the same.
    ``is_request`` distinguishes a request file from a file of the same name that a user wrote.
    """

    text: Callable[[Path | None], str]
    differences: Callable[[Path], Sequence[str]]
    is_request: Callable[[Path], bool] = Path.is_file


@contextlib.contextmanager
def claim(
    out: Path, files: JobFiles, request: Request | None = None, *, resume: bool = False, overwrite: bool = False
) -> Iterator[bool]:
    """Makes ``out`` the directory of one job and holds its lock; yields whether earlier work is continued.

    A new or empty directory is accepted. A directory with files which no such job writes is refused, and so is one with
    results, unless ``resume`` continues the same request or ``overwrite`` deletes them.

    Raises an InputError that names the obstacle: both switches at once, foreign files, results of an earlier job,
    another request, or another process that holds the lock.
    """
    require_directory_name(out, f"a {files.noun}")
    if resume and overwrite:
        raise InputError(f"`resume` continues the {files.noun} that `overwrite` deletes. Give one of the two.")
    with locked(out):
        yield _enter(out, files, request, resume=resume, overwrite=overwrite)


def _enter(out: Path, files: JobFiles, request: Request | None, *, resume: bool, overwrite: bool) -> bool:
    names = sorted(path.name for path in out.iterdir() if not path.name.startswith("."))
    record = None if files.request is None else out / files.request
    recorded = record is not None and request is not None and request.is_request(record)
    continued = resume and recorded and bool(files.results & set(names))
    if not continued:
        _require_no_foreign_files(out, files, names, written_by_user=files.request if record and not recorded else None)
        if files.results & set(names) and not overwrite:
            raise InputError(_occupied(out, files))
    elif record is not None and request is not None and (differing := request.differences(record)):
        raise InputError(
            f"{record} has other settings than this {files.noun} (these differ: {listed(differing)}). Repeat the "
            "earlier request, choose another `out`, or replace `resume=True` by `overwrite=True` to delete it."
        )
    if overwrite:
        _delete(out, names, last=files.request)
    if record is not None and request is not None:
        write_text(record, request.text(record if continued else None))
    return continued


def _require_no_foreign_files(out: Path, files: JobFiles, names: Sequence[str], *, written_by_user: str | None) -> None:
    """Raises an InputError for files that no such job writes, including a request file that a user wrote."""
    foreign = [name for name in names if name not in files.artefacts or name == written_by_user]
    if foreign:
        raise InputError(
            f"{out} already holds {listed(foreign, 5)}, which no {files.noun} wrote. Choose another `out`, or move "
            "that away."
        )


def _occupied(out: Path, files: JobFiles) -> str:
    resume = "" if files.request is None else f"add `resume=True` to continue that {files.noun}, "
    return f"{out} already holds {files.content}. Choose another `out`, {resume}or add `overwrite=True` to delete it."


def _delete(out: Path, names: Sequence[str], *, last: str | None) -> None:
    # The request is deleted last, so that a directory can still be overwritten after an interrupted deletion.
    for path in sorted((out / name for name in names), key=lambda path: path.name == last):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


@dataclass(frozen=True)
class OutputDirectory:
    """The paths that runs and single stages have in common."""

    root: Path

    @property
    def run_file(self) -> Path:
        """The run file with all settings as resolved, the seed and the versions."""
        return self.root / "run.yaml"

    @property
    def checkpoints(self) -> Path:
        """The folder with the checkpoints and the log of the training run."""
        return self.root / "checkpoints"

    @property
    def predictions(self) -> Path:
        """The folder of all predictions."""
        return self.root / "predictions"

    @property
    def path(self) -> Path:
        """The alpha path."""
        return self.root / "path.json"

    @property
    def rules(self) -> Path:
        """The comparison of the rules for alpha."""
        return self.root / "rules.json"

    @property
    def results(self) -> Path:
        """One accuracy record per line."""
        return self.root / "results.jsonl"

    @property
    def has_progress(self) -> bool:
        """Whether the directory holds a checkpoint, a fine-tuned classifier or predictions."""
        patterns = ("checkpoints/step-*", "fine_tuned/classifier.json", "predictions/*/*.npz")
        return any(True for pattern in patterns for _ in self.root.glob(pattern))

    def classifier(self, model: str) -> Path:
        """The directory of a classifier: of a run, one of its three models; of a sweep, the ensemble."""
        return self.root / model


@contextlib.contextmanager
def claim_together(
    out: Path,
    files: JobFiles,
    request: Request | None,
    device: str,
    *,
    resume: bool = False,
    overwrite: bool = False,
) -> Iterator[None]:
    """Claims the directory of a job that several processes share in the main one, for which the others wait.

    The errors are those of ``claim``, and errors of the job explain ``resume``.
    """
    with contextlib.ExitStack() as claims:
        if is_main_process():
            claims.enter_context(claim(out, files, request, resume=resume, overwrite=overwrite))
            claims.enter_context(explaining_resume(OutputDirectory(out)))
        wait_for_main(device)  # the other processes read the directory from here on
        yield


@contextlib.contextmanager
def explaining_resume(directory: OutputDirectory) -> Iterator[None]:
    """Adds to an error that ``resume`` continues the job, where the directory holds work that would not be repeated.

    A loss that is not finite would recur, so a DivergenceError is left as it is.
    """
    try:
        yield
    except Exception as error:
        if directory.has_progress and not isinstance(error, DivergenceError) and "`resume=True`" not in str(error):
            error.add_note(
                f"What is finished remains in {directory.root}: remove the cause and continue with `resume=True`."
            )
        raise


@dataclass(frozen=True)
class RunDirectory(OutputDirectory):
    """The paths of everything that a run, its diagnosis and its report write."""

    @property
    def stages(self) -> Path:
        """The file with the finished stages and the seconds that each took."""
        return self.root / "stages.json"

    @property
    def conversions(self) -> Path:
        """The file that says how many pictures had to be converted, by data name."""
        return self.root / "conversions.json"

    @property
    def summary(self) -> Path:
        """The file with the measurements of the run."""
        return self.root / "summary.json"

    @property
    def diagnosis(self) -> Path:
        """The results of the diagnosis."""
        return self.root / "diagnosis.json"

    @property
    def samples(self) -> Path:
        """Thumbnails of some images, with each model's prediction."""
        return self.root / "samples"

    @property
    def maps(self) -> Path:
        """Class activation maps of some samples."""
        return self.root / "maps"

    @property
    def baselines(self) -> Path:
        """The accuracies of the networks that the diagnosis trained on the reference only."""
        return self.root / "diagnosis" / "baselines.csv"

    def trained(self, name: str) -> Path:
        """The directory of a network that the diagnosis trained."""
        return self.root / "diagnosis" / name.replace(" ", "-")

    def logits(self, model: str, set_name: str) -> Path:
        """A model's logits on a set."""
        return self.predictions / model / f"{set_name}.npz"


@dataclass(frozen=True)
class InterventionDirectory:
    """The paths of a diagnosis that changes the images: pasted windows or exchanged backgrounds."""

    root: Path

    @property
    def strong_edge(self) -> Path:
        """The study of pasted windows."""
        return self.root / "strong_edge.json"

    @property
    def measurements(self) -> Path:
        """Every measure of every image."""
        return self.root / "measurements.npz"

    @property
    def backgrounds(self) -> Path:
        """The study of exchanged backgrounds."""
        return self.root / "backgrounds.json"

    def network(self, name: str) -> Path:
        """The directory of a network that the study trained."""
        return self.root / "networks" / name

    def figure(self, name: str) -> Path:
        """A figure."""
        return self.root / "figures" / f"{name}.png"


@dataclass(frozen=True)
class MemberDirectory(OutputDirectory):
    """The paths of everything that one fine-tuning run of a study, or one of its soups, writes."""

    @property
    def record(self) -> Path:
        """The member's alpha path and chosen alpha; written last, so it marks a run that has ended."""
        return self.root / "member.json"

    @property
    def error(self) -> Path:
        """The traceback of a run that failed."""
        return self.root / "error.txt"

    @property
    def fine_tuned(self) -> Path:
        """The directory of the fine-tuned classifier or of the soup."""
        return self.classifier("fine_tuned")


@dataclass(frozen=True)
class StudyDirectory:
    """The paths of everything that a study of many fine-tuning runs writes."""

    root: Path

    @property
    def study(self) -> Path:
        """The file with the measurements of the study."""
        return self.root / "study.json"

    @property
    def table(self) -> Path:
        """The accuracy of every member at every alpha on every set."""
        return self.root / "study.csv"

    @property
    def figure(self) -> Path:
        """The figure of the study."""
        return self.root / "figures" / "study.png"

    def member(self, name: str) -> MemberDirectory:
        """The directory of one fine-tuning run."""
        return MemberDirectory(self.root / "members" / name)

    def soup(self, kind: str) -> MemberDirectory:
        """The directory of a soup, ``uniform`` or ``greedy``."""
        return MemberDirectory(self.root / "soups" / kind)


def scores_file(predictions: Path, alpha: float, set_name: str) -> Path:
    """The compact predictions of an alpha on a set, ``alpha-0.10/SET.npz``; two decimals where they are exact."""
    return predictions / alpha_folder(alpha) / f"{set_name}.npz"
