"""Small invented copies of public sets of questions, statements and phrases, in exactly their published layouts."""

import json

from tests.data.made import json_lines, picture, put


def vqa_v2(folder):
    for n, (split, place) in enumerate((("train", "train2014"), ("val", "val2014"), ("test", "test2015"))):
        asked = [
            {"image_id": n + 1, "question": f"What is in {split}?", "question_id": 1000 * (n + 1) + k} for k in (0, 1)
        ]
        head = {"info": {"version": "2.0"}, "task_type": "Open-Ended", "data_type": "mscoco", "data_subtype": place}
        put(folder, f"v2_OpenEnded_mscoco_{place}_questions.json", json.dumps({**head, "questions": asked}))
        put(folder, f"{place}/COCO_{place}_{n + 1:012d}.jpg", picture(40 * n + 40))
        if split != "test":
            said = [["a dog"] * 7 + ["dog"] * 3, ["yes"] * 10]
            notes = [
                {
                    "question_type": "what is in",
                    "multiple_choice_answer": words[0],
                    "answers": [
                        {"answer": word, "answer_confidence": "maybe", "answer_id": j}
                        for j, word in enumerate(words, 1)
                    ],
                    "image_id": n + 1,
                    "answer_type": "other",
                    "question_id": question["question_id"],
                }
                for question, words in zip(asked, said, strict=True)
            ]
            put(folder, f"v2_mscoco_{place}_annotations.json", json.dumps({**head, "annotations": notes}))


def gqa_entry(picture: str, question: str, answer: str) -> dict:
    return {
        "semantic": [{"operation": "select", "dependencies": [], "argument": "dog (1)"}],
        "entailed": [],
        "equivalent": ["1"],
        "question": question,
        "imageId": picture,
        "isBalanced": True,
        "groups": {"global": None, "local": "1-dog"},
        "answer": answer,
        "semanticStr": "select: dog (1)",
        "annotations": {"answer": {}, "question": {"2": "1"}, "fullAnswer": {}},
        "types": {"detailed": "existRelS", "semantic": "rel", "structural": "verify"},
        "fullAnswer": f"{answer.capitalize()}, it is.",
    }


def gqa(folder):
    for n, split in enumerate(("train", "val", "testdev", "test")):
        entry = gqa_entry(f"n{n}0101", f"Is there a dog in {split}?", "yes")
        if split == "test":
            entry = {key: entry[key] for key in ("question", "imageId", "isBalanced")}
        put(folder, f"{split}_balanced_questions.json", json.dumps({f"{n}201": entry}))
        put(folder, f"images/n{n}0101.jpg", picture(40 * n + 40))


def xgqa(folder):
    for language, words in (("en", "Is there a dog?"), ("zh", "图中有狗吗？"), ("de", "Gibt es einen Hund?")):
        entries = {"201": gqa_entry("n20101", words, "yes"), "202": gqa_entry("n20102", words, "no")}
        put(folder, f"zero_shot/testdev_balanced_questions_{language}.json", json.dumps(entries, ensure_ascii=False))
    put(folder, "few_shot/de/train_1.json", json.dumps({"203": gqa_entry("n20103", "Wo ist er?", "left")}))
    put(folder, "few_shot/de/dev.json", json.dumps({"204": gqa_entry("n20103", "Wer ist er?", "dog")}))
    for n in (1, 2, 3):
        put(folder, f"images/n2010{n}.jpg", picture(40 * n))


def daquar(folder):
    lines = "what is on the table in the image1 ?\nchair, table\nhow many dogs are there in the image2 ?\n2\n"
    put(folder, "qa.894.raw.train.txt", lines)
    put(folder, "qa.894.raw.test.txt", "what is left of the dog in image3 ?\nlamp\n")
    for n in (1, 2, 3):
        put(folder, f"nyu_depth_images/image{n}.png", picture(40 * n, "PNG"))


def vqa_rad(folder):
    def entry(qid, kind, name, question, answer, closed):
        shared = {"qid_linked_id": "03f451ca", "image_case_url": "https://medpix/1", "image_organ": "HEAD"}
        shared |= {"evaluation": "not evaluated", "question_rephrase": "NULL", "question_relation": "NULL"}
        told = {"qid": qid, "phrase_type": kind, "image_name": name, "question": question, "answer": answer}
        return told | shared | {"question_frame": "NULL", "question_type": "PRES", "answer_type": closed}

    entries = [
        entry(0, "freeform", "synpic1.jpg", "Are there dogs?", "Yes", "CLOSED "),
        entry(1, "para", "synpic1.jpg", "How many are there?", 2, "OPEN"),
        entry(2, "test_freeform", "synpic2.jpg", "Where?", "left", "OPEN"),
    ]
    put(folder, "VQA_RAD Dataset Public.json", json.dumps(entries))
    for n in (1, 2):
        put(folder, f"VQA_RAD Image Folder/synpic{n}.jpg", picture(40 * n))


