"""The run file: what it accepts, what it refuses and in which words, and that nothing is lost on the way to disk."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import shiftproof as sp
from shiftproof.runs.file import DEMO_FILE, MODEL_SETTINGS, SuiteFile

OWN = {
    "reference": {"train": "folder:a", "validation": "folder:b", "test": "folder:c"},
    "shifts": {"sketch": {"data": "folder:d", "kind": "natural"}},
}


def suite_section(**changes: Any) -> dict[str, Any]:
    return {"suite": {**OWN, **changes}}


def read(folder: Path, text: str, *overrides: str) -> sp.RunFile:
    file = folder / "run.yaml"
    file.write_text(text, encoding="utf-8")
    return sp.RunFile.read(file, overrides)


# What it accepts.


@pytest.mark.parametrize(("text", "value"), [("1e-5", 1e-5), ("1E-5", 1e-5), ("3e-3", 3e-3), ("1", 1.0)])
def test_a_rate_as_people_write_it_is_a_number(tmp_path: Path, text: str, value: float) -> None:
    lr = read(tmp_path, f"model: tiny\nfinetune: {{lr: {text}}}\npretrain: {{data: 'csv:x', lr: {text}}}").finetune.lr
    assert type(lr) is float
    assert lr == value
    assert read(tmp_path, "model: tiny", f"finetune.lr={text}").finetune.lr == value


def test_yaml_reads_such_a_rate_as_text() -> None:
    # The trap that the test above is about; were this to change, it would prove nothing.
    assert yaml.safe_load("lr: 1e-5") == {"lr": "1e-5"}


def test_the_demo_s_file_reads() -> None:
    file = sp.RunFile.read(DEMO_FILE)
    assert (file.model, file.suite, file.prompts, file.alpha_rule) == ("tiny", "emoji", "photo", "fixed")
    assert file.finetune.recipe == "end-to-end"
    assert file.pretrain is None


def test_the_shipped_model_s_file_reads() -> None:
    file = sp.RunFile.read(DEMO_FILE.with_name("shiftproof-tiny.yaml"))
    assert file.model == "open_clip:shiftproof-tiny"
    assert file.pretrain is not None
    assert (file.pretrain.data, file.pretrain.precision) == ("emoji-captions", "bfloat16")
    # The shipped model's card says that it was made by this very run file.
    card = json.loads(DEMO_FILE.with_name("shiftproof-tiny.card.json").read_text(encoding="utf-8"))
    asked_for = {**dataclasses.asdict(file.pretrain), "seed": file.seed}
    reported = {**card["settings"], "data": card["data"], "seed": card["seed"]}
    assert reported == {key: value for key, value in asked_for.items() if key in reported}
    # Settings that came after it stand as they were then.
    fresh = dataclasses.asdict(sp.PretrainSettings())
    assert all(asked_for[key] == fresh[key] for key in asked_for.keys() - reported.keys())


def test_a_full_file_is_read_as_it_stands(tmp_path: Path) -> None:
    settings = read(
        tmp_path,
        """
model: open_clip:ViT-B-32/openai
suite:
  name: fruit
  reference: {name: photos, train: folder:a, test: "csv:c.csv"}
  shifts:
    sketch: {data: folder:d}
    noise: {data: "corrupted:noise:3:folder:c", kind: synthetic, partial: true}
