"""The data formats by the name that precedes the colon in ``folder:PATH``; a new format is added here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from shiftproof.data.formats.addresses import Address, parse_address
from shiftproof.data.formats.csv import csv_pictures, read_csv
from shiftproof.data.formats.entries import Listing, NamedPicture
from shiftproof.data.formats.folder import folder_pictures, read_folder
from shiftproof.data.formats.hf import HF_OPTIONS, hf_pictures, names_file, read_hf
from shiftproof.data.formats.wds import WDS_OPTIONS, read_wds, wds_pictures
from shiftproof.storage import expanded


@dataclass(frozen=True)
class Format:
    """How the data of one format are read.

    ``read`` and ``pictures`` take what follows the colon and the split that is wanted where there are several: ``read``
    lists the labelled images, ``pictures`` yields all images one by one, without their labels. ``options`` may follow
    the place, as in ``,split=test``. ``is_path`` says whether a place is a path rather than a name on a hub.
    """

    read: Callable[[str, str], Listing]
    pictures: Callable[[str, str], Iterator[NamedPicture]]
    options: tuple[str, ...] = ()
    is_path: Callable[[str], bool] = lambda place: True

    def address(self, text: str) -> Address:
        """The parts of what follows the colon."""
        return parse_address(text, self.options)


FORMATS: Mapping[str, Format] = MappingProxyType(
    {
        "folder": Format(
            lambda place, split: Listing(read_folder(expanded(place))),
            lambda place, split: folder_pictures(expanded(place)),
        ),
        "csv": Format(
            lambda place, split: Listing(read_csv(expanded(place))),
            lambda place, split: csv_pictures(expanded(place)),
        ),
        "wds": Format(read_wds, wds_pictures, WDS_OPTIONS),
        "hf": Format(read_hf, hf_pictures, HF_OPTIONS, names_file),
    }
)
