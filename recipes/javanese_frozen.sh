#!/usr/bin/env bash
# The Javanese clips on top of the models that come along (starter/), which stay as they are: voice
# and face become numbers, and one linear layer learns from both; folds by person. Once nothing is
# known of the test person, once every number is read in units of that person's clips (no labels).
# With a second word also beside Whisper's encoder.
#     bash recipes/javanese_frozen.sh JAVANESE [openai/whisper-tiny.en]
set -eu
data=${1:?the folder of the clips} whisper=${2:-}
features=${FEATURES_DIR:-features/javanese_frozen} logs=${LOGS_DIR:-logs}
sets=(${SETS:-voice looks voice,looks})
more=()
if [ -n "$whisper" ]; then
  sets+=(voice,looks,whisper)
  more=(--encoder "whisper=speech:hf:$whisper,pool=stats")
fi
# exit code 3: some clips are rejected, and listed
python preprocess.py --corpus javanese --data_dir "$data" --features_dir "$features" \
  --face_size 48 --face_margin 0 \
  --encoder voice=speech:run:starter/voice.pth,pool=stats \
  --encoder looks=face:run:starter/face.pth,pool=stats "${more[@]}" || [ $? = 3 ]
for units in ${UNITS:-none speaker}; do
  for inputs in "${sets[@]}"; do
    name="javanese-${inputs//,/-}-$units"
    for seed in ${SEEDS:-1 2 3 4 5}; do
      python train.py --mode multimodal --inputs "$inputs" --recipe small --fold all --resume \
        --standardize "$units" --num_workers 0 --features_dir "$features" --logs_dir "$logs" \
        --exp_name "$name-$seed" --seed "$seed"
    done
    python evaluate.py --features_dir "$features" --out "report/$name" \
      --checkpoints "$logs"/multimodal/"$name"-[0-9]
  done
done
