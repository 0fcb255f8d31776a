#!/usr/bin/env bash
# MELD, the words alone, official split, from its three tables: minutes on 2 CPU cores. Word vectors
# count only by which clips they know (17 of the 2,610 test clips have none of its words and are
# rejected). The three splits share speakers by design, hence --allow_leaks.
#     bash recipes/meld_text.sh MELD/data/MELD glove.txt
# Then for a sentence of your own, which has no dialogue and is read as the first of one:
#     python predict.py --text "You did what?!" --checkpoints logs/multimodal/meld-text-1 \
#       --encoder ngrams=examples/ngrams.py@features/meld/ngrams.npz
set -eu
data=${1:?the folder with train_sent_emo.csv} vectors=${2:?a file of word vectors}
features=${FEATURES_DIR:-features/meld}
# exit code 3: some clips are rejected, and listed
python preprocess.py --corpus meld --data_dir "$data" --word_vectors "$vectors" \
  --features_dir "$features" --modalities text || [ $? = 3 ]
python examples/ngrams.py --features_dir "$features"
for seed in 1 2 3 4 5; do
  python train.py --mode multimodal --inputs ngrams --allow_leaks --resume \
    --optim adamw --learning_rate 1e-3 --weight_decay 0.05 --schedule cosine --batch_size 64 \
    --n_epoch 8 --eval_step 8 --mixup_prob 0 --class_weights sqrt --num_workers 0 \
    --features_dir "$features" --exp_name "meld-text-$seed" --seed "$seed"
done
python evaluate.py --features_dir "$features" --split test --out report/meld_text \
  --checkpoints logs/multimodal/meld-text-{1,2,3,4,5}
