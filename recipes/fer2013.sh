#!/usr/bin/env bash
# FER2013, still pictures of 48 pixels: the face's own small network, nothing pretrained. The public
# test is looked at once, by the last epoch; pictures of the training that stand in it are left out.
# Their faces fill them as those of a detector's boxes without a margin do (--face_margin 0): so does
# what the model is to be asked about.
#     bash recipes/fer2013.sh FOLDER_WITH_train_AND_val
set -eu
data=${1:?the folder with train/angry ... val/surprise}
features=${FEATURES_DIR:-features/fer2013}
python preprocess.py --corpus images --data_dir "$data" --features_dir "$features" \
  --face_cropped --face_size 48 --face_margin 0
python train.py --mode face --exp_name fer2013 --features_dir "$features" --resume \
  --face_backbone small-16-wide --face_lstm False --face_frames 1 --optim adamw --learning_rate 2e-3 \
  --weight_decay 0.05 --batch_size 64 --n_epoch "${EPOCHS:-30}" --eval_step "${EPOCHS:-30}" \
  --class_weights sqrt --warmup 0.5 --cutmix_prob 0 --ema 0.998 --face_contrast 0.3 --face_rotation 10 --face_zoom 0.12 \
  --num_workers 0 --seed 1
