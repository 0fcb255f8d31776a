#!/usr/bin/env bash
# RAVDESS, speech, five folds of unseen speakers: Whisper's encoder (tiny.en, frozen), learnt shares
# of its layers, attention over time; once as it is and once in units of each speaker's clips (no
# labels). The settings are those of javanese_whisper.sh, but 32 rows, for the clips have some 25;
# nothing was searched for here.
#     bash recipes/ravdess_whisper.sh FOLDER_OF_THE_ACTORS [openai/whisper-tiny.en]
set -eu
data=${1:?the folder with Actor_01 ... Actor_24} model=${2:-openai/whisper-tiny.en}
features=${FEATURES_DIR:-features/ravdess_whisper} logs=${LOGS_DIR:-logs}
python preprocess.py --corpus ravdess --data_dir "$data" --features_dir "$features" \
  --modalities speech --encoder "whisper=speech:hf:$model,layers=all,pool=5"
for units in none speaker; do
  name="ravdess-whisper-$units"
  for seed in ${SEEDS:-1 2 3 4 5}; do
    python train.py --mode multimodal --inputs whisper --feature_encoder linear --feature_frames 32 --fold all \
      --resume --standardize "$units" --optim adamw --learning_rate 1e-3 --weight_decay 0.05 \
      --schedule cosine --batch_size 32 --n_epoch 40 --eval_step 40 --mixup_prob 1 \
      --num_workers 0 --features_dir "$features" --logs_dir "$logs" \
      --exp_name "$name-$seed" --seed "$seed"
  done
  python evaluate.py --features_dir "$features" --out "report/$name" \
    --checkpoints "$logs"/multimodal/"$name"-[0-9]
done
