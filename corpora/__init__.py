"""Raw folders -> lists of clips; one small module per corpus, found by the name of --corpus."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from pathlib import Path

from corpora.manifest import Listing, keep_inside
from utils.errors import UsageError, one_of
from utils.files import is_file

CORPORA = {
    "merc2020": "corpora.merc2020",
    "ravdess": "corpora.ravdess",
    "crema_d": "corpora.crema_d",
    "goemotions": "corpora.goemotions",
    "images": "corpora.images",
    "javanese": "corpora.javanese",
    "ased": "corpora.ased",
    "meld": "corpora.meld",
    "csv": "corpora.csv_folder",
    "demo": "corpora.demo",
}


def list_corpus(name: str, data_dir: Path, follow_links: bool = False) -> Listing:
    """Every clip of the corpus `name` under `data_dir`, usable or not.

    A clip whose path leads out of the folder, by a link or by `..`, is not, unless it may.
    """
    one_of("corpus", name, CORPORA)
    listing = import_module(CORPORA[name]).list_clips(Path(data_dir))
    for sheet in listing.sheets:  # told before hours of work, and not behind them
        if not is_file(sheet):
            raise UsageError(f"cannot read the submission sheet {sheet}: no regular file")
    if not follow_links:
        listing = keep_inside(listing, Path(data_dir))
    for number, each in enumerate(listing.failures):
        if place := listing.places.get((each.clip_id, each.media)):
            listing.failures[number] = replace(each, reason=f"{each.reason} ({place})")
    return listing
