"""One clip -> arrays: media.py opens, audio.py, faces.py and words.py extract, clip.py records."""
