"""Features that an earlier revision of the code made of a clip -> whether they still count.

The features of ordinary clips are the same in all revisions; those of odd ones changed with
1: sound is laid at its timestamps, and what an edit list hides is not there.
2: pixels that are not square, mirrored and still pictures, the track that players take, channels
that cancel each other out.
3: grey of 16 bits, entry points a few frames apart.
A record of an earlier revision is looked at once. That costs one reading of the sound, from 2 on of
the picture's packets; failures are tried again.
"""

from __future__ import annotations

from corpora.manifest import Clip
from extract import audio, faces
from extract.media import PICTURES, entry_before, is_deep_grey, is_plain, leads_to, scan_pictures

REVISION = 3  # raise it where only the features of odd clips change, and tell here which are odd


def is_current(clip: Clip, stages: dict, since: int | None, settings: dict) -> bool:
    """Whether this revision makes the same features of the clip as the code of revision `since`.

    `stages`: of its record; `settings`: of all stages.
    """
    if "video" in stages and not _shows_the_same(clip, stages, settings):
        return False
    if since == 2:
        return True
    if "video" in stages and not is_plain(clip.media):
        return False
    if "speech" in stages:
        sound = audio.read_mono(clip.media)
        first = sound.track == min(audio.sound_tracks(clip.media))
        return first and sound.channel == audio.MEAN and sound.gaps == 0
    return not scan_pictures(clip.media).hides  # the face is looked for in the whole picture


def _shows_the_same(clip: Clip, stages: dict, settings: dict) -> bool:
    """Whether revision 2 read the same pictures: it kept the low bits of deep grey, and trusted the
    entry point before the first crop, wherever that one led."""
    if clip.media.suffix.lower() in PICTURES:
        return not is_deep_grey(clip.media)
    pictures = scan_pictures(clip.media)
    spans = [clip.span or (pictures.start, pictures.end)]
    if "speech" in stages:  # the crops may be of this part alone
        facts = stages["speech"]["facts"]
        spans.append((facts["speech_start"], facts["speech_end"]))
    for start, end in spans:
        time = faces.sample_times(start, end, settings["video"]["face_fps"])[0]
        if not leads_to(clip.media, entry_before(clip.media, pictures, time), time):
            return False
    return True
