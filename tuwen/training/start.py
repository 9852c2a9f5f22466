"""How a run begins: its folder, its tokenizer, its first weights."""

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tuwen import systems, tasks
from tuwen.config import dump
from tuwen.data.corpus import Corpus, Record, all_texts
from tuwen.data.lexicons.files import read_dictionary
from tuwen.data.lexicons.open import open_lexicon
from tuwen.data.private import hides
from tuwen.data.sources import PAIRS, languages_of
from tuwen.data.text import Tokenizer
from tuwen.errors import UserError, quoted
from tuwen.nn.backbones import ImageBackbone, TextBackbone
from tuwen.nn.initial import copy_students, initialise
from tuwen.nn.memory import refuse_beyond_memory
from tuwen.nn.published.tokenizer import trimmed
from tuwen.nn.towers import ImageTower, TextTower, fitted_positions
from tuwen.nn.transformer import Block
from tuwen.run import CONFIG, SKIPPED, START, STATE, TOKENIZER, WEIGHTS, provenance, read_json, write_provenance
from tuwen.systems.system import System
from tuwen.training import checkpoint, log, parallel, towers
from tuwen.training.config import RunConfig

_OF_A_RUN = ("dropout", "locked", "projection", "side", "length")  # in what equal towers may differ


def language_table(run: Path, config: RunConfig, corpora: Mapping[str, Corpus], new: bool) -> tuple[str, ...]:
    """The table that `Texts.language` indexes: an old run's own; of a new one, that of the run whose weights it starts
    from, which know its languages by their places, and then what its corpora add.
    """
    if not new:
        known = provenance(run)["corpus"]["languages"]
    else:
        source = words_of(config)
        known = provenance(init_run(source)[0])["corpus"]["languages"] if source else ()
    return languages_of(corpora, known)


def prepare(
    run: Path,
    config: RunConfig,
    corpora: Mapping[str, Corpus],
    tokenizer: Tokenizer | None,
    place: torch.device,
    languages: tuple[str, ...],
    teachers: Mapping[str, Mapping[str, str]],
) -> None:
    """Makes a new run's folder with what must be known of it; or checks that an old one is of these very corpora.

    corpora: "pairs" and the further sources of the run. tokenizer: of a new run; None for an old one. An old run
    whose corpus lies elsewhere now has its new place in its config from now on. teachers: where the frozen runs come
    from, by role, with the digest of their weights.

    Raises:
        UserError: if the corpus or a teacher has changed since the run began.
    """
    origin = log.new_provenance(corpora[PAIRS], config.train.precision, place)
    origin["corpus"]["languages"] = list(languages)
    others = {name: corpus for name, corpus in corpora.items() if name != PAIRS}
    origin["sources"] = {
        name: {"name": c.name, "fingerprint": c.fingerprint, "rows": len(c)} for name, c in others.items()
    }
    if teachers:
        origin["teachers"] = {role: dict(of) for role, of in teachers.items()}
    parallel.barrier()  # no process looks at the folder any more: it may now be filled
    if tokenizer is not None and parallel.rank() == 0:
        run.mkdir(parents=True, exist_ok=True)
        write_provenance(run, origin)  # first: what is beside it is a run's (`check_new`)
        tokenizer.save(run / TOKENIZER)
        checkpoint.write(run / CONFIG, dump(config))  # last: with it the folder holds a run
    parallel.barrier()
    if tokenizer is not None:
        return
    before = provenance(run)
    for name, corpus in corpora.items():
        then = (before["corpus"] if name == PAIRS else before.get("sources", {}).get(name, {})).get("fingerprint")
        if then != corpus.fingerprint:
            where = config.corpus if name == PAIRS else config.data.sources[name]
            raise UserError(
                f"{run}: the corpus {where} has changed since the run began (fingerprint {then} then, "
                f"{corpus.fingerprint} now), so the run cannot go on exactly; bring the old corpus back, or start a "
                f"new run with --init {run}"
            )
    for role, of in teachers.items():
        if before.get("teachers", {}).get(role, {}).get("weights") != of["weights"]:
            raise UserError(
                f"{run}: the run in role {role}, {of['run']}, has other weights than when this run began, so this one "
                f"cannot go on exactly; bring them back, or start a new run with --init {run}"
            )
    if parallel.rank() == 0:
        before.setdefault("resumed", []).append(origin)
        write_provenance(run, before)
        checkpoint.write(run / CONFIG, dump(config))
    parallel.barrier()


