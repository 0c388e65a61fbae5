"""The house rules of CONTRIBUTING.md that a program can check."""

import ast
import importlib
import inspect
import json
import re
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from fairseq_efficient.systems import PACKAGES, SYSTEMS
from tests.reliability.figures import Record
from tests.util import ROOT, run_cli

OPS = sorted(path.name for path in (ROOT / "fairseq_efficient" / "ops").iterdir() if (path / "__init__.py").exists())

SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
SCRIPTS = sorted((ROOT / "scripts").rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in [*SOURCES, *SCRIPTS, *TESTS]}


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, as an absolute name; ``from x import y`` gives ``x.y``."""
    package = module_of(path).split(".") if path.name == "__init__.py" else module_of(path).split(".")[:-1]
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            prefix = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{prefix}.{alias.name}" for alias in node.names)


def within(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


FLOORS = (  # of fairseq_efficient, from the ground up: a room imports rooms of the floors below, never of its own
    ("errors", "precision", "schedules", "systems"),
    ("beam", "losses", "ops", "rates", "recording", "stream_memory"),
    ("files", "flags", "originals"),
    ("bench", "checkpoint_pickles", "data", "state", "text"),
    ("checkpoint_sizes", "huggingface", "modules", "tensor_files"),
    ("checkpoint_rules", "checkpoints", "huggingface_names"),
    ("compat", "hub", "report"),
    ("plugin",),
)


def floor_of(room: str) -> int:
    return next(number for number, rooms in enumerate(FLOORS) if room in rooms)


def forbidden(path: Path) -> tuple[str, ...]:
    """Packages that a file must not import."""
    here = module_of(path)
    if within(here, *SYSTEMS):
        return (*(name for name in SYSTEMS if not within(here, name)), "efficient_systems")
    if not within(here, "fairseq_efficient") or here == "fairseq_efficient":
        return ()
    room = here.split(".")[1]
    others = [one for rooms in FLOORS[floor_of(room) :] for one in rooms if one != room]
    fairseq = ("fairseq", "fairseq_cli") if room == "ops" else ()
    return (*fairseq, *SYSTEMS, "efficient_systems", *(f"fairseq_efficient.{name}" for name in others))


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_imports_go_down_only(path: Path):
    wrong = [name for name in imports(path) if within(name, *forbidden(path))]
    assert not wrong, f"{module_of(path)} imports {wrong}"


def test_every_room_has_a_floor():
    rooms = {module_of(path).split(".")[1] for path in SOURCES if module_of(path).startswith("fairseq_efficient.")}
    assert rooms == {room for rooms in FLOORS for room in rooms}


@pytest.mark.parametrize("document", ["CONTRIBUTING.md", "docs/architecture.md"])
def test_the_maps_name_every_room(document: str):
    """All that stands in fairseq_efficient, and the folders of scripts; ``name*.py`` stands for several."""
    tree = (ROOT / document).read_text(encoding="utf-8").split("```")[1]
    named = re.findall(r"[\w*]+(?:/|\.py)", tree[tree.index("\nfairseq_efficient/") :])
    here = ROOT / "fairseq_efficient"
    rooms = {path.name for path in here.glob("[!_]*.py")} | {
        f"{path.parent.name}/" for path in here.glob("*/__init__.py")
    }
    rooms |= {f"{path.name}/" for path in (ROOT / "scripts").iterdir() if any(path.glob("*.py"))}
    missing = [room for room in sorted(rooms) if not any(fnmatchcase(room, name) for name in named)]
    assert not missing, f"{document} does not name {missing}"


def test_ops_import_without_fairseq(tmp_path: Path):
    """And without torch's compiler, whose import takes a second."""
    names = [f"fairseq_efficient.ops.{op}" for op in OPS]
    script = tmp_path / "probe.py"
    script.write_text(
        f"import sys, importlib\nsys.path.insert(0, {str(ROOT)!r})\n"
        f"[importlib.import_module(name) for name in {names}]\n"
        "print('fairseq' in sys.modules, 'torch._dynamo' in sys.modules)\n"
    )
    assert run_cli(str(script), [], fresh=True).split() == ["False", "False"]


