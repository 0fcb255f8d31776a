#!/usr/bin/env bash
# RAVDESS, speech, five folds of unseen speakers: one linear layer on what Whisper's encoder (tiny.en,
# frozen) makes of each clip: mean and deviation over time of each of its layers, in learnt shares;
# once as it is and once in units of each speaker's clips (no labels). Nothing was searched for here.
# Eight minutes of two cores for the features, half a minute a seed.
#     bash recipes/ravdess_whisper.sh FOLDER_OF_THE_ACTORS [openai/whisper-tiny.en]
set -eu
data=${1:?the folder with Actor_01 ... Actor_24} model=${2:-openai/whisper-tiny.en}
features=${FEATURES_DIR:-features/ravdess_whisper} logs=${LOGS_DIR:-logs}
# exit code 3: some clips are rejected, and listed
python preprocess.py --corpus ravdess --data_dir "$data" --features_dir "$features" \
  --modalities speech --encoder "whisper=speech:hf:$model,layers=all,pool=stats" || [ $? = 3 ]
for units in none speaker; do
  name="ravdess-whisper-$units"
  for seed in ${SEEDS:-1 2 3 4 5}; do
    python train.py --mode multimodal --inputs whisper --recipe small --fold all --resume \
      --standardize "$units" --num_workers 0 --features_dir "$features" --logs_dir "$logs" \
      --exp_name "$name-$seed" --seed "$seed"
  done
  python evaluate.py --features_dir "$features" --out "report/$name" \
    --checkpoints "$logs"/multimodal/"$name"-[0-9]
done
