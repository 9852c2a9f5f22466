"""Small invented copies of public corpora, in exactly the layouts they are published in."""

import base64
import csv
import gzip
import io
import json
import pickle
import tarfile

import datasets
import lmdb
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from tests.data import published_asked as asked
from tests.data import published_medical as medical
from tests.data.made import json_lines, picture, put


def icm(folder, stem="long_itm"):
    train = [
        {"text": "红色沙发上的白猫", "image_path": "imgs/000001.jpg", "label": 1},
        {"text": "雪山日出", "image_path": "imgs/000002.jpg", "label": 0},
    ]
    put(folder, f"train/{stem}_train.json", json_lines(*train))
    put(folder, f"val/{stem}_val.json", json_lines({"text": "海边", "image_path": "imgs/000003.jpg", "label": 1}))
    for n in (1, 2, 3):
        put(folder, f"IQR_IQM_ICR_ICM_images/00000{n}.jpg", picture(40 * n))


def iqm(folder):
    icm(folder, "short_itm")


def icr(folder, stem="long_itr"):
    train = [
        {"text": "白猫", "image_path": "imgs/000001.jpg"},
        {"text": "猫在沙发上", "image_path": "imgs/000001.jpg"},
        {"text": "雪山", "image_path": "imgs/000002.jpg"},
    ]
    put(folder, f"train/{stem}_train.json", json_lines(*train))
    put(folder, f"val/{stem}_val.json", json_lines({"text": "海边", "image_path": "imgs/000003.jpg"}))
    for n in (1, 2, 3):
        put(folder, f"IQR_IQM_ICR_ICM_images/00000{n}.jpg", picture(40 * n))


def iqr(folder):
    icr(folder, "short_itr")


def flickr30k_cna(folder):
    put(folder, "train/flickr30k_cna_train.txt", "123#0\t两个男孩\n123#4\t男孩在花园\n\n7\t一只狗\n")
    put(folder, "val/flickr30k_cna_val.txt", "8#0\t一匹马\n")
    put(folder, "test/flickr30k_cn_test.txt", "9#0\t一只鸟\n")
    for n in (123, 7, 8, 9):
        put(folder, f"flickr30k-images/{n}.jpg", picture(n))


def flickr8k_cn(folder):
    lines = "1_a.jpg#zhc#0 一个小孩 爬楼梯\n1_a.jpg#zhc#1 小孩\n2_b.jpg#zhc#0 一只狗\n3_c.jpg#zhc#0 一匹马\n"
    put(folder, "data/flickr8kzhc.caption.txt", lines)
    put(folder, "data/flickr8kenc.caption.txt", "1_a.jpg#enc#0 a child\n")
    for n, split in (("1_a", "train"), ("2_b", "val"), ("3_c", "test")):
        put(folder, f"data/flickr8k{split}.txt", f"{n}.jpg\n")
        put(folder, f"Flicker8k_Dataset/{n}.jpg", picture(50 * int(n[0])))


def flickr30k_cn(folder):
    for name, n, language, text in (
        ("flickr30kzhbbosontrain", 11, "zhb", "两个 男孩  在 跑"),
        ("flickr30kzhbbosonval", 12, "zhb", "一只 狗"),
        ("flickr30kzhmbosontest", 13, "zhm", "男孩:n 是:vshi 高兴:a 的:ude ，:wd 在:p 跑:v"),
    ):
        put(folder, f"{name}/ImageSets/{name}.txt", f"{n}\n")
        put(folder, f"{name}/TextData/seg.{name}.caption.txt", f"{n}#{language}#0 {text}\n{n}#{language}#1 人\n")
        put(folder, f"flickr30k-images/{n}.jpg", picture(10 * n))


def coco_cn(folder):
    root = "coco-cn-version1805v1.1"
    names = ("COCO_train2014_000000000101", "COCO_val2014_000000000102", "COCO_train2014_000000000103")
    for n, (name, split) in enumerate(zip(names, ("train", "val", "test"), strict=True)):
        put(folder, f"{root}/coco-cn_{split}.txt", name + "\n")
        put(folder, f"{name.split('_')[1]}/{name}.jpg", picture(60 * n + 20))
    lines = [
        f"{names[0]}#0\t一只猫坐在沙发上",
        f"{names[1]}#0\t两个人",
        f"{names[2]}#0\t城市夜景",
        f"{names[2]}#1\t夜晚的街道",
    ]
    put(folder, f"{root}/imageid.human-written-caption.txt", "\n".join(lines) + "\n")
    put(folder, f"{root}/imageid.human-written-caption.bosonseg.txt", f"{names[0]}#0\t一 只 猫\n")
    put(folder, f"{root}/imageid.manually-translated-caption.txt", f"{names[2]}#0\t翻译\n")