@pytest.mark.parametrize("path", TREES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_are_short(path: Path):
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= 400, f"{path.name} has {lines} lines"
    for node in ast.walk(TREES[path]):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            length = (node.end_lineno or 0) - node.lineno + 1
            assert length <= 60, f"{path.name}:{node.lineno} {node.name} has {length} lines"


RUN_WHAT_THEY_READ = {
    "eval", "exec", "builtins.eval", "builtins.exec", "pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.load",
    "marshal.loads", "shelve.open", "os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput",
    "torch.jit.load", "yaml.load", "yaml.unsafe_load", "shutil.unpack_archive",
}  # fmt: skip
UNSAFE = (("weights_only", False), ("shell", True), ("allow_pickle", True), ("trust_remote_code", True))


def full_names(tree: ast.AST) -> dict[str, str]:
    """What a file calls things -> what they are: of ``import pickle as p`` and ``from pickle import load as l``."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update({one.asname: one.name for one in node.names if one.asname})
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.update({one.asname or one.name: f"{node.module}.{one.name}" for one in node.names})
    return found


def dangers(tree: ast.AST) -> Iterator[tuple[int, str]]:
    known = full_names(tree)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        first, dot, rest = name.partition(".")
        name = f"{known.get(first, first)}{dot}{rest}"
        round_trip = name == "pickle.loads" and ast.unparse(node).startswith("pickle.loads(pickle.dumps(")
        if (name in RUN_WHAT_THEY_READ and not round_trip) or name.endswith(".extractall"):
            yield node.lineno, name
        for keyword in node.keywords:
            value = keyword.value.value if isinstance(keyword.value, ast.Constant) else None
            if (keyword.arg, value) in UNSAFE:
                yield node.lineno, f"{keyword.arg}={value}"
        given = [ast.unparse(keyword.value) for keyword in node.keywords if keyword.arg == "weights_only"]
        if name == "torch.load" and given != ["True"]:
            yield node.lineno, "torch.load without weights_only=True"


def test_r8_nothing_runs_what_it_reads(figure: Record):
    """The whole tree, tests and all."""
    trees = {**TREES, **{path: ast.parse(path.read_text(encoding="utf-8")) for path in ROOT.glob("*.py")}}
    assert len(trees) > 200
    assert [(path, *found) for path, tree in trees.items() for found in dangers(tree)] == []
    for path in (ROOT / "scripts").glob("*.sh"):
        assert not re.search(r"^\s*eval\b", path.read_text(encoding="utf-8"), re.MULTILINE), path
    figure("R8", "files searched for calls that run what they read", len(trees))


def test_the_check_for_dangers_sees_them():
    calls = (
        "eval(x)", "pickle.load(f)", "torch.load(f)", "torch.load(f, weights_only=False)", "run(c, shell=True)",
        "m.eval()", "a.extractall()", "p.load(f)", "read(f)", "torch.load(f, weights_only=mode)", "t.load(f)",
        "from_torch(f)", "torch.load(f, weights_only=True)",
    )  # fmt: skip
    imports = ("import pickle as p", "from marshal import load as read", "import torch as t")
    code = "\n".join((*calls, *imports, "from torch import load as from_torch"))
    assert sorted({line for line, _ in dangers(ast.parse(code))}) == [1, 2, 3, 4, 5, 7, 8, 9, 10, 11, 12]


def test_random_draws_come_from_torchs_global_generator():
    """Only so is a resumed training exact: fairseq reseeds torch before each update, nothing else."""
    drawn = re.compile(r"torch\.Generator|np\.random|numpy\.random|default_rng|(?<!\w)random\.(random|randint|choice)")
    for path in SOURCES:
        if within(module_of(path), *SYSTEMS, "fairseq_efficient.modules", "fairseq_efficient.ops"):
            assert not drawn.search(path.read_text(encoding="utf-8")), path


def test_fp32_or_better_is_said_by_precision_alone():
    spelled = re.compile(r"promote_types\([^)]*torch\.float32\)|torch\.float64 else")
    for path in SOURCES:
        if module_of(path) != "fairseq_efficient.precision":
            assert not spelled.search(path.read_text(encoding="utf-8")), path


@pytest.mark.parametrize("op", OPS)
def test_each_op_has_a_naive_and_a_fast_form_of_one_signature(op: str):
    package = importlib.import_module(f"fairseq_efficient.ops.{op}")
    naive, fast = (importlib.import_module(f"{package.__name__}.{form}") for form in ("naive", "fast"))

    def public(module: object) -> dict[str, str]:
        functions = inspect.getmembers(module, inspect.isfunction)
        return {n: str(inspect.signature(f)) for n, f in functions if f.__module__ == module.__name__ and n[0] != "_"}

    ours = public(naive)
    # a naive function may be called naive_x beside the fast x
    ours = {name.removeprefix("naive_").removesuffix("_naive"): signature for name, signature in ours.items()}
    both = {name: signature for name, signature in public(fast).items() if name in ours}
    assert both and both == {name: ours[name] for name in both}
    assert list((ROOT / "tests").rglob(f"test_{op}*.py"))


@pytest.mark.parametrize("package", [*SYSTEMS, "efficient_systems", "fairseq_efficient.plugin"])
def test_a_system_starts_with_compat_and_is_short(package: str):
    path = ROOT / package.replace(".", "/") / "__init__.py"
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 15
    if package != "efficient_systems":  # it imports the systems, nothing else
        statements = [ast.unparse(node) for node in TREES[path].body if not ast.unparse(node).startswith(("'", '"'))]
        assert statements[:2] == ["from fairseq_efficient import compat", "compat.apply()"]


def test_only_plugin_and_systems_register():
    for path in SOURCES:
        if within(module_of(path), "fairseq_efficient") and not within(module_of(path), "fairseq_efficient.plugin"):
            decorators = [
                ast.unparse(decorator)
                for node in ast.walk(TREES[path])
                for decorator in getattr(node, "decorator_list", [])
            ]
            assert not [one for one in decorators if one.startswith("register_")], path


PROBE = """
import json, sys
from argparse import Namespace
from fairseq import models, tasks, utils, registry
from fairseq import criterions, data, optim, scoring
from fairseq.data import encoders

def names():
    found = {"arch": {k: v.__module__ for k, v in models.ARCH_MODEL_REGISTRY.items()},
             "model": {k: v.__module__ for k, v in models.MODEL_REGISTRY.items()},
             "task": {k: v.__module__ for k, v in tasks.TASK_REGISTRY.items()}}
    for kind, one in registry.REGISTRIES.items():
        found[kind] = {k: v.__module__ for k, v in one["registry"].items()}
    return found

before = names()
for step in sys.argv[1:]:
    for _ in range(2):
        if step.startswith("/"):
            utils.import_user_module(Namespace(user_dir=step))
        else:
            __import__(step)
after = names()
print("RESULT" + json.dumps([before, after]))
"""


def registered(steps: list[str], folder: Path) -> tuple[dict, dict]:
    """All registries in a new process, before and after importing each of ``steps`` (names, --user-dir paths) twice."""
    script = folder / "probe.py"
    script.write_text(PROBE)
    output = run_cli(str(script), steps, cwd=folder)
    before, after = json.loads(output[output.index("RESULT") + len("RESULT") :])
    return before, after


@pytest.mark.parametrize("system", SYSTEMS)
def test_registration_is_idempotent_and_collides_with_nothing(system: str, tmp_path: Path):
    user_dir, everything = str(ROOT / system), str(ROOT / "efficient_systems")
    results = [
        registered(steps, tmp_path)
        for steps in ([user_dir, everything], [everything, user_dir], [system, user_dir, "efficient_systems"])
    ]
    before, after = results[0]
    assert all(one == results[0] for one in results)
    ours = [(kind, name) for kind in after for name, module in after[kind].items() if within(module, *PACKAGES)]
    assert any(kind == "arch" for kind, _ in ours)
    for kind, names in before.items():
        for name, module in names.items():
            assert after[kind][name] == module, f"the stock {kind} {name} was replaced"
            assert (kind, name) not in ours
