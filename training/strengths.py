"""The flags that say how strong the changes of training/augment.py are; 0 turns one off."""

from __future__ import annotations

from training.settings import SHARE, Setting
from utils.config import ranged

SPEECH_STRENGTHS = {
    "speech_speed": Setting(0.0, ranged(float, 0, 0.5), "most faster or slower", "augmentation"),
    "speech_pitch": Setting(0.0, ranged(float, 0, 40), "most mel bins up or down", "augmentation"),
    "speech_contrast": Setting(
        0.3, SHARE, "brightness and contrast of the log-mel", "augmentation"
    ),
    "time_warp": Setting(
        0.2, ranged(float, 0, 0.45), "SpecAugment: share of the length", "augmentation"
    ),
    "frequency_masks": Setting(3, ranged(int, 0), "SpecAugment", "augmentation"),
    "frequency_width": Setting(27, ranged(int, 0), "of one, in mel bins", "augmentation"),
    "time_masks": Setting(4, ranged(int, 0), "SpecAugment", "augmentation"),
    "time_width": Setting(0.125, SHARE, "of one, share of the length", "augmentation"),
}
FACE_STRENGTHS = {
    "face_flip": Setting(0.5, SHARE, "share of the clips mirrored", "augmentation"),
    "face_contrast": Setting(0.5, SHARE, "brightness and contrast", "augmentation"),
    "face_rotation": Setting(30.0, ranged(float, 0, 180), "degrees", "augmentation"),
    "face_zoom": Setting(0.0, ranged(float, 0, 0.5), "most of size and place", "augmentation"),
}
