"""Raw folders -> lists of clips; one small module per corpus, found by the name of --corpus."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from corpora.manifest import Listing, keep_inside
from utils.errors import one_of

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
    return listing if follow_links else keep_inside(listing, Path(data_dir))
