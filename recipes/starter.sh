#!/usr/bin/env bash
# The models of starter/: voice (RAVDESS and ASED), face (FER2013) and English words (GoEmotions).
# Each keeps people or clips out of its training, which give its card the accuracy. The Javanese clips
# and MELD are in no training: they show what the models are worth elsewhere, and their confidence is
# made right by them. Three hours on 2 idle CPU cores.
#     bash recipes/starter.sh RAVDESS JAVANESE ASED FER2013 GOEMOTIONS MELD WORD_VECTORS.npz
set -eu
ravdess=${1:?RAVDESS speech} javanese=${2:?the Javanese clips} ased=${3:?ASED}
fer=${4:?FER2013, folders train and val} goemotions=${5:?the tables} meld=${6:?its tables}
vectors=${7:?GloVe as .npz}
features=${FEATURES_DIR:-features} out=${OUT:-starter}
classes=hap,ang,dis,fea,sad,neu+cal,sur

# the vectors in half precision: the models read these, so they are made of these
python - "$vectors" "$out/words.npz" <<'PYTHON'
import os, sys
import numpy as np
source, target = sys.argv[1:]
os.makedirs(os.path.dirname(target) or ".", exist_ok=True)
with np.load(source) as file:
    words = np.array([word.encode() for word in file["words"].tolist()])
    np.savez_compressed(target, words=words, vectors=file["vectors"].astype(np.float16))
PYTHON

# three recordings of ASED stand under two speakers
python -m corpora.pool "$features/voices.clips" "ravdess=$ravdess" "ased=$ased" \
  "javanese=$javanese@javanese" --classes "$classes" \
  --without ased-f2-04-01-01-25 ased-h3-07-01-01-25 ased-n1-05-02-02-45
# exit code 3: some clips are rejected, and listed
python preprocess.py --corpus csv --data_dir "$features/voices.clips" \
  --features_dir "$features/voices" --follow_links --modalities speech || [ $? = 3 ]
python train.py --mode speech --exp_name starter --features_dir "$features/voices" --resume \
  --recipe small --fold 3 --speech_frames 128 --n_epoch 90 --eval_step 90 --num_workers 0 --seed 1
# and again as other microphones and rooms would have recorded them, and as long as clips elsewhere
python train.py --mode speech --exp_name starter-far --features_dir "$features/voices" --resume \
  --recipe small --fold 3 --speech_frames 256 --speech_load_weights logs/speech/starter \
  --speech_channel 0.5 --learning_rate 1e-3 --n_epoch 25 --eval_step 25 --num_workers 0 --seed 1
python -m evaluation.pack logs/speech/starter-far --features_dir "$features/voices" \
  --out "$out/voice.pth" --corpus "RAVDESS and ASED" --language "English and Amharic, acted" \
  --elsewhere "Javanese AV=$features/voices@javanese"

FEATURES_DIR="$features/fer2013" bash recipes/fer2013.sh "$fer"
python -m corpora.pool "$features/faces.clips" "javanese=$javanese" --classes "$classes"
python preprocess.py --corpus csv --data_dir "$features/faces.clips" \
  --features_dir "$features/faces" --follow_links --face_size 48 --face_margin 0 || [ $? = 3 ]
python -m evaluation.pack logs/face/fer2013-parts --features_dir "$features/fer2013" \
  --out "$out/face.pth" --corpus FER2013 --language "pictures from the web" \
  --elsewhere "Javanese AV=$features/faces@train" --setting face_frames=8

FEATURES_DIR="$features/goemotions" SEEDS=1 bash recipes/goemotions.sh "$goemotions" "$out/words.npz"
python preprocess.py --corpus meld --data_dir "$meld" --features_dir "$features/meld" \
  --word_vectors "$out/words.npz" --modalities text || [ $? = 3 ]
python -m evaluation.pack logs/text/goemotions-1 --features_dir "$features/goemotions" \
  --out "$out/words.pth" --corpus GoEmotions --language "English comments of Reddit" \
  --elsewhere "MELD=$features/meld@test"
if [ -f "$out/README.md" ]; then python -m evaluation.cards "$out"; fi
