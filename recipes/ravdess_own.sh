#!/usr/bin/env bash
# RAVDESS, speech, five folds of unseen speakers, from the log-mel to the answer: AttnCNN on the small
# backbone with twice the maps, which has first learnt ASED's five classes (Amharic, 65 people, none
# of RAVDESS). Nothing is pretrained on anything else, nothing is known of the test speaker.
#     bash recipes/ravdess_own.sh FOLDER_OF_THE_ACTORS ASED
# AMP=True trains in bfloat16: half of the time on a CPU with AMX, as accurate.
set -eu
ravdess=${1:?the folder with Actor_01 ... Actor_24} ased=${2:?the folder of ASED}
features=${FEATURES_DIR:-features/ravdess_own} logs=${LOGS_DIR:-logs} half=${AMP:-False}
# exit code 3: some clips are rejected, and listed
python preprocess.py --corpus ravdess --data_dir "$ravdess" --features_dir "$features" \
  --modalities speech || [ $? = 3 ]
python -m corpora.pool "$features-ased.clips" "ased=$ased" --classes neu,hap,sad,ang,fea \
  --without ased-f2-04-01-01-25 ased-h3-07-01-01-25 ased-n1-05-02-02-45  # under two speakers
python preprocess.py --corpus csv --data_dir "$features-ased.clips" \
  --features_dir "$features-ased" --follow_links --modalities speech || [ $? = 3 ]
python train.py --mode speech --exp_name ravdess-own-start --features_dir "$features-ased" \
  --logs_dir "$logs" --resume --recipe small --speech_backbone small-32-wide --fold 4 \
  --speech_frames 128 --n_epoch 30 --eval_step 30 --num_workers 0 --seed 1 --amp "$half"
for seed in ${SEEDS:-1 2 3 4 5}; do
  python train.py --mode speech --exp_name "ravdess-own-$seed" --features_dir "$features" \
    --logs_dir "$logs" --resume --recipe small --fold all --num_workers 0 --seed "$seed" \
    --speech_load_weights "$logs/speech/ravdess-own-start" --n_epoch 60 --eval_step 60 \
    --amp "$half"
done
python evaluate.py --features_dir "$features" --out report/ravdess_own \
  --checkpoints "$logs"/speech/ravdess-own-[0-9]
