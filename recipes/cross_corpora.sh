#!/usr/bin/env bash
# The voice where no training has been: RAVDESS (English), ASED (Amharic) and the Javanese clips, five
# classes, each corpus in turn kept out of the training (a fold is a corpus). A frozen encoder of
# Whisper, and with OWN=1 also the project's own small network.
#     bash recipes/cross_corpora.sh RAVDESS ASED JAVANESE [openai/whisper-tiny.en]
set -eu
ravdess=${1:?RAVDESS speech} ased=${2:?ASED} javanese=${3:?the Javanese clips}
model=${4:-openai/whisper-tiny.en}
features=${FEATURES_DIR:-features/cross_corpora} logs=${LOGS_DIR:-logs}
python -m corpora.pool "$features.clips" "ravdess=$ravdess" "ased=$ased" "javanese=$javanese" \
  --folds corpus --classes neu+cal,hap,sad,ang,fea \
  --without ased-f2-04-01-01-25 ased-h3-07-01-01-25 ased-n1-05-02-02-45  # under two speakers
# exit code 3: some clips are rejected, and listed
python preprocess.py --corpus csv --data_dir "$features.clips" --features_dir "$features" \
  --follow_links --modalities speech --encoder "whisper=speech:hf:$model,layers=all,pool=5" \
  || [ $? = 3 ]
for seed in ${SEEDS:-1 2 3 4 5}; do
  python train.py --mode multimodal --inputs whisper --feature_encoder linear --feature_frames 32 --fold all \
    --resume --optim adamw --learning_rate 1e-3 --weight_decay 0.05 --schedule cosine --batch_size 32 \
    --n_epoch 20 --eval_step 20 --mixup_prob 1 --num_workers 0 \
    --features_dir "$features" --logs_dir "$logs" --exp_name "cross-whisper-$seed" --seed "$seed"
done
python evaluate.py --features_dir "$features" --out report/cross_whisper \
  --checkpoints "$logs"/multimodal/cross-whisper-[0-9]
if [ "${OWN:-}" ]; then
  python train.py --mode speech --exp_name cross-own --features_dir "$features" --resume \
    --recipe small --fold all --speech_frames 128 --n_epoch 40 --eval_step 40 --num_workers 0 \
    --logs_dir "$logs" --seed 1
  python evaluate.py --features_dir "$features" --out report/cross_own \
    --checkpoints "$logs/speech/cross-own"
fi