prompts: ["a sketch of a {}.", "a {c}."]
finetune: {recipe: head-only, epochs: 3, lr: 1e-3, batch_size: 64, crop_scale: [0.5, 1], label_smoothing: 0.1}
alphas: [0.2, 0.5]
alpha_rule: tolerance
alpha_tolerance: 0.02
seed: 5
device: cpu
""",
    )
    assert isinstance(settings.suite, SuiteFile)
    assert settings.suite.name == "fruit"
    assert settings.suite.reference.model_dump() == {
        "name": "photos",
        "train": f"folder:{tmp_path / 'a'}",
        "validation": None,
        "test": f"csv:{tmp_path / 'c.csv'}",
    }
    assert settings.suite.shifts["sketch"].model_dump() == {
        "data": f"folder:{tmp_path / 'd'}",
        "kind": "natural",
        "partial": False,
    }
    assert settings.suite.shifts["noise"].model_dump() == {
        "data": f"corrupted:noise:3:folder:{tmp_path / 'c'}",
        "kind": "synthetic",
        "partial": True,
    }
    assert settings.prompts == ["a sketch of a {}.", "a {c}."]
    expected = sp.FinetuneSettings(
        recipe="head-only", epochs=3, lr=1e-3, batch_size=64, crop_scale=(0.5, 1.0), label_smoothing=0.1
    )
    assert settings.finetune == expected
    assert (settings.alphas, settings.alpha_rule, settings.alpha_tolerance) == ([0.2, 0.5], "tolerance", 0.02)
    assert (settings.seed, settings.device) == (5, "cpu")


def test_an_empty_mapping_is_the_tiny_model_on_the_emoji() -> None:
    file = sp.RunFile.resolve({})
    assert (file.model, file.suite, file.alphas, file.seed) == ("tiny", "emoji", 11, 0)


def test_silent_settings_depend_on_the_model_and_a_word_of_one_s_own_wins() -> None:
    tuned = MODEL_SETTINGS["tiny"]
    assert sp.RunFile.resolve({}).finetune == sp.FinetuneSettings(**tuned)
    assert sp.RunFile.resolve({"finetune": {"lr": 7}}).finetune == sp.FinetuneSettings(**{**tuned, "lr": 7.0})
    assert sp.RunFile.resolve({}, ["finetune.epochs=2"]).finetune == sp.FinetuneSettings(**{**tuned, "epochs": 2})
    other = sp.RunFile.resolve({"model": "open_clip:ViT-B-32/openai"})
    assert other.finetune == sp.FinetuneSettings()
    assert sp.RunFile.resolve({}, ["model=open_clip:RN50"]).finetune == sp.FinetuneSettings()


def test_what_was_asked_is_neither_changed_nor_held_on_to() -> None:
    settings: dict[str, Any] = {"finetune": {"lr": 1.0}, **suite_section()}
    sp.RunFile.resolve(settings, ["finetune.lr=2", "suite.shifts.sketch.kind=synthetic", "seed=3"])
    assert settings == {"finetune": {"lr": 1.0}, **suite_section()}
    assert OWN["shifts"]["sketch"]["kind"] == "natural"


# Unknown keys, at every depth.


@pytest.mark.parametrize(
    ("settings", "key", "offered"),
    [
        ({"modell": "tiny"}, "modell", "model"),
        ({"alpha-rule": "fixed"}, "alpha-rule", "alpha_rule"),
        ({"finetune": {"epoch": 1}}, "finetune.epoch", "epochs"),
        ({"finetune": {"batchsize": 1}}, "finetune.batchsize", "batch_size"),
        ({"pretrain": {"data": "csv:x", "step": 3}}, "pretrain.step", "steps"),
        (suite_section(shfts={}), "suite.shfts", "shifts"),
        (suite_section(reference={**OWN["reference"], "vaildation": "x"}), "suite.reference.vaildation", "validation"),
        (suite_section(shifts={"sketch": {"data": "folder:d", "knd": "natural"}}), "suite.shifts.sketch.knd", "kind"),
        # Names that pydantic has for its own parts are a user's shift names as well.
        (suite_section(shifts={"str": {"data": "folder:d", "patrial": True}}), "suite.shifts.str.patrial", "partial"),
        (suite_section(shifts={"int": {"data": "folder:d", "kinds": "natural"}}), "suite.shifts.int.kinds", "kind"),
    ],
)
def test_an_unknown_key_is_named_in_full_and_the_nearest_offered(
    settings: dict[str, Any], key: str, offered: str
) -> None:
    with pytest.raises(sp.InputError) as caught:
        sp.RunFile.resolve(settings)
    assert str(caught.value) == f"unknown run-file key {key!r}. Did you mean {offered!r}?"


def test_a_key_like_no_other_lists_the_known_ones() -> None:
    with pytest.raises(sp.InputError) as caught:
        sp.RunFile.resolve({"finetune": {"zzzzzzzz": 0.9}})
    message = str(caught.value)
    assert "'finetune.zzzzzzzz'" in message
    assert "Known: 'precision', 'accumulate'" in message
    assert "__" not in message


def test_every_mistake_is_told_at_once() -> None:
    with pytest.raises(sp.InputError) as caught:
        sp.RunFile.resolve({"sed": 1, "finetune": {"epoch": 1}, "device": 3})
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert [sum(key in line for line in lines) for key in ("'sed'", "'finetune.epoch'", "'device'")] == [1, 1, 1]


@pytest.mark.parametrize("override", ["finetune.epoch=3", "suite.shifts.sketch.knd=natural", "sede=3"])
def test_an_unknown_key_on_the_command_line_is_answered_alike(override: str) -> None:
    with pytest.raises(sp.InputError, match=rf"unknown run-file key '{override.partition('=')[0]}'\. Did you mean"):
        sp.RunFile.resolve(suite_section(), [override])


# Bad values.


@pytest.mark.parametrize(
    ("settings", "expected_message"),
    [
        ({"finetune": {"lr": "fast"}}, r"'finetune\.lr' is 'fast'.*number"),
        ({"finetune": {"lr": -1}}, r"finetune\.lr is -1"),
        ({"finetune": {"lr": "nan"}}, r"finetune\.lr is nan"),
        ({"finetune": {"epochs": 0}}, r"finetune\.epochs is 0.*at least 1"),
        ({"finetune": {"epochs": 1.5}}, r"'finetune\.epochs' is 1\.5.*whole number"),
        ({"finetune": {"crop_scale": [0.9, 0.5]}}, r"finetune\.crop_scale is \(0\.9, 0\.5\)"),
        ({"finetune": {"crop_scale": [0.9]}}, r"'finetune\.crop_scale' lacks its value number 2"),
        ({"finetune": {"crop_scale": 1}}, r"'finetune\.crop_scale' is 1; it must be two numbers in brackets"),
        ({"finetune": {"mixing": {"method": "cutmix", "edge": "x"}}}, r"a value of the wrong type\. Numbers"),
        ({"finetune": {"recipe": "head_only"}}, r"finetune\.recipe 'head_only'.*'head-only'"),
        ({"finetune": None}, r"'finetune' is empty.*section"),
        ({"finetune": 3}, r"'finetune' is 3.*section"),
        ({"pretrain": {}}, r"'pretrain\.data' is missing"),
        ({"pretrain": {"data": "csv:x", "steps": 0}}, r"pretrain\.steps is 0.*at least 1"),
        ({"pretrain": {"data": "csv:x", "precision": "bfloat8"}}, r"pretrain\.precision 'bfloat8'.*'bfloat16'"),
        ({"seed": -1}, r"'seed' is -1"),
        ({"seed": "one"}, r"'seed' is 'one'.*whole number"),
        ({"model": None}, r"'model' is empty.*remove the key"),
        ({"alphas": 1}, r"`alphas` is 1.*at least two"),
        ({"alphas": []}, r"`alphas` is empty"),
        ({"alphas": [0.5, 1.5]}, r"alpha is 1\.5.*between 0 and 1"),
        ({"alphas": "many"}, r"'alphas' is 'many'; it must be a whole number, such as 10, or a list"),
        ({"alphas": {"low": 0}}, r"'alphas' is {'low': 0}; it must be a list in brackets"),
        ({"random_weights": "maybe"}, r"'random_weights' is 'maybe'; it must be true or false\."),
        ({"limit": 0}, r"'limit' is 0; it must be 1 or more\."),
        ({"model": 3}, r"'model' is 3; it must be a text\. Put it in quotation marks"),
        ({"batch_norm": "averagd"}, r"'averagd'.*Did you mean 'averaged'\?"),
        ({"alpha_rule": "oracle"}, r"'alpha_rule' is 'oracle'.*'fixed', 'reference' or 'tolerance'"),
        ({"alpha_tolerance": 2}, r"'alpha_tolerance' is 2"),
        ({"prompts": "foto"}, r"prompt set 'foto'.*'photo'"),
        ({"prompts": ["a photo"]}, r"template 'a photo'"),
        ({"prompts": []}, r"prompts. is empty"),
        (suite_section(reference={"train": "folder:a"}), r"'suite\.reference\.test' is missing"),
        (suite_section(reference="folder:a"), r"'suite\.reference' is 'folder:a'.*section"),
        (suite_section(shifts={"sketch": "folder:d"}), r"'suite\.shifts\.sketch' is 'folder:d'.*section"),
        (suite_section(shifts={"sketch": {"kind": "natural"}}), r"'suite\.shifts\.sketch\.data' is missing"),
        (
            suite_section(shifts={"sketch": {"data": "folder:d", "kind": "real"}}),
            r"sketch\.kind' is 'real'.*'synthetic'",
        ),
    ],
)
def test_a_bad_value_is_told_once_with_its_key_and_its_rule(settings: dict[str, Any], expected_message: str) -> None:
    with pytest.raises(sp.InputError, match=expected_message) as caught:
        sp.RunFile.resolve(settings)
    message = str(caught.value)
    assert len(message.splitlines()) == 1  # alphas may be a number or a list, and one line says so
    words = (
        "SuiteFile",
        "suitefile",
        "pydantic",
        "finetunesettings",
        "loc",
        "nput should",
        "unable to parse",
        "valid ",
    )
    assert not any(word in message for word in words)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("finetune: {lr: 1", "not valid YAML"),
        ("- model\n- suite", "must consist of keys and values"),
        ("", "must consist of keys and values"),
        ("tiny", "must consist of keys and values"),
    ],
)
def test_a_file_that_is_no_run_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(sp.InputError, match=message) as caught:
        read(tmp_path, text)
    assert str(tmp_path / "run.yaml") in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    for path, message in ((tmp_path / "absent.yaml", "does not exist"), (tmp_path, "is a directory; a run file")):
        with pytest.raises(sp.InputError, match=message) as caught:
            sp.RunFile.read(path)
        assert str(path) in str(caught.value)


def test_a_file_in_another_encoding_is_named(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_bytes("prompts: 'ein Bild von {} für mich'".encode("latin-1"))
    with pytest.raises(sp.InputError, match=r"run\.yaml is not valid YAML"):
        sp.RunFile.read(tmp_path / "run.yaml")


# Overrides.


def test_overrides_reach_every_depth_and_kind_of_value(tmp_path: Path) -> None:
    settings = read(
        tmp_path,
        yaml.safe_dump({"model": "tiny", **suite_section()}),
        "finetune.lr=1e-5",
        "finetune.recipe=head-only",
        "finetune.crop_scale=[0.5, 1]",
        "alphas=[0.3,0.5]",
        "prompts=['a {}.', 'the {}.']",
        "suite.name=fruit",
        "suite.shifts.sketch.kind=synthetic",
        "suite.shifts.painting.data=folder:e",
        "suite.reference.validation=null",
        "pretrain.data=csv:pairs.csv",
        "seed=4",
    )
    assert (settings.finetune.lr, settings.finetune.recipe, settings.finetune.crop_scale) == (
        1e-5,
        "head-only",
        (0.5, 1.0),
    )
    assert (settings.alphas, settings.prompts, settings.seed) == ([0.3, 0.5], ["a {}.", "the {}."], 4)
    assert isinstance(settings.suite, SuiteFile)
    assert (settings.suite.name, settings.suite.reference.validation) == ("fruit", None)
    # Paths in the file are relative to its folder, and those of overrides to the working directory.
    reference = settings.suite.reference
    assert (reference.train, reference.test) == (f"folder:{tmp_path / 'a'}", f"folder:{tmp_path / 'c'}")
    assert {name: (entry.data, entry.kind) for name, entry in settings.suite.shifts.items()} == {
        "sketch": (f"folder:{tmp_path / 'd'}", "synthetic"),
        "painting": ("folder:e", "natural"),
    }
    assert settings.pretrain is not None
    assert settings.pretrain.data == "csv:pairs.csv"


def test_of_two_overrides_the_later_wins() -> None:
    assert sp.RunFile.resolve({"seed": 1}, ["seed=2", "seed=3"]).seed == 3


def test_a_value_may_hold_an_equals_sign() -> None:
    assert sp.RunFile.resolve({}, ["prompts=a {} = a thing"]).prompts == "a {} = a thing"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("finetune.lr", "must look like"),
        ("=3", "must look like"),
        ("alphas=[0.1", "not valid YAML"),
        ("suite.name=x", "suite is 'emoji', not a section"),
        ("seed.x=1", "seed is 0, not a section"),
        ("seed=", "'seed' is empty"),
    ],
)
def test_an_override_that_makes_no_sense_is_shown(override: str, message: str) -> None:
    with pytest.raises(sp.InputError, match=message):
        sp.RunFile.resolve({"suite": "emoji", "seed": 0}, [override])


# To disk and back.

NAMES = st.from_regex(r"[a-z][a-z0-9_.-]{0,8}", fullmatch=True)
FINETUNE = st.fixed_dictionaries(
    {},
    optional={
        "recipe": st.sampled_from(["end-to-end", "head-only"]),
        "epochs": st.integers(1, 99),
        "lr": st.floats(0, 1),
        "crop_scale": st.lists(st.floats(0.01, 1), min_size=2, max_size=2).map(sorted),
        "label_smoothing": st.floats(0, 1),
        "ema_decay": st.floats(0, 0.99),
    },
)
SHIFT = st.fixed_dictionaries(
    {"data": NAMES.map("folder:{}".format)},
    optional={"kind": st.sampled_from(["natural", "synthetic"]), "partial": st.booleans()},
)
SUITE = st.fixed_dictionaries(
    {
        "reference": st.fixed_dictionaries(
            {"train": NAMES, "test": NAMES}, optional={"validation": NAMES, "name": NAMES}
        )
    },
    optional={"name": NAMES, "shifts": st.dictionaries(NAMES, SHIFT, max_size=3)},
)
PRETRAIN = st.fixed_dictionaries({"data": NAMES}, optional={"steps": st.integers(1, 9), "lr": st.floats(0, 1)})
ASKED = st.fixed_dictionaries(
    {},
    optional={
        "model": st.sampled_from(["tiny", "open_clip:ViT-B-32/openai", "local-dir:a b"]),
        "suite": st.just("emoji") | SUITE,
        "prompts": st.sampled_from(["photo", "a {}: 'ü'", ["a {}.", "{c} # no comment"]]),
        "finetune": FINETUNE,
        "alphas": st.integers(2, 30) | st.lists(st.floats(0, 1), min_size=1, max_size=4),
        "alpha_rule": st.sampled_from(["fixed", "reference", "tolerance"]),
        "alpha_tolerance": st.floats(0, 1),
        "seed": st.integers(0, 2**40),
        "device": st.sampled_from(["auto", "cpu"]),
        "pretrain": st.fixed_dictionaries(
            {"data": NAMES}, optional={"steps": st.integers(1, 9), "lr": st.floats(0, 1)}
        ),
    },
)


@pytest.mark.slow
@given(ASKED)
def test_what_is_written_reads_back_equal(tmp_path_factory: pytest.TempPathFactory, settings: dict[str, Any]) -> None:
    resolved = sp.RunFile.resolve(settings)
    folder = tmp_path_factory.mktemp("round", numbered=True)
    assert read(folder, resolved.to_yaml() + "versions: {}\n") == resolved
    # Also where a run directory has noted with which versions it was made.
    assert read(folder, resolved.to_yaml() + yaml.safe_dump({"versions": {"torch": "2"}})) == resolved


def test_what_is_written_is_complete() -> None:
    written = yaml.safe_load(sp.RunFile.resolve(suite_section()).to_yaml())
    assert set(written) == {
        "model", "random_weights", "suite", "prompts", "finetune", "alphas", "alpha_rule", "alpha_tolerance", "seed",
        "device", "report_to", "head_cache", "batch_norm", "evaluation", "on_bad_image",
    }  # fmt: skip
    # Not what the file said, but what it came to mean.
    for key, value in MODEL_SETTINGS["tiny"].items():
        assert written["finetune"][key] == value
    assert written["finetune"]["weight_decay"] == sp.FinetuneSettings().weight_decay
    assert written["suite"]["shifts"]["sketch"] == {"data": "folder:d", "kind": "natural", "partial": False}


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ("finetune.accumulate=4", True),
        ("finetune.checkpoint_every=7", True),
        ("finetune.gradient_checkpointing=true", True),
        ("image_cache=elsewhere", True),
        ("evaluation.jpeg_draft=true", False),
        ("pretrain.checkpoints_kept=9", True),
        ("device=cpu", True),
        ("report_to=tensorboard", True),
        ("finetune.precision=bfloat16", False),
        ("finetune.batch_size=7", False),
        ("pretrain.steps=7", False),
        ("seed=1", False),
        ("limit=9", False),
    ],
)
def test_runs_are_the_same_whatever_of_the_machine_they_use(change: str, same: bool) -> None:
    settings = {"pretrain": {"data": "emoji"}}
    one, other = sp.RunFile.resolve(settings), sp.RunFile.resolve(settings, [change])
    assert one != other
    assert one.gives_the_same_results(other) == other.gives_the_same_results(one) == same


def test_a_list_on_the_command_line_is_separated_by_commas() -> None:
    assert sp.RunFile.resolve({}, ["alphas=0.3,0.5"]).alphas == [0.3, 0.5]
    assert sp.RunFile.resolve({}, ["alphas=[0.3, 0.5]"]).alphas == [0.3, 0.5]


def test_a_value_may_name_the_model(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("alphas: 3\n", encoding="utf-8")
    assert sp.RunFile.read(tmp_path / "run.yaml", values={"model": "tiny"}).model == "tiny"


@pytest.mark.parametrize("crop_scale", [(0.5,), (0.5, 0.8, 1.0)])
def test_a_range_of_crops_has_two_ends(crop_scale: Any) -> None:
    with pytest.raises(sp.InputError, match="must be two rising shares"):
        sp.FinetuneSettings(crop_scale=crop_scale)