def slake(folder):
    for n, (file, split) in enumerate((("train", "train"), ("validate", "val"), ("test", "test"))):
        shared = {"img_id": n, "img_name": f"xmlab{n}/source.jpg", "location": "Lung", "modality": "X-Ray"}
        shared |= {"base_type": "vqa", "content_type": "Abnormality", "triple": ["vhead", "_", "_"]}
        asked = [("en", f"Is there a dog in {split}?", "Yes", "CLOSED"), ("zh", "图中有什么？", "狗", "OPEN")]
        entries = [
            shared | {"question": words, "answer": answer, "q_lang": language, "answer_type": kind, "qid": 10 * n + k}
            for k, (language, words, answer, kind) in enumerate(asked)
        ]
        put(folder, f"{file}.json", json.dumps(entries, ensure_ascii=False))
        put(folder, f"imgs/xmlab{n}/source.jpg", picture(60 * n + 40))
        put(folder, f"imgs/xmlab{n}/mask.png", picture(250, "PNG"))
        put(folder, f"imgs/xmlab{n}/question.json", "[]")


def vqa_med(folder):
    for n, (split, place) in enumerate((("train", "Training"), ("val", "Validation"))):
        top, line = f"ImageClef-2019-VQA-Med-{place}", f"synpic4{n}|what organ has the dog?|dog, {n}"
        plane = f"synpic4{n}|in what plane is it?|axial"
        put(folder, f"{top}/All_QA_Pairs_{split}.txt", f"{line}\n{plane}\n")
        put(folder, f"{top}/QAPairsByCategory/C3_Organ_{split}.txt", f"{line}\n")
        put(folder, f"{top}/{split.capitalize()}_images/synpic4{n}.jpg", picture(60 * n + 40))
    put(folder, "VQAMed2019_Test_Questions.txt", "synpic49|is it a dog?\n")
    put(folder, "VQAMed2019_Test_Questions_w_Ref_Answers.txt", "synpic49|abnormality|is it a dog?|yes\n")
    put(folder, "VQAMed2019_Test_Images/synpic49.jpg", picture(200))


def nlvr(folder):
    for n, split in enumerate(("train", "dev", "test")):
        boxes = [[{"y_loc": 80, "type": "triangle", "color": "#0099ff", "x_loc": 80, "size": 20}], [], []]
        line = {"sentence": f"There is a dog in {split}.", "identifier": f"{n}72-1", "directory": str(n)}
        line |= {"label": "true" if n else "false", "structured_rep": boxes, "evals": {"r0": "true"}}
        put(folder, f"{split}/{split}.json", json_lines(line))
        for k in (0, 4):
            put(folder, f"{split}/images/{n}/{split}-{n}72-1-{k}.png", picture(40 * n + 10 * k + 20, "PNG"))


def nlvr2(folder):
    for n, (file, split) in enumerate((("train", "train"), ("dev", "dev"), ("test1", "test1"))):
        lines = []
        for k, label in ((0, "True"), (1, "False")):
            line = {"validation": {"9": "True"}, "sentence": f"Both show a dog in {split}.", "label": label}
            line |= {"left_url": "http://i/1.jpg", "right_url": "http://i/2.jpg", "writer": "9", "synset": "dog"}
            line |= {"query": "group of dogs_1", "identifier": f"{split}-1{n}-{k}-0"}
            lines.append(line)
            for j in (0, 1):
                put(folder, f"images/{file}/{split}-1{n}-{k}-img{j}.png", picture(60 * n + 20 * k + 10 * j + 20, "PNG"))
        put(folder, f"{file}.json", json_lines(*lines))


def entailment_line(picture: str, number: int, text: str, label: str) -> dict:
    return {
        "annotator_labels": [label] * 5,
        "captionID": f"{picture}.jpg#{number}",
        "gold_label": label,
        "pairID": f"{picture}.jpg#{number}r1n",
        "sentence1": "A caption that is not to be read.",
        "sentence1_binary_parse": "( A caption )",
        "sentence2": text,
        "sentence2_parse": "(ROOT)",
        "Flickr30K_ID": picture,
        "Flikr30kID": f"{picture}.jpg",
    }


def snli_ve(folder):
    for n, split in enumerate(("train", "dev", "test")):
        lines = [
            entailment_line(f"47{n}", k, f"A dog {split}.", label) for k, label in enumerate(("neutral", "entailment"))
        ]
        put(folder, f"snli_ve_{split}.jsonl", json_lines(*lines))
        put(folder, f"flickr30k-images/47{n}.jpg", picture(40 * n + 40))


def xvnli(folder):
    for language, text in (("en", "A dog."), ("fr", "Un chien."), ("ru", "Собака.")):
        lines = [entailment_line("471", 0, text, "entailment"), entailment_line("472", 0, text, "contradiction")]
        put(folder, f"annotations/{language}/test.jsonl", json_lines(*lines))
        put(folder, f"annotations/{language}/train_1.jsonl", json_lines(lines[0]))
        put(folder, f"annotations_machine-translate/{language}/test.jsonl", json_lines(*lines))
    for n in (1, 2):
        put(folder, f"flickr30k-images/47{n}.jpg", picture(40 * n + 40))


