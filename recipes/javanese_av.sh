#!/usr/bin/env bash
# The Javanese clips with the system's own networks, folds by person, no statistics of the test
# person: five voices that have learnt RAVDESS and ASED first, with all layers trained on, and five
# times one linear layer on frozen numbers of voice and face (javanese_frozen.sh). The answer is the
# mean of their votes.
#     bash recipes/javanese_av.sh JAVANESE [logs/speech/starter-far]
set -eu
data=${1:?the folder of the clips} voice=${2:-starter/voice.pth}
export FEATURES_DIR=${FEATURES_DIR:-features/javanese_frozen} LOGS_DIR=${LOGS_DIR:-logs}
SETS=voice,looks UNITS=none bash recipes/javanese_frozen.sh "$data"
for seed in ${SEEDS:-1 2 3 4 5}; do
  python train.py --mode speech --exp_name "javanese-$seed" --features_dir "$FEATURES_DIR" \
    --logs_dir "$LOGS_DIR" --resume --recipe small --fold all --speech_load_weights "$voice" \
    --speech_frames 256 --learning_rate 1e-3 --n_epoch 40 --eval_step 40 --num_workers 0 --seed "$seed"
done
python evaluate.py --features_dir "$FEATURES_DIR" --out report/javanese_av --checkpoints \
  "$LOGS_DIR"/speech/javanese-[0-9] "$LOGS_DIR"/multimodal/javanese-voice-looks-none-[0-9]
