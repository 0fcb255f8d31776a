#!/usr/bin/env bash
# The Javanese clips with the system's own networks, folds by person, no statistics of the test
# person: the voice starts from RAVDESS and ASED, the face from FER2013 (both from
# recipes/starter.sh), and the answer of both is the mean of their votes.
#     bash recipes/javanese_av.sh JAVANESE logs/speech/starter-far logs/face/fer2013
set -eu
data=${1:?the folder of the clips} voice=${2:?a run on other voices} face=${3:?a run on FER2013}
features=${FEATURES_DIR:-features/javanese}
python preprocess.py --corpus javanese --data_dir "$data" --features_dir "$features" --face_size 48 \
  --face_margin 0
for seed in ${SEEDS:-1 2 3 4 5}; do
  python train.py --mode speech --exp_name "javanese-$seed" --features_dir "$features" --resume \
    --recipe small --fold all --speech_load_weights "$voice" --speech_frames 256 \
    --learning_rate 1e-3 --n_epoch 40 --eval_step 40 --num_workers 0 --seed "$seed"
  python train.py --mode face --exp_name "javanese-$seed" --features_dir "$features" --resume \
    --recipe small --fold all --face_load_weights "$face" --freeze_backbone True \
    --face_frames 8 --learning_rate 3e-3 --n_epoch 40 --eval_step 40 --num_workers 0 --seed "$seed"
done
python evaluate.py --features_dir "$features" --out report/javanese_av \
  --checkpoints logs/speech/javanese-* logs/face/javanese-*