def compile_blocks(system: System, place: torch.device) -> None:
    """Compiles every transformer block in place; names and values of weights stay as they are.

    Raises:
        UserError: on a CPU without a C++ compiler.
    """
    if place.type == "cpu" and not any(shutil.which(name) for name in ("g++", "clang++", "c++")):
        raise UserError("config field train.compile: a CPU needs a C++ compiler for it; install g++, or leave it out")
    # a block is compiled once a form it is called in: length of text, with memory or without, with gradient or without
    torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
    for module in system.modules():
        if isinstance(module, Block):
            module.compile()


def make_tokenizer(config: RunConfig, corpora: Iterable[Corpus]) -> Tokenizer:
    """The tokenizer a config names, that of the run it starts from, or one trained on the corpus."""
    settings, corpora = config.tokenizer, list(corpora)
    private = any(corpus.private for corpus in corpora)
    if settings.file:
        tokenizer = Tokenizer.load(settings.file)
    elif config.text_weights:
        tokenizer = towers.read_text(config.text_weights).tokenizer
        if settings.trim and private:
            what = "which pieces a private corpus uses would tell its words; leave it out"
            raise UserError(f"config field tokenizer.trim: {what}")
        tokenizer = trimmed(tokenizer, _texts(corpora)) if settings.trim else tokenizer
    elif source := words_of(config):
        tokenizer = Tokenizer.load(_of_run(source, TOKENIZER))
    elif reads_texts(config):
        answers = getattr(config.task, "answers", ())  # said by a decoder: unknown words would all be one answer
        texts = chain(_texts(corpora), answers)
        tokenizer = Tokenizer.train(texts, settings.kind, settings.size, settings.lowercase)
        if private:
            tokenizer = tokenizer.without_rare(_reports(corpora), settings.least_reports)
    else:
        tokenizer = Tokenizer.train(["no text"], settings.kind, settings.size, settings.lowercase)
    if settings.dictionary:
        tokenizer.dictionary = read_dictionary(settings.dictionary)
    if settings.lexicon:
        tokenizer.lexicon = open_lexicon(settings.lexicon)
    return tokenizer


def words_of(config: RunConfig) -> str | None:
    """The run whose words and languages a new one takes: what it starts from, or what its text tower comes from; where
    it starts from none, the teacher that reads its batches."""
    if config.init is not None:
        return config.init if isinstance(config.init, str) else config.init.get("text")
    asked, given = systems.find(config.system).teachers, config.data.teachers
    return next((given[role] for role, able in asked.items() if able != "encode_images" and role in given), None)


def reads_texts(config: RunConfig) -> bool:
    """Whether a run draws anything but pictures alone."""
    sources = systems.find(config.system).needs(config.model).sources
    return not sources or any(weight > 0 for name, weight in sources.items() if name != "images")


def build_system(config: RunConfig, tokenizer: Tokenizer, trained_on: torch.device | None = None) -> System:
    """The system a config names, with the head of its task, weights yet to be set. trained_on: if not only used.

    Raises:
        UserError: it would not fit into the machine's memory.
    """
    kind: Any = systems.find(config.system)
    refuse_beyond_memory(config.model, tokenizer.vocabulary.size, torch.device("cpu"))
    if trained_on is not None and all(factor > 0 for _, factor in config.train.rates):  # frozen weights have no moments
        refuse_beyond_memory(config.model, tokenizer.vocabulary.size, trained_on, trained=True)
    system = kind(config.model, tokenizer.vocabulary)
    if config.task is not None:
        system.attach(tasks.of(config.task).head(system, tokenizer))
    return system


