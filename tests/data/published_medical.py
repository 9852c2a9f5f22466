"""Small invented copies of public sets of radiology and of products, in exactly their published layouts."""

import gzip
import json

from tests.data.made import picture, put

FOURTEEN = (
    "Atelectasis,Cardiomegaly,Consolidation,Edema,Enlarged Cardiomediastinum,Fracture,Lung Lesion,Lung Opacity,"
    "No Finding,Pleural Effusion,Pleural Other,Pneumonia,Pneumothorax,Support Devices"
)
REPORT = """                                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)

 INDICATION:  ___F with cough  // eval for pneumonia

 COMPARISON:  None

 FINDINGS:

 The lungs of study {n}
 are clear.  No dog is seen.

 IMPRESSION:

 No acute process in {n}.
"""


def mimic_cxr(folder, ending="jpg", kind="JPEG"):
    """Two studies of train, the second without a lateral view; one each of validate and test, that without headers."""
    columns = (
        "dicom_id,subject_id,study_id,PerformedProcedureStepDescription,ViewPosition,Rows,Columns,StudyDate,StudyTime"
    )
    metadata, splits, labels = [columns], ["dicom_id,study_id,subject_id,split"], [f"subject_id,study_id,{FOURTEEN}"]
    studies = (("10000032", "50414267", "train", ("LATERAL", "PA")), ("10000032", "53189527", "train", ("AP",)))
    studies += (("10000764", "57375967", "validate", ("AP", "LL")), ("10000898", "50771383", "test", ("PA", "LATERAL")))
    for n, (patient, study, split, views) in enumerate(studies):
        place = f"files/p{patient[:2]}/p{patient}/s{study}"
        headless = " FINAL REPORT\n Two views of the chest.\n\n No dog in 3.\n\n"
        put(folder, f"{place}.txt", headless if split == "test" else REPORT.format(n=n))
        labels.append(f"{patient},{study},,1.0,,-1.0,,,,0.0,,,,,,")
        for k, view in enumerate(views):
            name = f"02aa804e-bde0afdd-112c0b34-7bc16630-4e38401{n}{k}"
            metadata.append(f'{name},{patient},{study},"CHEST (PA AND LAT)",{view},3056,2544,21800506,213014.531')
            splits.append(f"{name},{study},{patient},{split}")
            put(folder, f"{place}/{name}.{ending}", picture(50 * n + 20 * k + 20, kind))
    put(folder, "mimic-cxr-2.0.0-metadata.csv", "\n".join(metadata) + "\n")
    put(folder, "mimic-cxr-2.0.0-split.csv.gz", gzip.compress(("\n".join(splits) + "\n").encode(), mtime=0))
    put(folder, "mimic-cxr-2.0.0-chexpert.csv", "\n".join(labels) + "\n")


def open_i(folder):
    """Study 6 is of the test split by its name; study 3 has one picture, and an impression alone."""
    for n, count in ((1, 2), (3, 1), (6, 2)):
        said = {
            "COMPARISON": "None.",
            "INDICATION": "Chest pain",
            "FINDINGS": f"No dog in {n}. XXXX.",
            "IMPRESSION": f"Clear {n}.",
        }
        if count == 1:
            said["FINDINGS"] = ""
        names = [f"CXR{n}_1_IM-000{n}-{view}" for view in (4001, 3001)[:count]]
        text = "".join(f'<AbstractText Label="{label}">{words}</AbstractText>' for label, words in said.items())
        shown = "".join(
            f'<parentImage id="{name}"><figureId>F{k}</figureId><caption>PA and lateral chest</caption>'
            f'<panel type="single"><url>/hadoop/storage/radiology/extract/{name}.jpg</url></panel></parentImage>'
            for k, name in enumerate(names)
        )
        mesh = "<MeSH><major>Lung/hypoinflation</major><major>Opacity</major></MeSH>"
        article = f"<MedlineCitation><Article><Abstract>{text}</Abstract></Article></MedlineCitation>"
        head = f'<?xml version="1.0" encoding="utf-8"?><eCitation><meta type="rr"/><uId id="CXR{n}"/>'
        put(folder, f"ecgen-radiology/{n}.xml", f"{head}<!-- dog -->{article}{mesh}{shown}</eCitation>")
        for k, name in enumerate(names):
            put(folder, f"NLMCXR_png/{name}.png", picture(30 * n + 10 * k, "PNG"))


