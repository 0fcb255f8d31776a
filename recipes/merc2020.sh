#!/usr/bin/env bash
# The whole challenge entry of 2020: 12 runs of one modality, 4 fusions, 3 submissions.
#     bash recipes/merc2020.sh
# It needs the clips in qia2020/ and 2020-3/ and the three sheets beside them; two GPUs took days.
#
# After any stop (Ctrl-C, a crash, a reboot) start it again with the same flags: a finished training
# is passed over in seconds, the one that was stopped goes on where it last saved, and submissions
# are made anew.
#
# What it writes, all below the project's folder: features/, logs/<mode>/<run>/, and
# test1_submission.csv, test2_submission.csv, test3_submission.csv. The epoch lines of all trainings
# go to the terminal and to logs/logs.txt.
#
# The backbones start from ImageNet weights, as they did then. Without internet: PRETRAINED=none, or
# PRETRAINED=FOLDER with .pth files. Flags behind the name go to every training: --device cuda:1,
# or --n_epoch 1 --num_workers 2 for a trial.
set -euo pipefail
cd "$(dirname "$0")/.."
PRETRAINED=${PRETRAINED:-hub}
flags=("$@")

train() {  # -i: Ctrl-C is for the training, which saves and then says so
  python train.py --mode "$@" --resume "${flags[@]}" | tee -i -a logs/logs.txt
}

speech() {  # name, EfficientNet, seed
  train speech --exp_name "$1" --speech_coeff "$2" --seed "$3" --pretrained "$PRETRAINED" \
    --learning_rate 4e-3 --batch_size 256 --n_epoch 100 --optim ranger --warmup 0 \
    --weight_decay 5e-5 --num_workers 16 --mixup_prob 1 --mixup_alpha 1 --label_smoothing 0.1 \
    --amp True
}

face() {  # name, EfficientNet, seed
  train face --exp_name "$1" --face_coeff "$2" --seed "$3" --pretrained "$PRETRAINED" \
    --learning_rate 4e-3 --batch_size 32 --n_epoch 20 --optim ranger --warmup 0 \
    --weight_decay 5e-5 --num_workers 16 --cutmix_prob 1 --cutmix_beta 1 --label_smoothing 0.1 \
    --amp True
}

text() {  # name, seed
  train text --exp_name "$1" --seed "$2" --learning_rate 3e-4 --batch_size 128 --n_epoch 100 \
    --optim ranger --warmup 0 --weight_decay 5e-5 --num_workers 16 --label_smoothing 0.1 --amp False
}

fusion() {  # name, its three runs, seed, learning rate, batch size
  train multimodal --exp_name "$1" --speech_load_weights "logs/speech/$2" \
    --face_load_weights "logs/face/$3" --text_load_weights "logs/text/$4" --seed "$5" \
    --learning_rate "$6" --batch_size "$7" --n_epoch 20 --optim sgd --warmup 0 \
    --weight_decay 5e-5 --num_workers 16 --mixup_prob 1 --mixup_alpha 1 --lam 2 \
    --label_smoothing 0.1 --amp False
}

python preprocess.py || { code=$?; [ $code = 3 ] || exit $code; }  # 3: some clips were rejected

speech AttnCNN-B4 4 42
face CLSTM-B0-latest 0 42
text transformer_12_8 42
fusion mixup-lam_2-latest AttnCNN-B4 CLSTM-B0-latest transformer_12_8 42 3e-4 16

speech AttnCNN-B4-newseed 4 4242
face CLSTM-B0-latest-newseed 0 4242
text transformer_12_8-newseed 4242
fusion mixup-lam_2-latest-newseed \
  AttnCNN-B4-newseed CLSTM-B0-latest-newseed transformer_12_8-newseed 4242 3e-4 16

speech AttnCNN-B4-newnewseed 4 424242
face CLSTM-B0-latest-newnewseed 0 424242
text transformer_12_8-newnewseed 424242
fusion mixup-lam_2-latest-newnewseed \
  AttnCNN-B4-newnewseed CLSTM-B0-latest-newnewseed transformer_12_8-newnewseed 424242 3e-4 16

# Larger backbones. B7 with 256 clips a step may not fit into 80 GB: then add --grad_accumulation 2.
speech AttnCNN-B7 7 1234
face CLSTM-B1-frame16 1 1234
text transformer_12_8_seed1234 1234
fusion mixup-lam_2-seed1234-bigger-models \
  AttnCNN-B7 CLSTM-B1-frame16 transformer_12_8_seed1234 1234 6e-4 8

# Phase 1 was answered by the first two models, phases 2 and 3 by all four.
runs=(logs/multimodal/mixup-lam_2-{latest,latest-newseed,latest-newnewseed,seed1234-bigger-models})
python make_submission.py --sheets features/test1.csv --checkpoints "${runs[@]:0:2}"
python make_submission.py --sheets features/test2.csv features/test3.csv --checkpoints "${runs[@]}"