def chinese_clip(folder):
    rows = {1: picture(30), 2: picture(60), 3: picture(90)}
    lines = "".join(f"{n}\t{base64.b64encode(data).decode()}\n" for n, data in rows.items())
    put(folder, "train_imgs.tsv", lines)
    texts = [
        {"text_id": 1, "text": "高级感托特包斜挎", "image_ids": [1, 2]},
        {"text_id": 2, "text": "白色连衣裙", "image_ids": [3]},
    ]
    put(folder, "train_texts.jsonl", json_lines(*texts))
    put(folder, "valid_imgs.tsv", f"7\t{base64.b64encode(picture(150)).decode()}\n")
    put(folder, "valid_texts.jsonl", json_lines({"text_id": 9, "text": "蓝帽", "image_ids": [7]}))
    put(folder, "test_imgs.tsv", f"4\t{base64.b64encode(picture(120)).decode()}\n")
    put(folder, "test_texts.jsonl", json_lines({"text_id": 3, "text": "红鞋", "image_ids": []}))


def muge(folder):
    """As Tianchi publishes it."""
    chinese_clip(folder)
    for split in ("train", "valid", "test"):
        (folder / f"{split}_imgs.tsv").rename(folder / f"MR_{split}_imgs.tsv")
        text = (folder / f"{split}_texts.jsonl").read_text()
        (folder / f"{split}_texts.jsonl").unlink()
        for ours, theirs in (("text_id", "query_id"), ('"text"', '"query_text"'), ("image_ids", "item_ids")):
            text = text.replace(ours, theirs)
        put(folder, f"MR_{split}_queries.jsonl", text.replace(', "item_ids": []', ""))


def chinese_clip_lmdb(folder):
    pairs = {"0": pickle.dumps((1, 1, "高级感托特包")), "1": pickle.dumps((2, 1, "高级感托特包"))}
    images = {"1": base64.b64encode(picture(30)), "2": base64.b64encode(picture(60))}
    for name, values, count in (("pairs", pairs, "num_samples"), ("imgs", images, "num_images")):
        (folder / "lmdb/train" / name).mkdir(parents=True)
        with (
            lmdb.open(str(folder / "lmdb/train" / name), map_size=2**20) as environment,
            environment.begin(write=True) as transaction,
        ):
            for key, value in values.items():
                transaction.put(key.encode(), value)
            transaction.put(count.encode(), str(len(values)).encode())


def aic_icc(folder):
    for split, date, n in (("train", "20170902", 1), ("validation", "20170910", 2)):
        root = f"ai_challenger_caption_{split}_{date}"
        item = {"url": "http://x", "image_id": f"{n}a.jpg", "caption": ["一个女人", "", "女人在走"]}
        put(folder, f"{root}/caption_{split}_annotations_{date}.json", json.dumps([item], ensure_ascii=False))
        put(folder, f"{root}/caption_{split}_images_{date}/{n}a.jpg", picture(70 * n))


def coco_karpathy(folder, name="coco"):
    told = [("train2014", "1.jpg", "train"), ("val2014", "2.jpg", "restval"), ("val2014", "3.jpg", "test")]
    images = []
    for n, (place, file, split) in enumerate(told):
        sentences = [{"raw": f"Picture {file}.", "tokens": []}, {"raw": "Seen."}]
        images.append({"filepath": place, "filename": file, "split": split, "sentences": sentences, "imgid": n})
        put(folder, f"{place}/{file}", picture(40 + 50 * n))
    put(folder, f"dataset_{name}.json", json.dumps({"images": images, "dataset": name}))


def flickr30k_karpathy(folder):
    coco_karpathy(folder, "flickr30k")


def flickr8k_karpathy(folder):
    coco_karpathy(folder, "flickr8k")


def multi30k_task1(folder):
    for split, pictures in (("train", ["1.jpg", "2.jpg"]), ("test_2016_flickr", ["3.jpg"])):
        put(folder, f"data/task1/image_splits/{split}.txt", "".join(f"{name}\n" for name in pictures))
        for language, word in (("en", "dog"), ("de", "Hund")):
            lines = "".join(f"{word} {name}\n" for name in pictures)
            put(folder, f"data/task1/raw/{split}.{language}.gz", gzip.compress(lines.encode()))
    for n in (1, 2, 3):
        put(folder, f"flickr30k-images/{n}.jpg", picture(40 * n))


def multi30k_task2(folder):
    put(folder, "data/task2/image_splits/train_images.txt", "1.jpg\n")
    for k in (1, 2):
        put(folder, f"data/task2/raw/train.{k}.en", f"dog {k}\n")
        put(folder, f"data/task2/raw/train.{k}.de", f"Hund {k}\n")
    put(folder, "flickr30k-images/1.jpg", picture(40))


def zero(folder):
    rows = [
        {"Url": "http://p/1", "Title": "<b>白猫</b>", "Content": "猫在家 http://a.cn/x 里", "Keywords": "猫"}
        | {"ImageKey": "k1", "ImageUrl": "http://i/1.jpg", "ImageQuery": "白猫"},
        {"Url": "http://p/2", "Title": "雪山", "Content": "", "Keywords": ""}
        | {"ImageKey": "k2", "ImageUrl": "http://i/2.jpg", "ImageQuery": "雪山日出"},
        {
            "Url": "http://p/3",
            "Title": "海",
            "Content": "",
            "ImageKey": "k3",
            "ImageUrl": "http://i/3.jpg",
            "ImageQuery": "",
        },
    ]
    put(folder, "zero_part0.json", json_lines(*rows))
    put(folder, "images/k1.jpg", picture(40))
    put(folder, "images/k2.png", picture(80, "PNG"))