def chexpert(folder):
    head = "Path,Sex,Age,Frontal/Lateral,AP/PA,"
    head += "No Finding,Enlarged Cardiomediastinum,Cardiomegaly,Lung Opacity,Lung Lesion,Edema,Consolidation,Pneumonia,"
    head += "Atelectasis,Pneumothorax,Pleural Effusion,Pleural Other,Fracture,Support Devices"
    for n, split in enumerate(("train", "valid")):
        rows = []
        for k, (view, angle) in enumerate((("frontal", "AP"), ("lateral", ""))):
            path = f"CheXpert-v1.0-small/{split}/patient0000{n}/study1/view{k + 1}_{view}.jpg"
            rows.append(f"{path},Female,68,{view.capitalize()},{angle},{'1.0,,0.0,-1.0' + ',' * 10}")
            put(folder, path, picture(80 * n + 40 * k + 40))
        put(folder, f"CheXpert-v1.0-small/{split}.csv", "\n".join([head, *rows]) + "\n")
    labels = head.replace("Sex,Age,Frontal/Lateral,AP/PA,", "")
    path = "test/patient00009/study1/view1_frontal.jpg"
    put(folder, "CheXpert-v1.0-small/test_labels.csv", f"{labels}\n{path},{'0.0,' * 13}1.0\n")
    put(folder, f"CheXpert-v1.0-small/{path}", picture(200))


def roco(folder):
    for n, split in enumerate(("train", "validation", "test")):
        place = f"data/{split}/radiology"
        put(folder, f"{place}/captions.txt", f"ROCO_0000{n}\t A dog in {split}, 1.\nROCO_0010{n}\t Its lungs, {n}.\n")
        links = [
            f"ROCO_0{k}0{n}\twget -r ftp://f/1e/ed/PMC39{k}{n}.tar.gz -P /path/to/Dir\tX-{n}.jpg" for k in ("00", "01")
        ]
        put(folder, f"{place}/dlinks.txt", "\n".join(links) + "\n")
        put(folder, f"{place}/cuis.txt", f"ROCO_0000{n}\t\tC4300092\tC0040395\nROCO_0010{n}\t\tC0024109\n")
        put(folder, f"{place}/images/PMC3900{n}_X-{n}.jpg", picture(60 * n + 20))
        put(folder, f"{place}/images/ROCO_0010{n}.jpg", picture(60 * n + 40))
        put(folder, f"data/{split}/non-radiology/captions.txt", f"ROCO_0090{n}\t A drawing.\n")


def roco_v2(folder):
    for n, split in enumerate(("train", "valid", "test")):
        name = f"ROCOv2_2023_{split}_00000{n}"
        put(folder, f"{split}_captions.csv", f'ID,Caption\n{name},"A dog, in {split}."\n')
        put(folder, f"{split}_concepts.csv", f"ID,CUIs\n{name},C0040405;C0817096\n")
        put(folder, f"{split}/{name}.jpg", picture(60 * n + 40))


def product1m(folder):
    """The item of the gallery is a query of the test split too, under two addresses of its picture."""
    rows = {
        "train": [("559702826062", "韩国AHC黄金水乳套装", None)],
        "dev": [("623174602918", "AHC黄金套盒正品", "AHC 黄金面霜#;#AHC 黄金水#;#AHC 黄金水")],
        "test": [("613221770856", "AHC黄金三件套装", "AHC 黄金面霜#;#AHC 黄金水")],
        "gallery": [("613221770857", "AHC面霜", "AHC 黄金面霜"), ("613221770858", "AHC水", "AHC 黄金水")],
    }
    grey = 20
    for split, several in rows.items():
        lines = []
        for item, title, products in several:
            urls = (
                f"https://img.alicdn.com/imgextra/i3/3517873026/O1CN_!!{item}.jpg",
                f"http://g.aliyuncs.com/a/{item}.jpg",
            )
            lines.append("#####".join([item, title, *urls, *([products] if products else [])]))
            put(folder, f"images/{item}.jpg", picture(grey))
            grey += 40
        put(folder, f"product1m_{split}_ossurl_v2.txt", "\n".join(lines) + "\n")


def m5product(folder):
    for n, split in enumerate(("train", "query", "gallery")):
        item = f"60000{n}"
        value = {"title": f"狗粮{n}", "pv": "品牌#:#AHC#;#颜色#:#金", "url": f"http://i/{n}.jpg"}
        put(folder, f"{split}.json", json.dumps({item: value | ({"label": "7"} if n else {})}, ensure_ascii=False))
        put(folder, f"images/{item}.jpg", picture(60 * n + 40))


MAKERS = {
    "chexpert": chexpert,
    "m5product": m5product,
    "mimic-cxr": mimic_cxr,
    "mimic-cxr-studies": mimic_cxr,
    "open-i": open_i,
    "open-i-studies": open_i,
    "product1m": product1m,
    "roco": roco,
    "roco-v2": roco_v2,
}
