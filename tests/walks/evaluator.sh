# An evaluator: other people's checkpoint, in open_clip's layout, is measured (docs/weights.md, docs/evaluation.md).
set -e
tuwen import checkpoints/open --out runs/theirs
tuwen import checkpoints/epoch_1.pt --tokenizer checkpoints/open/tokenizer.json --out runs/file
tuwen eval runs/theirs --corpus photos --task retrieval --json > merged.json
tuwen eval runs/theirs --corpus photos --task retrieval --protocol published --json > published.json
tuwen eval runs/file --corpus photos --task retrieval --json > file.json
tuwen eval runs/theirs --corpus photos --task zero_shot --classes names.json --json > classes.json
tuwen export runs/theirs --to open_clip --out exported/open
