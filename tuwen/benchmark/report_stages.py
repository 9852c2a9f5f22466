"""What the second stage did, in plain words, and how far every system had come in equal seconds."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from tuwen.benchmark.report_pieces import table, title
from tuwen.benchmark.statistics import gain_interval
from tuwen.run import METRICS, RANKS, SCORE, read_json
from tuwen.similarity.final import WEIGHTS, weight_name, weight_named
from tuwen.speech import chosen_language, spoken
from tuwen.training.log import read_metrics

Record = Mapping[str, Any]


def section(systems: Mapping[str, Any], runs: Mapping[str, Sequence[Path]]) -> str:
    """What re-ranking did, a sentence a run; nothing where no system re-ranks. systems: of the comparison."""
    if not any("second_stage" in seed for system in systems.values() for seed in system["seeds"]):
        return ""
    of_all = [pair for name, system in systems.items() for pair in effects_in_words(name, system["seeds"], runs[name])]
    both = '<li>{}<br><span lang="zh">{}</span></li>' if chosen_language() == "en" else "<li>{1}</li>"
    items = "".join(both.format(escape(english), escape(chinese)) for english, chinese in of_all)
    return title("What the second stage did", "第二阶段做了什么") + f"<ul>{items}</ul>"


def effects_in_words(name: str, seeds: Sequence[Record], folders: Sequence[Path]) -> list[tuple[str, str]]:
    """(English, Chinese) a seed, on what re-ranking did to a system's recall.

    seeds: the retrieval JSON of every seed, with its "run". folders: of the runs that are still there.
    """
    by_name = {seed["run"]: folder for seed in seeds for folder in folders if f"/{folder}".endswith(f"/{seed['run']}")}
    if not any("second_stage" in seed for seed in seeds):
        return [(f"{name} has one stage: its vectors alone rank.", f"{name} 只有一个阶段：只按向量排序。")]
    return [
        _sentence(spoken(name if len(seeds) == 1 else f"{name}, seed {seed['seed']}"), seed, by_name[seed["run"]])
        for seed in seeds
        if "second_stage" in seed and seed["run"] in by_name
    ]


def _sentence(name: str, seed: Record, run: Path) -> tuple[str, str]:
    rule = seed["second_stage"]
    if rule["score"] == "fitted" and not rule["weight"]:
        return _unused(name, read_json(run / SCORE) if (run / SCORE).exists() else {})
    if rule["score"] == "published":
        how, in_chinese = "is re-ranked by its paper's own rule", "按论文自己的规则重排"
    elif rule["weight"] == "match":
        how, in_chinese = "is re-ranked by the match alone, as validation has it", "按验证集的选择只用匹配重排"
    else:
        weight = f"{rule['weight']:g}"
        how = f"is ranked by first stage + {weight} × match, as validation has it"
        in_chinese = f"按验证集选定的“第一阶段 + {weight} × 匹配”排序"
    effects = [_effect(run, language, stages) for language, stages in seed["languages"].items() if "gain" in stages]
    cost = f"{rule['ms_a_query']:.1f}"
    return (
        f"{name} {how}. On this split that changed mean recall by {', '.join(english for english, _ in effects)}; "
        f"it costs {cost} ms a query.",
        f"{name} {in_chinese}。在这一划分上，平均召回的变化：{'，'.join(chinese for _, chinese in effects)}；"
        f"每次查询 {cost} 毫秒。",
    )


def _effect(run: Path, language: str, stages: Record) -> tuple[str, str]:
    """ "+0.8 points in en (95 % between +0.1 and +1.5: a gain)", and the same in Chinese."""
    points = f"{stages['gain']:+.1f}"
    if not (run / RANKS).exists():
        return f"{points} points in {language}", f"{language} {points} 点"
    low, high = gain_interval(load_file(run / RANKS), language)
    verdict = (
        ("a gain", "有收益") if low > 0 else ("a loss", "有损失") if high < 0 else ("no more than chance", "不超出偶然")
    )
    between = f"{low:+.1f}", f"{high:+.1f}"
    return (
        f"{points} points in {language} (95 % between {between[0]} and {between[1]}: {verdict[0]})",
        f"{language} {points} 点（95 % 区间 {between[0]} 至 {between[1]}：{verdict[1]}）",
    )


def _unused(name: str, score: Record) -> tuple[str, str]:
    """Of a run whose weight is 0. score: its score.json, {} where it has none."""
    tried = score.get("mean_recall", {})
    english, chinese = f"{name} keeps the order of its first stage", f"{name} 保持第一阶段的顺序"
    if not tried:
        return f"{english}: {score.get('why', 'no weight was settled')}.", f"{chinese}：没有可用的权重（权重 0）。"
    gains = {weight: tried[str(weight)] - tried["0.0"] for weight in map(weight_name, WEIGHTS)}
    best = max((weight for weight in gains if weight_named(weight)), key=lambda weight: gains[weight])
    alone = gains["match"]
    label = ("the match alone", "只用匹配")
    if best != "match":
        label = f"first stage + {best:g} × match", f"第一阶段 + {best:g} × 匹配"
    return (
        f"{english}: on {score['queries']} validation queries no weight of the match beat it by more than chance (at "
        f"best {gains[best]:+.1f} points, by {label[0]}; the match alone {alone:+.1f}). The cross encoder is not run.",
        f"{chinese}：在 {score['queries']} 条验证查询上，没有哪个匹配权重超出偶然地胜过它"
        f"（最好的 {gains[best]:+.1f} 点，{label[1]}；只用匹配 {alone:+.1f} 点）。"
        "不运行交叉编码器。",
    )


def equal_seconds(runs: Mapping[str, Sequence[Path]]) -> str:
    """The table of `at_equal_seconds`; nothing where there is nothing to compare."""
    reached = at_equal_seconds(runs)
    if not reached:
        return ""
    languages = list(next(iter(reached.values()))["recalls"])
    heads = ["System 系统", "Training seconds 训练秒数", "Step by then 当时步数"]
    heads += [f"{language}: {when}" for language in languages for when in ("then 当时", "end 结束")]
    rows = [
        [escape(name), f"{at['seconds']:.0f}", f"{at['step']:.0f}"]
        + [f"{recall:.1f}" for language in languages for recall in at["recalls"][language]]
        for name, at in reached.items()
    ]
    note = spoken(
        "What each had when the fastest was done: mean recall of the first stage on validation pictures. A run's rate "
        "falls towards its end, so a run looked at half-way is worth less than one planned to be so short."
    )
    return title("At equal seconds", "相同时间") + f'<p class="note">{note}</p>' + table(heads, rows, texts=1)


def at_equal_seconds(runs: Mapping[str, Sequence[Path]]) -> dict[str, dict[str, Any]]:
    """By system: "seconds" of its whole training, and what it had when the fastest run of its seed was done: "step",
    and "recalls", by language the first stage's mean recall on validation (then, in the end). Means over seeds.

    Systems whose runs have no evaluations are left out; with fewer than two, there is nothing to compare.
    """
    evaluations = {
        name: [_evaluations(read_metrics(run / METRICS)) for run in folders] for name, folders in runs.items()
    }
    evaluations = {name: seeds for name, seeds in evaluations.items() if seeds and all(seeds)}
    if len(evaluations) < 2 or len({len(seeds) for seeds in evaluations.values()}) > 1:
        return {}
    ends = [min(seed[-1]["seconds"] for seed in paired) for paired in zip(*evaluations.values(), strict=True)]
    out = {}
    for name, seeds in evaluations.items():
        then = [
            [record for record in seed if record["seconds"] <= end][-1] for seed, end in zip(seeds, ends, strict=True)
        ]
        languages = [language for language in seeds[0][-1]["recalls"] if all(language in r["recalls"] for r in then)]
        out[name] = {
            "seconds": _mean([seed[-1]["seconds"] for seed in seeds]),
            "step": _mean([record["step"] for record in then]),
            "recalls": {
                language: tuple(_mean([r["recalls"][language] for r in at]) for at in (then, [s[-1] for s in seeds]))
                for language in languages
            },
        }
    return out


def _evaluations(records: Sequence[Record]) -> list[dict[str, Any]]:
    """{"step", "seconds", "recalls": {language: first stage's}} of every evaluation, the start's at 0 seconds."""
    out = []
    for record in records:
        recalls = {
            language: stages["first"]["mean_recall"]
            for language, stages in record.get("eval", {}).items()
            if isinstance(stages, Mapping) and isinstance(stages.get("first"), Mapping)
        }
        if recalls:
            out.append({"step": record["step"], "seconds": record.get("seconds", 0.0), "recalls": recalls})
    return out


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
