#!/usr/bin/env bash
# RAVDESS, speech and the face's action units, on the folds of recipes/ravdess_speech.sh, whose
# features it uses. The table of action units is OpenFace's means over each clip, one row per clip
# (Luna-Jimenez et al. 2021 publish theirs).
#     bash recipes/ravdess_av.sh au_means.csv
set -eu
table=${1:?a CSV with the columns clip, AU01_r, ...}
features=${FEATURES_DIR:-features/ravdess}
python examples/table.py "$table" --columns 'AU*' --name au --skip 2 --features_dir "$features"
for seed in 1 2 3 4 5; do
  python train.py --mode multimodal --inputs functionals,au --feature_frames 1 --fold all --resume \
    --optim adamw --learning_rate 1e-3 --weight_decay 0.05 --schedule cosine --batch_size 32 \
    --n_epoch 60 --eval_step 60 --mixup_prob 1 --num_workers 0 \
    --features_dir "$features" --exp_name "ravdess-av-$seed" --seed "$seed"
done
python evaluate.py --features_dir "$features" --out report/ravdess_av \
  --checkpoints logs/multimodal/ravdess-av-{1,2,3,4,5}
