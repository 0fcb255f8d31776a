#!/usr/bin/env bash
# The whole challenge entry of 2020 as plain commands: 12 single-modality runs, 4 fusions, 3 CSVs.
# Needs the clips in qia2020/ and 2020-3/ and the three sheets beside them; two GPUs took days.
# The trunks start from ImageNet weights as they did then; without internet: PRETRAINED=none or a
# folder of .pth files. An interrupted run goes on: every command may be repeated with --resume.
set -euo pipefail
cd "$(dirname "$0")/.."
PRETRAINED=${PRETRAINED:-hub}

python preprocess.py

# seed 42
python train.py --mode speech --exp_name AttnCNN-B4 --learning_rate 4e-3 --batch_size 256 --n_epoch 100 \
  --optim ranger --warmup 0 --weight_decay 5e-5 --num_workers 16 --speech_coeff 4 --mixup_prob 1 \
  --mixup_alpha 1 --label_smoothing 0.1 --amp True --seed 42 --pretrained "$PRETRAINED" >> ./logs/logs.txt
python train.py --mode face --exp_name CLSTM-B0-latest --learning_rate 4e-3 --batch_size 32 --n_epoch 20 \
  --optim ranger --warmup 0 --weight_decay 5e-5 --num_workers 16 --face_coeff 0 --cutmix_prob 1 \
  --cutmix_beta 1 --label_smoothing 0.1 --amp True --seed 42 --pretrained "$PRETRAINED" >> ./logs/logs.txt
python train.py --mode text --exp_name transformer_12_8 --learning_rate 3e-4 --batch_size 128 \
  --n_epoch 100 --optim ranger --warmup 0 --weight_decay 5e-5 --num_workers 16 --label_smoothing 0.1 \
  --amp False --seed 42 >> ./logs/logs.txt
python train.py --mode multimodal --exp_name mixup-lam_2-latest \
  --speech_load_weights ./logs/speech/AttnCNN-B4 --text_load_weights ./logs/text/transformer_12_8 \
  --face_load_weights ./logs/face/CLSTM-B0-latest --learning_rate 3e-4 --batch_size 16 --n_epoch 20 \
  --optim sgd --warmup 0 --weight_decay 5e-5 --num_workers 16 --speech_coeff 4 --face_coeff 0 \
  --mixup_prob 1 --mixup_alpha 1 --lam 2 --label_smoothing 0.1 --amp False --seed 42 >> ./logs/logs.txt

# seed 4242
python train.py --mode speech --exp_name AttnCNN-B4-newseed --learning_rate 4e-3 --batch_size 256 --n_epoch 100 \
  --optim ranger --warmup 0 --weight_decay 5e-5 --num_workers 16 --speech_coeff 4 --mixup_prob 1 \
  --mixup_alpha 1 --label_smoothing 0.1 --amp True --seed 4242 --pretrained "$PRETRAINED" >> ./logs/logs.txt
python train.py --mode face --exp_name CLSTM-B0-latest-newseed --learning_rate 4e-3 --batch_size 32 --n_epoch 20 \
  --optim ranger --warmup 0 --weight_decay 5e-5 --num_workers 16 --face_coeff 0 --cutmix_prob 1 \
  --cutmix_beta 1 --label_smoothing 0.1 --amp True --seed 4242 --pretrained "$PRETRAINED" >> ./logs/logs.txt
python train.py --mode text --exp_name transformer_12_8-newseed --learning_rate 3e-4 --batch_size 128 \
  --n_epoch 100 --optim ranger --warmup 0 --weight_decay 5e-5 --num_workers 16 --label_smoothing 0.1 \
  --amp False --seed 4242 >> ./logs/logs.txt
python train.py --mode multimodal --exp_name mixup-lam_2-latest-newseed \
  --speech_load_weights ./logs/speech/AttnCNN-B4-newseed --text_load_weights ./logs/text/transformer_12_8-newseed \
  --face_load_weights ./logs/face/CLSTM-B0-latest-newseed --learning_rate 3e-4 --batch_size 16 --n_epoch 20 \
  --optim sgd --warmup 0 --weight_decay 5e-5 --num_workers 16 --speech_coeff 4 --face_coeff 0 \
  --mixup_prob 1 --mixup_alpha 1 --lam 2 --label_smoothing 0.1 --amp False --seed 4242 >> ./logs/logs.txt

