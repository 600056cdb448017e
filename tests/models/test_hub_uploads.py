"""Exported directories are uploaded through huggingface_hub, here to a hub on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
from support.hub import Hub, running_hub

import shiftproof as sp
from shiftproof.models.export.hub import push_to_hub


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that huggingface_hub takes for the real one."""
    with running_hub() as hub:
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.address)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", hub.token)
        yield hub


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    folder = tmp_path / "exported"
    folder.mkdir()
    (folder / "README.md").write_text("---\nlibrary_name: timm\n---\n\n# exported\n", encoding="utf-8")
    (folder / "config.json").write_text("{}", encoding="utf-8")
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 40)
    return folder


@pytest.mark.parametrize("private", [False, True])
def test_all_files_arrive(hub: Hub, exported: Path, private: bool) -> None:
    address = push_to_hub(exported, "someone/fruit", private=private)
    assert address == f"{hub.address}/someone/fruit/commit/{'0' * 40}"
    assert hub.files["someone/fruit"] == {path.name: path.read_bytes() for path in exported.iterdir()}
    assert hub.private == ({"someone/fruit"} if private else set())
    assert hub.messages == ["Add a classifier and its card"]


@pytest.mark.parametrize("name", ["fruit", "a/b/c", "someone/fr uit", "someone/-fruit"])
def test_a_name_of_no_repository_is_refused(hub: Hub, exported: Path, name: str) -> None:
    with pytest.raises(sp.InputError, match="ORG/NAME|no name of a repository"):
        push_to_hub(exported, name)
    assert hub.files == {}


def test_a_wrong_token_says_how_to_log_in(hub: Hub, exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_another")
    with pytest.raises(sp.InputError, match=r"(?s)cannot be uploaded.*hf auth login.*can be uploaded later"):
        push_to_hub(exported, "someone/fruit")


def test_a_hub_that_cannot_be_reached_is_named(hub: Hub, exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(sp.InputError, match=r"(?s)cannot be uploaded.*Check the name, the network"):
        push_to_hub(exported, "someone/fruit")


def test_without_a_network_the_directory_remains(exported: Path) -> None:
    with pytest.raises(sp.InputError, match=r"(?s)cannot be uploaded to 'someone/fruit'.*Check the name, the network"):
        push_to_hub(exported, "someone/fruit")
    assert (exported / "model.safetensors").is_file()
