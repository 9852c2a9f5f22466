"""The survey's Table 1: 23 published models on its axes. Its cells are coarse; a system's own entry wins over them.

WenLan stands under fusion in the survey, and the data of FLAVA lack most of its corpus: kept as printed.
"""

from tuwen.systems.survey.axes import Axes


def _row(text: str, vision: str, interaction: str, objectives: str, data: str, decoder="none", parts="") -> Axes:
    seen, met, learned, on = (tuple(keys.split()) for keys in (vision, interaction, objectives, data))
    return Axes(text, seen, met, learned, on, decoder, tuple(parts.split()))


TABLE: dict[str, Axes] = {
    "VisualBERT": _row("bert", "region", "single_stream", "mlm itm", "coco"),
    "UNITER": _row("bert", "region", "single_stream", "mlm itm wra mrfr mrc", "cc3m coco vg_data sbu"),
    "OSCAR": _row("bert", "region", "single_stream", "mlm itm", "cc3m coco sbu flickr30k vqa_data", parts="concepts"),
    "InterBERT": _row("bert", "region", "single_stream", "mlm mrc itm", "cc3m coco sbu"),
    "ViLBERT": _row("bert", "region", "dual_stream", "mlm mrc itm", "cc3m"),
    "LXMERT": _row("bert", "region", "dual_stream", "mlm itm mrc mrfr vqa", "coco vg_data vqa_data"),
    "VL-BERT": _row("bert", "region grid", "single_stream", "mlm mrc", "cc3m"),
    "Pixel-BERT": _row("bert", "grid", "single_stream", "mlm itm", "coco vg_data"),
    "Unified VLP": _row("unilm", "region", "single_stream", "mlm seq2seq_lm", "cc3m", "causal"),
    "UNIMO": _row(
        "roberta", "region", "single_stream", "mlm seq2seq_lm mrc mrfr cmcl", "coco cc3m vg_data sbu", "causal"
    ),
    "SOHO": _row("bert", "grid", "single_stream", "mlm mvm itm", "coco vg_data", parts="dictionary"),
    "VL-T5": _row("t5/bart", "region", "single_stream", "mlm vqa itm vg_task gc", "coco vg_data", "seq2seq"),
    "XGPT": _row("transformer", "region", "single_stream", "ic mlm dae mrfr", "cc3m", "seq2seq"),
    "Visual Parsing": _row("bert", "region patch", "dual_stream", "mlm itm mfr", "coco vg_data"),
    "ALBEF": _row("bert", "patch", "dual_stream", "mlm itm cmcl", "cc3m coco vg_data sbu"),
    "SimVLM": _row("vit", "patch", "single_stream", "prefix_lm", "c4 align", "seq2seq"),
    "WenLan": _row("roberta", "region grid", "dual_stream", "cmcl", "ruc_cas_wenlan"),
    "ViLT": _row("vit", "patch", "single_stream", "mlm itm", "cc3m coco vg_data sbu"),
    "CLIP": _row("gpt2", "patch grid", "dot_product", "cmcl", "private"),
    "ALIGN": _row("bert", "grid", "dot_product", "cmcl", "private"),
    "DeCLIP": _row("gpt2", "patch grid", "dot_product", "cmcl mlm cl", "cc3m private"),
    "VLMo": _row("bert", "patch", "shared_experts", "mlm itm cmcl", "cc3m coco vg_data sbu"),
    "FLAVA": _row("vit", "patch", "stacked", "mmm itm cmcl", "cc3m coco vg_data sbu redcaps", parts="codebook"),
}