# seed 424242
python train.py --mode speech --exp_name AttnCNN-B4-newnewseed --learning_rate 4e-3 --batch_size 256 --n_epoch 100 \
  --optim ranger --warmup 0 --weight_decay 5e-5 --num_workers 16 --speech_coeff 4 --mixup_prob 1 \
  --mixup_alpha 1 --label_smoothing 0.1 --amp True --seed 424242 --pretrained "$PRETRAINED" >> ./logs/logs.txt
python train.py --mode face --exp_name CLSTM-B0-latest-newnewseed --learning_rate 4e-3 --batch_size 32 --n_epoch 20 \
  --optim ranger --warmup 0 --weight_decay 5e-5 --num_workers 16 --face_coeff 0 --cutmix_prob 1 \
  --cutmix_beta 1 --label_smoothing 0.1 --amp True --seed 424242 --pretrained "$PRETRAINED" >> ./logs/logs.txt
python train.py --mode text --exp_name transformer_12_8-newnewseed --learning_rate 3e-4 --batch_size 128 \
  --n_epoch 100 --optim ranger --warmup 0 --weight_decay 5e-5 --num_workers 16 --label_smoothing 0.1 \
  --amp False --seed 424242 >> ./logs/logs.txt
python train.py --mode multimodal --exp_name mixup-lam_2-latest-newnewseed \
  --speech_load_weights ./logs/speech/AttnCNN-B4-newnewseed --text_load_weights ./logs/text/transformer_12_8-newnewseed \
  --face_load_weights ./logs/face/CLSTM-B0-latest-newnewseed --learning_rate 3e-4 --batch_size 16 --n_epoch 20 \
  --optim sgd --warmup 0 --weight_decay 5e-5 --num_workers 16 --speech_coeff 4 --face_coeff 0 \
  --mixup_prob 1 --mixup_alpha 1 --lam 2 --label_smoothing 0.1 --amp False --seed 424242 >> ./logs/logs.txt

# seed 1234; B7 with 256 clips a step may not fit into 80 GB: add --grad_accumulation 2
python train.py --mode speech --exp_name AttnCNN-B7 --learning_rate 4e-3 --batch_size 256 --n_epoch 100 \
  --optim ranger --warmup 0 --weight_decay 5e-5 --num_workers 16 --speech_coeff 7 --mixup_prob 1 \
  --mixup_alpha 1 --label_smoothing 0.1 --amp True --seed 1234 --pretrained "$PRETRAINED" >> ./logs/logs.txt
python train.py --mode face --exp_name CLSTM-B1-frame16 --learning_rate 4e-3 --batch_size 32 --n_epoch 20 \
  --optim ranger --warmup 0 --weight_decay 5e-5 --num_workers 16 --face_coeff 1 --cutmix_prob 1 \
  --cutmix_beta 1 --label_smoothing 0.1 --amp True --seed 1234 --pretrained "$PRETRAINED" >> ./logs/logs.txt
python train.py --mode text --exp_name transformer_12_8_seed1234 --learning_rate 3e-4 --batch_size 128 \
  --n_epoch 100 --optim ranger --warmup 0 --weight_decay 5e-5 --num_workers 16 --label_smoothing 0.1 \
  --amp False --seed 1234 >> ./logs/logs.txt
python train.py --mode multimodal --exp_name mixup-lam_2-seed1234-bigger-models \
  --speech_load_weights ./logs/speech/AttnCNN-B7 --text_load_weights ./logs/text/transformer_12_8_seed1234 \
  --face_load_weights ./logs/face/CLSTM-B1-frame16 --learning_rate 6e-4 --batch_size 8 --n_epoch 20 \
  --optim sgd --warmup 0 --weight_decay 5e-5 --num_workers 16 --speech_coeff 7 --face_coeff 1 \
  --mixup_prob 1 --mixup_alpha 1 --lam 2 --label_smoothing 0.1 --amp False --seed 1234 >> ./logs/logs.txt

# phase 1 was answered by the first two models, phases 2 and 3 by all four
python make_submission.py --sheets features/test1.csv --checkpoints \
  logs/multimodal/mixup-lam_2-latest logs/multimodal/mixup-lam_2-latest-newseed
python make_submission.py --sheets features/test2.csv features/test3.csv --checkpoints \
  logs/multimodal/mixup-lam_2-latest logs/multimodal/mixup-lam_2-latest-newseed \
  logs/multimodal/mixup-lam_2-latest-newnewseed logs/multimodal/mixup-lam_2-seed1234-bigger-models
