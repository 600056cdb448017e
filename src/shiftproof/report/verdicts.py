"""The verdict on a run in words: what fine-tuning and the ensemble changed, judged by paired intervals."""

from __future__ import annotations

from shiftproof.records.comparisons import Measured
from shiftproof.records.diagnosis import DiagnosisRecord
from shiftproof.records.runs import MODELS, RunRecord
from shiftproof.report.comparisons import START, headline_name, headline_shifts, names_of
from shiftproof.report.guessing import guessing_of, guessing_sentences
from shiftproof.report.tables import per_cent, signed_points

# The ensemble keeps an accuracy if its loss is not clear, and if the interval excludes a loss larger than this.
_LARGEST_LOSS = 0.05
# A clear loss of at least this much comes with advice.
_MUCH = 0.05


def verdict(run: RunRecord, diagnosis: DiagnosisRecord | None = None) -> str:
    """Describes the result of a run in a few sentences with numbers.

    Models that guess come first. The next sentence says whether the ensemble keeps the fine-tuned model's accuracy on
    the reference, and the last what fine-tuning and the ensemble did to the mean of the natural shifts (of all shifts,
    if none is natural). All models are tested on the same images, so a difference is judged by its paired interval in
    the ``diagnosis``, which resamples drawings or groups as wholes. Without a diagnosis, differences are given without
    a judgement.
    """
    shifts, sentences = headline_shifts(run), _guesses(run)
    compared = [("fine_tuned", "zero_shot", shifts)] if shifts else []
    if run.alpha in (0.0, 1.0):
        sentences += [_end_chosen(run), f"{_fine_tuning(run, diagnosis)}."]
    else:
        sentences += [_on_reference(run, diagnosis), _on_shifts(run, diagnosis)]
        compared.append(("ensemble", "fine_tuned", (run.reference,)))
    if any(_difference(run, diagnosis, *models_and_sets).interval for models_and_sets in compared):
        sentences.append(f"Ranges after a difference are its paired {100 * run.interval_level:g} % interval.")
    return " ".join(sentences)


def _guesses(run: RunRecord) -> list[str]:
    """The sentences about models that guess, with what to try."""
    sets = (run.reference, *headline_shifts(run))
    sentences = []
    for model in MODELS:
        sentences += guessing_sentences(_called(run, model), (run.models[model][name] for name in sets))
        if model in _REMEDIES and _guesses_on_reference(run, model):
            sentences.append(_REMEDIES[model])
    if all(_guesses_on_reference(run, model) for model in MODELS):
        sentences.append("No model has learned the task, so this run says nothing about robustness.")
    return sentences


def _called(run: RunRecord, model: str, zero_shot: str = "zero-shot") -> str:
    """What a sentence calls a model; ``zero_shot`` is what it calls a start that is zero-shot."""
    name = names_of(run)[model]
    return f"the {name}" if name == START else zero_shot if model == "zero_shot" else name


_REMEDIES = {
    "zero_shot": "A start that guesses has no robustness to keep: use another model or other prompts.",
    "fine_tuned": "Fine-tuning did not learn the task: check the labels, and raise `finetune.lr` or `finetune.epochs`.",
}


def _guesses_on_reference(run: RunRecord, model: str) -> bool:
    return guessing_of(run.models[model][run.reference]) is not None


def _end_chosen(run: RunRecord) -> str:
    end = "the fine-tuned model" if run.alpha else _called(run, "zero_shot", "the zero-shot model")
    return (
        f"The rule “{run.alpha_rule}” gives alpha {run.alpha:g}, so the ensemble is {end} itself."
        f" On the reference its accuracy is {per_cent(run.models['ensemble'][run.reference].accuracy)} %."
    )


def _on_reference(run: RunRecord, diagnosis: DiagnosisRecord | None) -> str:
    zero_shot, tuned, ensemble = (_accuracy(run, model, (run.reference,)) for model in MODELS)
    change = _difference(run, diagnosis, "ensemble", "fine_tuned", (run.reference,))
    learned = not _guesses_on_reference(run, "fine_tuned")
    text = (
        f"On the reference the ensemble (alpha {run.alpha:g}) has an accuracy of {per_cent(ensemble)} % and the "
        f"fine-tuned model one of {per_cent(tuned)} %, {_finding(change, learned)}; "
        f"{_called(run, 'zero_shot')} has {per_cent(zero_shot)} %."
    )
    return f"{text} {_advice(run)}" if learned and is_clear(change) and change.value <= -_MUCH else text


