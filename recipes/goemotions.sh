#!/usr/bin/env bash
# GoEmotions, seven classes, the comments with one emotion: the Transformer on GloVe's 25 numbers a
# word, nothing else pretrained. The dev comments are looked at by the last epoch; the test once.
#     bash recipes/goemotions.sh FOLDER_WITH_train.tsv WORD_VECTORS
set -eu
data=${1:?the folder with train.tsv, dev.tsv, test.tsv and labels.txt}
vectors=${2:?word vectors, such as GloVe Twitter 25d}
features=${FEATURES_DIR:-features/goemotions}
# exit code 3: some clips are rejected, and listed
python preprocess.py --corpus goemotions --data_dir "$data" --features_dir "$features" \
  --word_vectors "$vectors" || [ $? = 3 ]
for seed in ${SEEDS:-1 2 3 4 5}; do
  python train.py --mode text --exp_name "goemotions-$seed" --features_dir "$features" --resume \
    --recipe small --text_layers 1 --text_width 96 --n_epoch 4 --eval_step 4 --batch_size 128 \
    --learning_rate 3e-3 --warmup 0.3 --class_weights sqrt --num_workers 0 --seed "$seed"
done
python evaluate.py --checkpoints logs/text/goemotions-[0-9] --features_dir "$features" --split test \
  --out report/goemotions
