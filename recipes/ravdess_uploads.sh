#!/usr/bin/env bash
# RAVDESS, speech, five folds of unseen speakers: the hand-made numbers of examples/functionals.py as
# an encoder, so that the models answer for clips of anybody; once as they are and once in units of
# each speaker's clips (no labels). Settings as in ravdess_speech.sh. Half an hour of one core for the
# features, some two minutes a seed.
#     bash recipes/ravdess_uploads.sh FOLDER_OF_THE_ACTORS
#     python predict.py clip.wav --checkpoints logs/multimodal/ravdess-uploads-none-1 \
#       --encoder functionals=examples/functionals.py
set -eu
data=${1:?the folder with Actor_01 ... Actor_24}
features=${FEATURES_DIR:-features/ravdess_uploads} logs=${LOGS_DIR:-logs}
# exit code 3: some clips are rejected, and listed
python preprocess.py --corpus ravdess --data_dir "$data" --features_dir "$features" \
  --modalities speech --encoder functionals=speech:file:examples/functionals.py,pool=frames \
  || [ $? = 3 ]
for units in none speaker; do
  name="ravdess-uploads-$units"
  for seed in ${SEEDS:-1 2 3 4 5}; do
    python train.py --mode multimodal --inputs functionals --feature_frames 1 --fold all --resume \
      --standardize "$units" --optim adamw --learning_rate 1e-3 --weight_decay 0.05 \
      --schedule cosine --batch_size 32 --n_epoch 60 --eval_step 60 --mixup_prob 1 \
      --num_workers 0 --features_dir "$features" --logs_dir "$logs" \
      --exp_name "$name-$seed" --seed "$seed"
  done
  python evaluate.py --features_dir "$features" --out "report/$name" \
    --checkpoints "$logs"/multimodal/"$name"-[0-9]
done