def wukong(folder):
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerows(
        [("url", "caption"), ("http://i/1.jpg", "白猫, 沙发"), ("http://i/2.jpg", "雪山"), ("http://i/3.jpg", "海")]
    )
    put(folder, "wukong_100m_0.csv", out.getvalue())
    webdataset(
        folder / "fetched", [("http://i/1.jpg", "白猫, 沙发"), ("http://i/2.jpg", "雪山")], lost=["http://i/3.jpg"]
    )


def tar(folder, path: str, files: list[tuple[str, bytes]]):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as file:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    put(folder, path, out.getvalue())


def webdataset(folder, rows=(("http://i/1.jpg", "a white cat"), ("http://i/2.jpg", "雪山")), lost=("http://i/3.jpg",)):
    files, told = [], []
    for n, (url, caption) in enumerate(rows):
        key = f"{n:09d}"
        said = {"caption": caption, "url": url, "key": key, "title": f"title {n}", "width": 12, "exif": "{}"}
        said["similarity"] = float("nan")  # as Python's json writes a number that pandas lacks
        files += [(f"{key}.jpg", picture(50 * n + 40)), (f"{key}.txt", caption.encode())]
        files.append((f"{key}.json", json.dumps(said).encode()))
        told.append({"url": url, "key": key, "caption": caption, "status": "success"})
    told += [{"url": url, "key": "9", "caption": "lost", "status": "failed_to_download"} for url in lost]
    tar(folder, "00000.tar", files)
    pq.write_table(pa.Table.from_pylist(told), folder / "00000.parquet")


def huggingface(folder):
    def made(greys):
        values = {"image": [{"bytes": picture(grey), "path": None} for grey in greys]}
        values["caption"] = [[f"grey {grey}", f"灰 {grey}"] for grey in greys]
        kinds = {"image": datasets.Image(decode=False), "caption": datasets.Sequence(datasets.Value("string"))}
        return datasets.Dataset.from_dict(values, features=datasets.Features(kinds))

    datasets.disable_progress_bars()
    datasets.DatasetDict({"train": made([30, 60, 90]), "test": made([120])}).save_to_disk(str(folder))


def imagenet(folder):
    put(folder, "LOC_synset_mapping.txt", "n01440764 tench, Tinca tinca\nn01443537 goldfish\n")
    put(folder, "train/n01440764/a_1.JPEG", picture(30))
    put(folder, "train/n01443537/b_1.JPEG", picture(60))
    put(folder, "val/v_1.JPEG", picture(90))
    put(folder, "LOC_val_solution.csv", "ImageId,PredictionString\nv_1,n01443537 1 2 3 4 \n")


def tuxpaint(folder):
    """Drawings with alpha, black on nothing; two of one text; a mirrored form without a text; a text untranslated."""
    stamps = (("animals/frog", "A frog.", 20), ("animals/frog-1", "A frog.", 30), ("animals/cat", "A cat.", 10))
    for place, english, width in stamps:
        drawing = Image.new("RGBA", (40, 20), (0, 0, 0, 0))
        drawing.paste((0, 0, 0, 255), (0, 0, width, 20))
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        drawing.save(folder / f"{place}.png")
        lines = [
            english,
            "zh_CN.utf8=东西。",
            "zh_TW.utf8=東西",
            f"ga.utf8={english}",
            "en_GB.utf8=Thing",
            "pt_BR.utf8= ",
        ]
        put(folder, f"{place}.txt", "\n".join(lines))
    drawing.save(folder / "animals/frog_mirror.png")
    put(folder, "animals/frog.dat", "a setting")


MAKERS = {
    **asked.MAKERS,
    **medical.MAKERS,
    "aic-icc": aic_icc,
    "chinese-clip": chinese_clip,
    "chinese-clip-lmdb": chinese_clip_lmdb,
    "coco-cn": coco_cn,
    "coco-karpathy": coco_karpathy,
    "flickr30k-cn": flickr30k_cn,
    "flickr30k-cna": flickr30k_cna,
    "flickr30k-karpathy": flickr30k_karpathy,
    "flickr8k-cn": flickr8k_cn,
    "flickr8k-karpathy": flickr8k_karpathy,
    "huggingface": huggingface,
    "icm": icm,
    "icr": icr,
    "imagenet": imagenet,
    "iqm": iqm,
    "iqr": iqr,
    "muge": muge,
    "multi30k-task1": multi30k_task1,
    "multi30k-task2": multi30k_task2,
    "tuxpaint": tuxpaint,
    "webdataset": webdataset,
    "wukong": wukong,
    "zero": zero,
    "zero-content": zero,
    "zero-query": zero,
    "zero-title": zero,
}
