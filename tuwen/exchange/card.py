"""The model card of an exported run: what it learnt from, how long, what it scored, what may be done with it."""

from pathlib import Path
from typing import Any

from tuwen.model import Model
from tuwen.run import RECALLS, read_json


def card(run: Path, model: Model, origin: dict[str, Any], architecture: str, library: str = "transformers") -> str:
    """The text of README.md, of what the run folder holds alone; what is not known is said to be not known."""
    config = model.config
    corpus = origin["corpus"]
    done = origin.get("finished", {})
    imported = origin.get("imported")
    lines = [
        "---",
        f"library_name: {library}",
        "pipeline_tag: zero-shot-image-classification",
        "license: other",
        "tags: [tuwen, image-text-retrieval]",
        "---",
        "",
        f"# {run.name}",
        "",
        f"A `{config.system}` of tuwen, as `{architecture}` of {library}.",
        "",
        "## Training data",
        "",
    ]
    if imported:
        lines.append(f"Not trained here: imported from {imported['source']} ({imported['architecture']}).")
    else:
        lines.append(f"{corpus['name']}, in {', '.join(corpus['languages'])}; fingerprint {corpus['fingerprint']}.")
    starts = {"run": config.init, "image tower": config.image_weights, "text tower": config.text_weights}
    if config.init is not None and not isinstance(config.init, str):
        starts |= {"run": None, **{f"{name} tower": run for name, run in config.init.items()}}
    lines += [f"Started from ({what}): {where}." for what, where in starts.items() if where]
    lines += ["", "## Budget", ""]
    if done:
        train = config.train
        lines.append(
            f"{done['step']} steps of {train.batch_size} pairs, learning rate {train.lr:g}, {train.precision}, seed "
            f"{train.seed}, {done['seconds']:.0f} seconds."
        )
    else:
        lines.append("Not known." if imported else "The run had not come to its end.")
    lines += ["", "## Results", "", *_results(run), "", "## Licence", ""]
    notice = corpus.get("notice")
    lines.append(f"Of the training data: {notice}" if notice else "Of the training data: not told by the corpus.")
    lines.append("Weights derived from published ones keep their licence; look it up at the source named above.")
    return "\n".join(lines) + "\n"


def _results(run: Path) -> list[str]:
    path = run / RECALLS
    if not path.exists():
        return ["Not measured (`tuwen eval`)."]
    recalls = read_json(path)
    lines = [
        f"Retrieval on {recalls['corpus']}, {recalls['split']}: {recalls['images']} images, "
        f"{recalls['texts']} texts; percent.",
        "",
        "| language | stage | mean recall | image to text R@1 | text to image R@1 |",
        "|---|---|---|---|---|",
    ]
    for language, stages in recalls["languages"].items():
        for stage in ("first", "reranked"):
            if stage in stages:
                ways = [stages[stage].get(way, {}).get("r1") for way in ("image_to_text", "text_to_image")]
                cells = ["-" if value is None else f"{value:.1f}" for value in ways]
                lines.append(f"| {language} | {stage} | {stages[stage]['mean_recall']:.1f} | {' | '.join(cells)} |")
    return lines
