"""The rules that hold the house up, read off the source: who may import whom, what never is, how big things get."""

import ast
import functools
from pathlib import Path

import pytest

import tuwen
from tuwen import systems

ROOT = Path(tuwen.__file__).parent

FLOORS = {
    "data": 0,
    "client": 0,
    "nn": 1,
    "objectives": 2,
    "teachers": 2,
    "similarity": 2,
    "systems": 3,
    "predictor": 4,
    "encoder": 4,
    "tasks": 5,
    "explain": 5,
    "training": 6,
    "model": 7,
    "search": 8,
    "benchmark": 8,
    "exchange": 8,
    "cli": 9,
}
FREE = {"errors", "config", "outputs", "progress", "run", "speech"}  # below every floor
CLASHING = {"torchvision", "timm", "open_clip"}  # with the CPU build
EXTRA = {"transformers": ROOT / "nn" / "backbones.py"}  # imported in one place alone, inside a function
PICKLING = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
NEVER = CLASHING | PICKLING
COME_BY = {"found", "told", "held", "one", "kept", "wanted", "said", "got"}
UNSAFE_CALLS = {("torch", "load"), ("jit", "load"), ("yaml", "load"), ("yaml", "unsafe_load"), ("yaml", "full_load")}


def sources() -> list[Path]:
    return sorted(ROOT.rglob("*.py"))


@functools.cache
def tree_of(path: Path) -> ast.Module:
    """A file, parsed once for all tests."""
    return ast.parse(path.read_text(encoding="utf-8"))


def room(path: Path) -> str:
    """The folder, or the file, right under tuwen/."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(tree: ast.AST, package: str) -> list[str]:
    """Dotted names of all modules imported anywhere in the file, lazily or not; `package` resolves relative ones."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            found += [f"{stem}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in (
            "import_module",
            "__import__",
        ):
            found += [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
    return found


def climbs(from_room: str, names: list[str]) -> list[str]:
    """Imports that go up, or sideways to another room of the same floor."""
    bad = []
    for name in names:
        parts = name.split(".")
        if parts[0] != "tuwen" or len(parts) < 2 or parts[1] in FREE | {from_room}:
            continue
        if FLOORS.get(parts[1], 99) >= FLOORS[from_room]:
            bad.append(name)
    return bad


def package_of(path: Path) -> str:
    return ".".join(["tuwen", *path.relative_to(ROOT).parts[:-1]])


def every_import() -> list[tuple[Path, list[str]]]:
    return [(path, imports(tree_of(path), package_of(path))) for path in sources()]


def test_rooms_import_only_from_rooms_below():
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path, names in every_import()
        if room(path) in FLOORS
        for name in climbs(room(path), names)
    ]
    assert wrong == []


def file_of(name: str) -> Path | None:
    """The file that a dotted name of ours lies in; None for a package's own face and for what is not ours."""
    parts = name.split(".")
    if parts[0] != "tuwen":
        return None
    for stop in range(len(parts), 1, -1):
        path = ROOT.joinpath(*parts[1:stop])
        if path.with_suffix(".py").exists():
            return path.with_suffix(".py")
        if path.is_dir():
            return None
    return None


def circles(arrows: dict[str, set[str]]) -> list[list[str]]:
    """Groups of names that reach each other, each sorted (Tarjan 1972)."""
    number: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    groups = []

    def visit(name: str) -> None:
        number[name] = low[name] = len(number)
        stack.append(name)
        for other in arrows.get(name, ()):
            if other not in number:
                visit(other)
            if other in stack:
                low[name] = min(low[name], low[other])
        if low[name] == number[name]:
            group = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(group) > 1:
                groups.append(sorted(group))

    for name in arrows:
        if name not in number:
            visit(name)
    return groups


def test_no_files_import_each_other_in_a_circle_lazily_or_for_types_alone():
    arrows = {
        str(path.relative_to(ROOT)): {
            str(file.relative_to(ROOT)) for name in names if (file := file_of(name)) and file != path
        }
        for path, names in every_import()
    }
    assert circles(arrows) == []


def test_circles_are_seen():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set()}) == [["b", "c"]]
    assert circles({"a": {"b", "c"}, "b": {"d"}, "c": {"d"}, "d": set()}) == []


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "CONTRIBUTING.zh.md"])
def test_the_table_of_floors_is_this_list(page):
    floors: dict[int, list[str]] = {}
    for name, floor in FLOORS.items():
        floors.setdefault(floor, []).append(f"`{name}`")
    rows = [f"| {floor} | {', '.join(floors[floor])} |" for floor in sorted(floors, reverse=True)]
    assert "\n".join(rows) in (ROOT.parent / page).read_text(encoding="utf-8")


def test_no_two_rooms_share_the_name_of_a_public_class_or_function():
    rooms: dict[str, set[str]] = {}
    for path in sources():
        if path.name == "lmdb_child.py":  # a program of its own, with its own `main`
            continue
        for node in tree_of(path).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                rooms.setdefault(node.name, set()).add(room(path))
    del rooms[
        "load"
    ]  # `tuwen.load` of a run, and `tuwen.data.images.load` of a picture, which people call by that name
    assert {name: sorted(where) for name, where in rooms.items() if len(where) > 1} == {}