def first_weights(
    run: Path, config: RunConfig, system: System, say: Callable[[str], None], tokenizer: Tokenizer
) -> None:
    """The weights of step 0: a function of (seed, name), over them those of the run that `init` names, and over
    them the published towers'.

    Kept in the run's state where the final weights are averaged with them. A run with a checkpoint needs none.
    """
    if checkpoint.steps(run):
        return
    initialise(system, config.train.seed)
    system.begin()
    if isinstance(config.init, str):
        take_init(system, config.init, say, config.task_name)
    elif config.init:
        take_stages(system, config.init, config, tokenizer, say)
    towers.take_towers(system, config, tokenizer, say)
    if system.head is not None and not (isinstance(config.init, str) and _of_task(config.init, config.task_name)):
        system.head.begin(system)
        if system.head.momentum:
            system.head.teacher.copy_student(system)
    if config.train.average < 1 and parallel.rank() == 0:
        (run / STATE).mkdir(exist_ok=True)
        checkpoint.save_tensors(run / STATE / START, checkpoint.parted(system)[0])


def take_init(system: System, init: str, say: Callable[[str], None], task: str | None = None) -> None:
    """Fills a system from the run that `init` names: RUN, whose teachers start as their students; or RUN:state, whose
    own teachers go on as its newest checkpoint has them. A head of another task is left there.
    """
    run, own = init_run(init)
    source = f"the newest checkpoint of {run}" if own else _of_run(init, WEIGHTS)
    tensors = checkpoint.newest(run) if own else checkpoint.load_tensors(Path(source))
    tensors = checkpoint.in_new_names(tensors, system)
    if task is not None and not _of_task(init, task):
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("head.")}
    take_weights(system, tensors, source, say)
    if not own:
        copy_students(system)


@torch.no_grad()
def take_stages(
    system: System, init: Mapping[Literal["image", "text"], str], config: RunConfig, tokenizer: Tokenizer, say
) -> None:
    """Fills the towers ("image", "text") from runs of one's own, of any system; teachers copy their students.

    Raises:
        UserError: a tower with other settings or shapes, or another tokenizer.
    """
    kinds: dict[str, Any] = {"image": (ImageTower, ImageBackbone), "text": (TextTower, TextBackbone)}
    for name, run in init.items():
        before, vocabulary = RunConfig.read(run), Tokenizer.load(_of_run(run, TOKENIZER))
        mine, theirs = (vars(getattr(model, name)) for model in (config.model, before.model))
        other = [k for k in mine if mine[k] != theirs[k] and k not in _OF_A_RUN]
        if other:
            raise UserError(
                f"{run}: its {name} tower has another {other[0]} ({theirs[other[0]]}, here {mine[other[0]]})"
            )
        if name == "text" and vocabulary.to_json() != tokenizer.to_json():  # entities are this run's own
            raise UserError(
                f"{run}: its text tower reads another tokenizer; leave out tokenizer.file, so that it is taken"
            )
        donor = build_system(before, vocabulary)
        tower = towers.first_tower(donor, kinds[name])
        prefix = next(f"{path}." for path, module in donor.named_modules() if module is tower)
        weights = checkpoint.in_new_names(checkpoint.load_tensors(Path(_of_run(run, WEIGHTS))), donor)
        tensors = {full.removeprefix(prefix): value for full, value in weights.items() if full.startswith(prefix)}
        checkpoint.refuse_broken_checkpoint(tensors, run)
        towers.fill(towers.first_tower(system, kinds[name]), tensors, run)
        say(f"{name} tower from {run}: {len(tensors)} weights")
    copy_students(system)


