"""A stage by itself, as a command: the same folder, record and table as in a recipe."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tuwen.config import override
from tuwen.data.beside import TABLE
from tuwen.errors import UserError, quoted
from tuwen.run import holds_run
from tuwen.training.stages.doing import corpus_of, do_stage
from tuwen.training.stages.kinds import KINDS
from tuwen.training.stages.recipe import Planned, Stage
from tuwen.training.stages.record import RECORD, is_done, made_of, others_in, refuse_changed, write_record


def stage_alone(
    kind: str,
    run: Path | None,
    corpus: str,
    split: str,
    beside: Sequence[str],
    changes: Mapping[str, Any],
    seed: int,
    out: Path,
    quiet: bool = False,
) -> Path:
    """The table that a stage makes in the folder `out`; one that is there, of the same inputs, stays.

    Raises:
        UserError: as the stage; the folder holds something else, or the same of other inputs.
    """
    if not (out / RECORD).exists() and (others := others_in(out)):
        raise UserError(f"{out}: holds something else than a stage ({quoted(others[0])}); choose another --out")
    if run is not None and not holds_run(run):
        raise UserError(f"{run}: holds no run; give the folder of a run of `tuwen train`")
    stage = Stage(kind, kind, run=None if run is None else str(run), beside=tuple(beside))
    needs = {f"beside.{k}": Path(name).absolute() for k, name in enumerate(beside)}
    needs |= {} if run is None else {"run": run.absolute()}
    config = override(KINDS[kind].config(), changes)
    planned = Planned(stage, out.absolute(), corpus, split, seed, config, needs)
    rows = corpus_of(planned)
    parts = made_of(planned, rows)
    refuse_changed(planned, parts, [], sure=True)
    if not is_done(planned.folder):
        write_record(planned.folder, parts)
        began = time.monotonic()
        do_stage(planned, rows, None, quiet, kind)
        write_record(planned.folder, parts, time.monotonic() - began)
    return planned.folder / TABLE