def _finding(change: Measured, learned: bool) -> str:
    """What the ensemble does to the accuracy on the reference, where fine-tuning learned something to keep or not."""
    if change.interval is None or not learned:
        return f"a difference of {_points(change)}"
    if is_clear(change):
        what = "gains" if change.value > 0 else "gives up"
        return f"so it {what} {per_cent(abs(change.value))} points ({_range(change)})"
    if change.interval[0] >= -_LARGEST_LOSS:
        return f"so it loses at most {100 * _LARGEST_LOSS:g} points of the fine-tuned accuracy ({_points(change)})"
    return f"a difference that is uncertain ({_points(change)})"


def _advice(run: RunRecord) -> str:
    """What to try where the ensemble gives up much of the fine-tuned accuracy."""
    options = [f"an alpha above {run.alpha:g}"]
    if run.alpha_rule != "reference":
        options.append("`alpha_rule: reference`, which chooses alpha on the validation split")
    if _guesses_on_reference(run, "zero_shot"):
        options.append("a better start or other prompts")
    return f"That is much to give up; try {', or '.join(options)}."


def _on_shifts(run: RunRecord, diagnosis: DiagnosisRecord | None) -> str:
    shifts = headline_shifts(run)
    if not shifts:
        return f"{_NO_SHIFT}."
    to_tuned = _difference(run, diagnosis, "ensemble", "fine_tuned", shifts)
    to_start = _difference(run, diagnosis, "ensemble", "zero_shot", shifts)
    if to_tuned.interval is None:
        lead = "the ensemble has"
    elif not is_clear(to_tuned):
        lead = "the ensemble shows no clear change: it has"
    else:
        lead = "the ensemble reaches" if to_tuned.value > 0 else "the ensemble did not help here: it has"
    return (
        f"{_fine_tuning(run, diagnosis)}; {lead} {per_cent(_accuracy(run, 'ensemble', shifts))} %, "
        f"{_relation(to_tuned, 'fine-tuned')} and {_relation(to_start, _called(run, 'zero_shot'))}."
    )


_NO_SHIFT = "No shift was measured, so this run says nothing about robustness"


def _fine_tuning(run: RunRecord, diagnosis: DiagnosisRecord | None) -> str:
    """Says what fine-tuning did to the accuracy on the headline shifts, without a full stop."""
    shifts = headline_shifts(run)
    if not shifts:
        return _NO_SHIFT
    change, where = _difference(run, diagnosis, "fine_tuned", "zero_shot", shifts), f"the {headline_name(run)}"
    start, tuned = (_accuracy(run, model, shifts) for model in ("zero_shot", "fine_tuned"))
    ends = f"from {per_cent(start)} % to {per_cent(tuned)} %"
    if change.interval is None:
        return f"Fine-tuning alone changed the accuracy on {where} {ends} ({_points(change)})"
    if not is_clear(change):
        return f"Fine-tuning alone did not clearly change the accuracy on {where}: {ends} ({_points(change)})"
    if change.value > 0:
        return f"Fine-tuning alone raised the accuracy on {where} {ends} ({_points(change)})"
    return f"On {where} fine-tuning alone cost {per_cent(-change.value)} points ({_range(change)}; {ends})"


def _relation(difference: Measured, name: str) -> str:
    gap = per_cent(abs(difference.value))
    side = "above" if difference.value > 0 else "below"
    text = f"level with {name}" if gap == "0.0" else f"{gap} points {side} {name}"
    if difference.interval is None:
        return text
    uncertain = "" if is_clear(difference) or gap == "0.0" else ", which is uncertain"
    return f"{text}{uncertain} ({_range(difference)})"


def is_clear(difference: Measured) -> bool:
    """Whether the interval of a difference excludes 0; False without an interval.

    >>> is_clear(Measured(0.1, (0.02, 0.18))), is_clear(Measured(0.1, (-0.02, 0.22)))
    (True, False)
    """
    return difference.interval is not None and not difference.interval[0] <= 0 <= difference.interval[1]


def _difference(
    run: RunRecord, diagnosis: DiagnosisRecord | None, first: str, second: str, sets: tuple[str, ...]
) -> Measured:
    """The mean accuracy of one model over some sets minus another's, with the paired interval if it was measured."""
    record = None if diagnosis is None else diagnosis.difference(first, second, *sets)
    interval = None if record is None else record.difference.interval
    return Measured(round(_accuracy(run, first, sets) - _accuracy(run, second, sets), 9), interval)


def _accuracy(run: RunRecord, model: str, sets: tuple[str, ...]) -> float:
    return sum(run.models[model][name].accuracy for name in sets) / len(sets)


def _points(difference: Measured) -> str:
    """A difference in points, with its interval if there is one."""
    points = f"{signed_points(difference.value)} points"
    return points if difference.interval is None else f"{points}, {_range(difference)}"


def _range(difference: Measured) -> str:
    low, high = map(signed_points, difference.interval or (difference.value, difference.value))
    return f"{low} to {high}"
