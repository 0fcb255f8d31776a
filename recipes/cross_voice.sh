#!/usr/bin/env bash
# The voice across corpora and languages: trained on RAVDESS (five classes), tested on all of ASED
# and of the Javanese clips. FROM and TO turn it round: FROM=ased TO=ravdess.
#     bash recipes/cross_voice.sh RAVDESS ASED JAVANESE
set -eu
ravdess=${1:?the folder of RAVDESS} ased=${2:?the folder of ASED} javanese=${3:?the Javanese clips}
from=${FROM:-ravdess} to=${TO:-ased}
declare -A place=([ravdess]=$ravdess [ased]=$ased)
features=${FEATURES_DIR:-features/from_$from}
python -m corpora.pool "$features.clips" "$from=${place[$from]}" "$to=${place[$to]}@$to" \
  "javanese=$javanese@javanese" --classes neu+cal,hap,sad,ang,fea \
  --without ased-f2-04-01-01-25 ased-h3-07-01-01-25 ased-n1-05-02-02-45  # under two speakers
# exit code 3: some clips are rejected, and listed
python preprocess.py --corpus csv --data_dir "$features.clips" --features_dir "$features" \
  --follow_links --modalities speech || [ $? = 3 ]
python train.py --mode speech --exp_name "from_$from" --features_dir "$features" --resume \
  --recipe small --fold 4 --speech_frames 128 --n_epoch 40 --eval_step 40 --num_workers 0 --seed 1
for split in "$to" javanese; do
  python evaluate.py --checkpoints "logs/speech/from_$from" --features_dir "$features" \
    --split "$split" --out "report/from_${from}_to_$split"
done