def test_attributes_are_named_by_what_they_hold():
    """Design, rule 7: `self.found = ...`, a field `kept: ...`, or a method `told` say how a thing was come by."""
    wrong = []
    for path in sources():
        for node in ast.walk(tree_of(path)):
            names = [node.attr] if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) else []
            if isinstance(node, ast.ClassDef):
                names += [n.target.id for n in node.body if isinstance(n, ast.AnnAssign)]
                names += [n.name for n in node.body if isinstance(n, ast.FunctionDef)]
            wrong += [f"{path.relative_to(ROOT)}:{node.lineno} {name}" for name in names if name in COME_BY]
    assert wrong == []


def test_every_room_has_a_floor():
    known = set(FLOORS) | FREE | {"__init__", "__main__"}
    assert {room(path) for path in sources()} - known == set()


def test_what_is_free_to_all_imports_no_room():
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path, names in every_import()
        if room(path) in FREE
        for name in names
        if name.startswith("tuwen.") and name.split(".")[1] not in FREE
    ]
    assert wrong == []


def test_nn_and_systems_know_no_corpus():
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path, names in every_import()
        if room(path) in ("nn", "systems", "objectives", "similarity", "teachers")
        for name in names
        if name.startswith(("tuwen.data.corpora", "tuwen.data.corpus"))
    ]
    assert wrong == []


def test_training_and_tasks_never_name_a_system():
    taken = set(systems.names())
    wrong = []
    for path in sources():
        if room(path) not in ("training", "tasks"):
            continue
        tree = tree_of(path)
        named = [n for n in imports(tree, package_of(path)) if n.startswith("tuwen.systems.")]
        wrong += [f"{path.name} imports {n}" for n in named if n.split(".")[2] in taken]
        wrong += [f"{path.name}:{n.lineno} says {n.value!r}" for n in ast.walk(tree) if compares_a_name(n, taken)]
    assert wrong == []


def compares_a_name(node: ast.AST, taken: set[str]) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in taken


def test_a_system_shares_parts_but_never_inherits_from_another():
    for name in systems.names():
        assert systems.find(name).__bases__ == (systems.System,), name


def test_nothing_is_unpickled_and_nothing_clashes_with_the_cpu_build():
    wrong = []
    for path, names in every_import():
        wrong += [f"{path.relative_to(ROOT)} imports {n}" for n in names if n.split(".")[0] in NEVER]
        wrong += [f"{path.relative_to(ROOT)}:{line} {what}" for line, what in unsafe(tree_of(path))]
    assert wrong == []


def test_extras_are_imported_in_one_place_when_they_are_used():
    for path in sources():
        tree = tree_of(path)
        at_top = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        for package, home in EXTRA.items():
            used = any(name.split(".")[0] == package for name in imports(tree, package_of(path)))
            assert not used or path == home, f"{path} imports {package}"
            top = imports(ast.Module(at_top, []), package_of(path))
            assert not any(name.split(".")[0] == package for name in top), f"{path} imports {package} at its top"


def unsafe(tree: ast.AST) -> list[tuple[int, str]]:
    """Calls that would run code out of a file: torch.load, yaml.load, allow_pickle=True, from torch import load."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            function = node.func
            if isinstance(function, ast.Attribute):
                owner = getattr(function.value, "id", getattr(function.value, "attr", ""))
                safe = any(k.arg == "weights_only" and getattr(k.value, "value", 0) is True for k in node.keywords)
                if (owner, function.attr) in UNSAFE_CALLS and not (owner == "torch" and safe):
                    found.append((node.lineno, f"{owner}.{function.attr}"))
            for keyword in node.keywords:
                if keyword.arg == "allow_pickle" and getattr(keyword.value, "value", True):
                    found.append((node.lineno, "allow_pickle"))
        elif isinstance(node, ast.ImportFrom) and node.module in ("torch", "torch.jit", "yaml"):
            found += [(node.lineno, a.name) for a in node.names if a.name in ("load", "unsafe_load", "full_load")]
    return found


def test_small_rooms():
    wrong = []
    for path in sources():
        text = path.read_text()
        lines = text.count("\n")
        if lines >= 400 or (path.name == "step.py" and room(path) == "training" and lines >= 120):
            wrong.append(f"{path.relative_to(ROOT)} has {lines} lines")
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = node.end_lineno - node.lineno + 1
                if length >= 60:
                    wrong.append(f"{path.relative_to(ROOT)} {node.name} has {length} lines")
    assert wrong == []


@pytest.mark.parametrize(
    ("source", "bad"),
    [
        ("import tuwen.training.step", ["tuwen.training.step"]),
        ("def f():\n    from tuwen.tasks import retrieval", ["tuwen.tasks.retrieval"]),
        ("from ..training import loop", ["tuwen.training.loop"]),
        ("import importlib\nimportlib.import_module('tuwen.cli')", ["tuwen.cli"]),
        ("from tuwen.nn import towers\nfrom . import other\nfrom tuwen.errors import UserError", []),
    ],
)
def test_the_arrows_are_seen(source, bad):
    assert climbs("systems", imports(ast.parse(source), "tuwen.systems")) == bad


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("torch.load('x')", 1),
        ("torch.load('x', weights_only=False)", 1),
        ("torch.load('x', weights_only=True)", 0),
        ("yaml.load('x', weights_only=True)", 1),
        ("np.load('x', allow_pickle=True)", 1),
        ("from torch import load", 1),
        ("safetensors.torch.load_file('x')", 0),
        ("np.load('x', allow_pickle=False)", 0),
        ("yaml.safe_load(x)", 0),
    ],
)
def test_unsafe_loading_is_seen(source, count):
    assert len(unsafe(ast.parse(source))) == count
