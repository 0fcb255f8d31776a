#!/usr/bin/env bash
# FER2013, still pictures of 48 pixels: the face's own small network, nothing pretrained; and again,
# from there, with the parts of the face told apart, which is the better start for faces elsewhere.
# The public test is looked at by the last epoch of each; pictures of the training that stand in it
# are left out.
# Their faces fill them as those of a detector's boxes without a margin do (--face_margin 0): so does
# what the model is to be asked about.
#     bash recipes/fer2013.sh FOLDER_WITH_train_AND_val
set -eu
data=${1:?the folder with train/angry ... val/surprise}
features=${FEATURES_DIR:-features/fer2013}
# exit code 3: some clips are rejected, and listed
python preprocess.py --corpus images --data_dir "$data" --features_dir "$features" \
  --face_cropped --face_size 48 --face_margin 0 || [ $? = 3 ]
train() {  # name, epochs, more flags
  python train.py --mode face --exp_name "$1" --n_epoch "$2" --eval_step "$2" --features_dir "$features" \
    --resume --face_lstm False --face_frames 1 --optim adamw --weight_decay 0.05 --batch_size 64 \
    --class_weights sqrt --warmup 0.5 --cutmix_prob 0 --ema 0.998 --face_contrast 0.3 \
    --face_rotation 10 --face_zoom 0.12 --num_workers 0 --seed 1 "${@:3}"
}
train fer2013 "${EPOCHS:-30}" --face_backbone small-16-wide --learning_rate 2e-3
train fer2013-parts "${PARTS_EPOCHS:-8}" --face_load_weights logs/face/fer2013 --face_grid 3 \
  --learning_rate 5e-4