def refcoco(folder, stem="refcoco", last="testA"):
    """As MDETR publishes it."""
    for n, split in enumerate(("train", "val", last)):
        name = f"COCO_train2014_00000000000{n}.jpg"
        pictures, boxes = [], []
        for k, words in enumerate(("left dog", "the brown dog")):
            shown = {"file_name": name, "height": 8, "width": 12, "id": 10 * n + k, "original_id": 500 + n}
            pictures.append(shown | {"caption": words, "dataset_name": stem, "tokens_negative": [[0, 4]]})
            place = {"area": 18.0, "iscrowd": 0, "image_id": 10 * n + k, "category_id": 18, "id": 10 * n + k}
            boxes.append(place | {"bbox": [3.0, 2.0, 6.0, 4.0], "original_id": 7, "tokens_positive": [[0, 4]]})
        content = {"info": [], "licenses": [], "images": pictures, "annotations": boxes, "categories": []}
        put(folder, f"finetune_{stem}_{split}.json", json.dumps(content))
        put(folder, f"train2014/{name}", picture(40 * n + 40))


def refcoco_plus(folder):
    """As the pickle of refer's refs(unc).p is written to JSON."""
    refs, pictures, boxes = [], [], []
    for n, split in enumerate(("train", "val", "testA")):
        name = f"COCO_train2014_00000000000{n}.jpg"
        said = [
            {"tokens": words.split(), "raw": words, "sent_id": 10 * n + k, "sent": words}
            for k, words in enumerate(("brown dog", "dog"))
        ]
        ref = {"sent_ids": [10 * n, 10 * n + 1], "file_name": f"COCO_train2014_00000000000{n}_7.jpg", "ann_id": 70 + n}
        refs.append(ref | {"ref_id": n, "image_id": n, "split": split, "sentences": said, "category_id": 18})
        pictures.append({"license": 1, "file_name": name, "height": 8, "width": 12, "id": n})
        boxes.append({"segmentation": [[0, 1, 2]], "area": 18.0, "image_id": n, "bbox": [3, 2, 6, 4], "id": 70 + n})
        put(folder, f"images/train2014/{name}", picture(40 * n + 40))
    put(folder, "refcoco+/refs(unc).json", json.dumps(refs))
    content = {"info": {}, "images": pictures, "annotations": boxes, "categories": [{"id": 18, "name": "dog"}]}
    put(folder, "refcoco+/instances.json", json.dumps(content))


def refcocog(folder):
    refcoco(folder, "refcocog", "test")


def flickr30k_entities(folder):
    for n, split in enumerate(("train", "val", "test")):
        name = f"10{n}"
        put(folder, f"{split}.txt", f"{name}\n")
        caption = "[/EN#1/people/clothing A man] with [/EN#2/animals two dogs] in [/EN#0/notvisual the air] ."
        put(folder, f"Sentences/{name}.txt", f"{caption}\n[/EN#2/animals Dogs] run on [/EN#3/scene grass] .\n")
        boxes = [("1", "1", "1", "6", "8"), ("2", "7", "1", "9", "4"), ("2", "10", "5", "12", "8")]
        told = "".join(
            f"<object><name>{chain}</name><bndbox><xmin>{a}</xmin><ymin>{b}</ymin><xmax>{c}</xmax><ymax>{d}</ymax></bndbox></object>"
            for chain, a, b, c, d in boxes
        )
        told += "<object><name>3</name><scene>1</scene><nobndbox>1</nobndbox></object>"
        size = "<size><width>12</width><height>8</height><depth>3</depth></size>"
        xml = f"<annotation><filename>{name}.jpg</filename>{size}{told}</annotation>"
        put(folder, f"Annotations/{name}.xml", xml)
        put(folder, f"flickr30k-images/{name}.jpg", picture(40 * n + 40))


def coco_captions(folder):
    for n, split in enumerate(("train", "val", "test")):
        name = f"COCO_{split}2014_00000000010{n}.jpg"
        shown = {"license": 5, "file_name": name, "coco_url": "http://i", "height": 8, "width": 12, "id": 100 + n}
        content = {
            "info": {},
            "images": [shown | {"date_captured": "2013-11-14", "flickr_url": "http://f"}],
            "licenses": [],
        }
        stem = "image_info_test2014" if split == "test" else f"captions_{split}2014"
        if split != "test":
            content["annotations"] = [{"image_id": 100 + n, "id": 10 * n + k, "caption": f"A dog {k}."} for k in (0, 1)]
        put(folder, f"annotations/{stem}.json", json.dumps(content))
        put(folder, f"{split}2014/{name}", picture(40 * n + 40))


MAKERS = {
    "coco-captions": coco_captions,
    "daquar": daquar,
    "flickr30k-entities": flickr30k_entities,
    "gqa": gqa,
    "nlvr": nlvr,
    "nlvr2": nlvr2,
    "refcoco": refcoco,
    "refcoco-plus": refcoco_plus,
    "refcocog": refcocog,
    "slake": slake,
    "snli-ve": snli_ve,
    "vqa-med-2019": vqa_med,
    "vqa-rad": vqa_rad,
    "vqa-v2": vqa_v2,
    "xgqa": xgqa,
    "xvnli": xvnli,
}
