# A researcher: a new objective and its system, as CONTRIBUTING.md writes them, are trained and compared.
set -e
python use.py
tuwen systems sigmoid
tuwen train sigmoid --corpus data/colours --out runs/a --size tiny --steps 40 --set train.batch_size=3 data.workers=0
tuwen eval runs/a --corpus data/colours --task pair_cosine --json > closer.json
tuwen compare clip sigmoid --corpus data/colours --size tiny --budget steps=20 --seeds 2 --set train.batch_size=3 data.workers=0 --out runs/compare