@torch.no_grad()
def take_weights(system: nn.Module, tensors: Mapping[str, Tensor], source: str, say: Callable[[str], None]) -> None:
    """Fills a system's parameters by name; positions of another length or grid are fitted, and a learned temperature
    becomes a learned scale or the other way round. Queues stay empty. What is lacking keeps its values, and is told.

    Raises:
        UserError: if no parameter fits, or a number is not finite.
    """
    checkpoint.refuse_broken_checkpoint(tensors, source)
    fitting, converted = scaled(tensors, dict(system.named_parameters()).keys())
    taken, left = 0, []
    for module_name, module in system.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            full = f"{module_name}.{name}" if module_name else name
            value = fitting.get(full)
            if value is not None and name == "positions":
                value = fitted_positions(value, parameter, module)
            if value is None or value.shape != parameter.shape:
                left.append(full)
                continue
            parameter.copy_(value)
            taken += 1
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for name, buffer in module.named_buffers(recurse=False):
                buffer.copy_(fitting.get(f"{module_name}.{name}", buffer))
    if not taken:
        raise UserError(f"{source}: none of its weights fit this system by name and shape; is it of another system?")
    new = [name for name in left if not name.startswith(checkpoint.training_only(system))]
    message = f"{taken} weights taken from {source}"
    message += f"; {converted}" if converted else ""
    say(message + (f"; new: {', '.join(new[:5])} ({len(new)} in all)" if new else ""))


def scaled(tensors: Mapping[str, Tensor], names: Iterable[str]) -> tuple[dict[str, Tensor], str]:
    """The tensors with what divides scores (`temperature`) as what multiplies them (exp of `log_scale`), or the other
    way round, where a system has the one and the file the other; and what was done, in words.
    """
    there, names = dict(tensors), set(names)
    if "temperature" in names and "temperature" not in there and "log_scale" in there:
        there["temperature"] = (-there.pop("log_scale")).exp()  # a log_scale beside it is of other scores
        return there, f"temperature {float(there['temperature']):.4g} from its log_scale"
    if "log_scale" in names and "temperature" not in names and "log_scale" not in there and "temperature" in there:
        there["log_scale"] = -there.pop("temperature").log()
        return there, f"log_scale {float(there['log_scale']):.4g} from its temperature"
    return there, ""


def list_skipped(run: Path, corpus: Corpus, skipped: Mapping[int, str]) -> None:
    """Writes skipped.json: corpus rows that could not be used, their ids and why; adds to what it lists already.

    Raises:
        UserError: if the file is there and is not as a run writes it.
    """
    path = run / SKIPPED
    listed = read_json(path) if path.exists() else {}
    if odd := [row for row in listed if not (row.isdecimal() and row.isascii() and len(row) < 20)]:
        raise UserError(f"{path}: {quoted(odd[0], 40)} is no row of a corpus; restore the file, or remove it")
    listed |= {str(row): {"id": _id_of(corpus.record(row)), "why": why} for row, why in skipped.items()}
    ordered = dict(sorted(listed.items(), key=lambda item: int(item[0])))
    checkpoint.write(path, json.dumps(ordered, indent=1, ensure_ascii=False) + "\n")


def _id_of(record: Record) -> str:
    return "" if hides(record.private) else record.id


def init_run(init: str) -> tuple[Path, bool]:
    """(RUN, whether its own teachers go on) of RUN or RUN:state."""
    run, colon, rest = init.rpartition(":")
    return (Path(run), True) if colon and rest == STATE else (Path(init), False)


def _of_task(init: str, task: str | None) -> bool:
    """Whether the run that `init` names has learnt this very task, so that its head goes on."""
    return task is not None and RunConfig.read(init_run(init)[0]).task_name == task


def _of_run(init: str, name: str) -> str:
    run, _ = init_run(init)
    if not (run / name).exists():
        raise UserError(f"{run}: holds no {name} to start from; init must be the folder of a run with a checkpoint")
    return str(run / name)


def _reports(corpora: Iterable[Corpus]) -> Iterator[list[str]]:
    """The texts of each row, and its answers where it is a question."""
    for corpus in corpora:
        for row in range(len(corpus)):
            record = corpus.record(row)
            answers = record.columns.get("answers")
            yield [*all_texts(record), *(map(str, answers) if isinstance(answers, list) else ())]


def _texts(corpora: Iterable[Corpus]) -> Iterator[str]:
    """Every text a run may read, those to translate included."""
    for corpus in corpora:
        for row in range(len(corpus)):
            record = corpus.record(row)
            yield from all_texts(record)
            yield from (text for texts in record.columns.get("ambiguous", {}).values() for text in texts)
