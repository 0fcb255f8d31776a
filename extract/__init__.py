"""One clip -> arrays: media.py opens, audio.py, faces.py and words.py extract, clip.py records."""

# What --face_fps, --face_size and --face_margin may be; a checkpoint can have no others.
RANGES = {"face_fps": (0.1, 240), "face_size": (16, 1024), "margin": (-0.3, 1)}
