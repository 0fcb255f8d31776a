"""Raw folders -> lists of clips; one small module per corpus, found by the name of --corpus."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from corpora.manifest import Listing
from utils.errors import one_of

CORPORA = {
    "merc2020": "corpora.merc2020",
    "ravdess": "corpora.ravdess",
    "crema_d": "corpora.crema_d",
    "meld": "corpora.meld",
    "csv": "corpora.csv_folder",
    "demo": "corpora.demo",
}


def list_corpus(name: str, data_dir: Path) -> Listing:
    """Every clip of the corpus `name` under `data_dir`, usable or not."""
    one_of("corpus", name, CORPORA)
    return import_module(CORPORA[name]).list_clips(Path(data_dir))
