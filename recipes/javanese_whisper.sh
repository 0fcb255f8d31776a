#!/usr/bin/env bash
# Javanese audio-visual clips, the voice alone, people who are in no training: a frozen encoder of
# Whisper (tiny.en, the folder or its name on the hub), learnt shares of its layers, attention over
# time; beside it openSMILE's eGeMAPS and a small perceptron. No statistics of the test person.
#     bash recipes/javanese_whisper.sh video-emotion-recognition-javanese openai/whisper-tiny.en
set -eu
data=${1:?the folder with the clips} model=${2:-openai/whisper-tiny.en}
features=${FEATURES_DIR:-features/javanese}
# exit code 3: some clips are rejected, and listed
python preprocess.py --corpus javanese --data_dir "$data" --features_dir "$features" \
  --modalities speech --encoder "whisper=speech:hf:$model,layers=all,pool=5" \
  --encoder egemaps=speech:opensmile:eGeMAPSv02 || [ $? = 3 ]
for seed in 1 2 3 4 5; do
  python train.py --mode multimodal --inputs whisper --feature_encoder linear --fold all --resume \
    --optim adamw --learning_rate 1e-3 --weight_decay 0.05 --schedule cosine --batch_size 32 \
    --n_epoch 40 --eval_step 40 --mixup_prob 1 --num_workers 0 \
    --features_dir "$features" --exp_name "javanese-whisper-$seed" --seed "$seed"
  python train.py --mode multimodal --inputs egemaps --fold all --resume \
    --optim adamw --learning_rate 1e-3 --weight_decay 0.05 --schedule cosine --batch_size 32 \
    --n_epoch 40 --eval_step 40 --mixup_prob 1 --num_workers 0 \
    --features_dir "$features" --exp_name "javanese-egemaps-$seed" --seed "$seed"
done
python evaluate.py --features_dir "$features" --out report/javanese_whisper \
  --checkpoints logs/multimodal/javanese-whisper-{1,2,3,4,5}
python evaluate.py --features_dir "$features" --out report/javanese_egemaps \
  --checkpoints logs/multimodal/javanese-egemaps-{1,2,3,4,5}
