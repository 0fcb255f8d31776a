#!/usr/bin/env bash
# RAVDESS, speech alone, 8 emotions, five folds of unseen speakers, nothing pretrained: on 2 CPU
# cores 15 minutes for the features and 4 for each of the five seeds. Choices were made on
# validation folds inside the training folds (docs/experiments.md); the epoch is not chosen at all:
# only the last one is measured.
#     bash recipes/ravdess_speech.sh FOLDER_OF_THE_ACTORS
set -eu
data=${1:?the folder with Actor_01 ... Actor_24}
features=${FEATURES_DIR:-features/ravdess}
# exit code 3: some clips are rejected, and listed
python preprocess.py --corpus ravdess --data_dir "$data" --features_dir "$features" --modalities speech \
  || [ $? = 3 ]
# an interrupted run goes on behind them, unless it was interrupted within them
[ "$(ls "$features/train/functionals" 2>/dev/null | wc -l)" = 1440 ] ||
  python examples/functionals.py --data_dir "$data" --features_dir "$features"
# RAVDESS holds one recording twice (actor 07), in one fold: no leak.
for seed in 1 2 3 4 5; do
  python train.py --mode multimodal --inputs functionals --feature_frames 1 --fold all --resume \
    --optim adamw --learning_rate 1e-3 --weight_decay 0.05 --schedule cosine --batch_size 32 \
    --n_epoch 60 --eval_step 60 --mixup_prob 1 --num_workers 0 \
    --features_dir "$features" --exp_name "ravdess-speech-$seed" --seed "$seed"
done
python evaluate.py --features_dir "$features" --out report/ravdess_speech \
  --checkpoints logs/multimodal/ravdess-speech-{1,2,3,4,5}
