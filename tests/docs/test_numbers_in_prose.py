"""No measured number stands in the text of a page outside of what is generated from committed results."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.prose import measured_numbers, prose

ROOT = Path(__file__).parents[2]
PAGES = [
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md"))),
]

# Phrases with numbers that are not results, and why they may stand in any page.
ANYWHERE = {
    "alpha 0.5": "the ensemble's usual coefficient",
    "CIFAR-10.1, 10.2": "names of data sets",
    "CC BY-SA 4.0": "a licence",
    "CC BY-NC-SA 4.0": "a licence",
    "OFL 1.1": "a licence",
    "Python 3.11": "a version",
    "ersion 0.1": "a version",
    "95 % bootstrap intervals": "the level of intervals",
    "one of the two": "a choice between two things",
}
# The same for single pages.
ALLOWED: dict[str, dict[str, str]] = {
    "README.md": {"The rule returns 0.5": "what a rule returns"},
    "CHANGELOG.md": {
        "## 0.2.0": "a version",
        "gives up 5 points or more": "a threshold of the verdict",
        "as differences to 0.5": "the ensemble's usual coefficient",
        "CIFAR-10 with 10.1, 10.2": "names of data sets",
    },
    "docs/choosing-alpha.md": {
        "take 0.5": "the ensemble's usual coefficient",
        "| 0.5 | nothing": "what a rule returns",
        "(0.01, that is one point)": "a default",
        "in steps of 0.05 (arXiv 2109.01903": "the paper's sweeps, cited",
    },
    "docs/data-sets.md": {
        "18,574 of 50,273": "the published size of a data set and of the part that is read",
        "WordNet 3.0": "a version",
        "300 pixels": "the size of a data set's pictures",
        "| 644, 215, 215 | 34 %": "the size of a data set and the share of one class",
        "| 1,550 | 29 %": "the size of a data set and the share of one class",
        "215 each, the test cells | 34 %": "the size of a data set and the share of one class",
        "has an accuracy of 66 to 71 %": "one minus the shares of the other class",
    },
    "docs/data-domains.md": {"arXiv 2007.01434": "a paper"},
    "docs/data-wilds.md": {"ersion 2.0": "a version", "ersion 1.1": "a version", "ersion 1.0": "a version"},
    "docs/decisions.md": {
        "two of four vehicles": "a property of a data set",
        "at exactly 0.5": "a rule about alpha",
        "Accelerate 1.15": "a version",
        "in merging (0.21)": "a version of peft",
        "more than 2 % of the pixels": "a rule by which drawings were chosen",
        "0.26 to 0.62 of the side": "a setting of the views",
        "0.45 to 0.95": "a setting of the views",
        "0.4 to 1.0": "a setting of the views",
        "more than 5 points": "a threshold of the verdict",
        "for 95 % of the images": "a threshold of the verdict",
        "in which 95 % of the images": "a threshold of the verdict",
        "at least 92 % with 10 clusters": "asserted by tests/evaluation/test_proportions.py",
        "half a kilobyte": "256 pixels of two bytes",
        "less than 80 %": "asserted by tests/evaluation/test_proportions.py",
        "534 and 768 channels is 0.54": "asserted by tests/diagnosis/test_cka.py",
    },
    "docs/diagnosis.md": {
        "most confident 50 and 80 %": "settings of a measure",
        "at most half a point on the reference": "a criterion that was fixed beforehand",
    },
    "docs/doctor.md": {
        "more than 20 times the images": "a threshold of a check",
        "at least 1 % of a test set": "a threshold of a check",
        "correlate by 0.98 or more": "a threshold of a check",
    },
    "docs/hyper-parameters.md": {"With WiSE-FT at 0.5": "the ensemble's usual coefficient"},
    "docs/merging.md": {"pieces of 8 MB": "a setting", "mergekit (0.1.5": "a version"},
    "docs/mixing.md": {
        "0.25 to 0.5 times the shorter side": "the definition of a method",
        "probability 0.5": "a setting",
        "label smoothing 0.1": "a setting",
    },
    "docs/results.md": {"0.7 M parameters": "the size of the shipped model"},
    "docs/strong-edge.md": {
        "trained eight times": "the design of the study",
        "34 of the 267": "the design of the study",
    },
}


@pytest.mark.parametrize("page", PAGES)
def test_measured_numbers_are_generated(page: str) -> None:
    allowed = (*ALLOWED.get(page, {}), *ANYWHERE)
    numbers = measured_numbers((ROOT / page).read_text(encoding="utf-8"), allowed)
    assert numbers == [], "let tools/results.py write these from a committed result, or remove them"


def test_every_allowed_phrase_is_still_needed() -> None:
    texts = {page: prose((ROOT / page).read_text(encoding="utf-8")) for page in PAGES}
    assert [(page, phrase) for page in ALLOWED for phrase in ALLOWED[page] if phrase not in texts[page]] == []
    assert [phrase for phrase in ANYWHERE if not any(phrase in text for text in texts.values())] == []


@pytest.mark.parametrize(
    "sentence",
    [
        "The ensemble reaches 71.3 on sketch.",
        "It gains 16 to 17 points.",
        "It holds in 14 of 15 comparisons, clearly so in ten of twelve.",
        "Training runs at 527 images a second.",
        "It is two to three times as fast and takes half a second.",
        "A merge takes 53 s and 323 MB.",
        "Calibration error falls to 27 %.",
    ],
)
def test_a_measured_number_in_prose_is_noticed(sentence: str) -> None:
    assert measured_numbers(f"# Page\n\n{sentence}\n")
    generated = f"<!-- table: python tools/results.py -->\n{sentence}\n<!-- end of table -->"
    assert measured_numbers(f"# Page\n\n{generated}\n\n```sh\n{sentence}\n```\n") == []
