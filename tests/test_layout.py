"""The layout is enforced: imports go one way, and importing the light parts stays light."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedretrain.cli import run

ROOT = Path(__file__).parent.parent
MAY_IMPORT = {
    "fedretrain": {"fedretrain"},
    "strategies": {"fedretrain", "strategies"},
    "client": {"fedretrain", "strategies", "client"},
    "server": {"fedretrain", "strategies", "server"},
    "simulations": {"fedretrain", "strategies", "client", "server", "simulations"},
}


def imported_packages(source: str) -> Iterator[str]:
    """First components of all absolute imports, also those inside functions and by import_module("literal")."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield (node.module or "").split(".")[0]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            yield from (str(a.value).split(".")[0] for a in node.args[:1] if isinstance(a, ast.Constant))


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_go_to_the_left_only(package: str) -> None:
    """fedretrain <- strategies <- client, server <- simulations; the command's lazy mounting is the one exception."""
    wrong = {
        f"{path.relative_to(ROOT)} imports {name}"
        for path in (ROOT / package).rglob("*.py")
        if path != ROOT / "fedretrain" / "cli.py"
        for name in imported_packages(path.read_text(encoding="utf-8"))
        if name in MAY_IMPORT and name not in MAY_IMPORT[package]
    }
    assert not wrong


def test_the_direction_check_sees_every_form_of_import() -> None:
    """An import inside a function, a from-import and a literal import_module are all found."""
    source = "import a.b\ndef f():\n    from c.d import e\n    importlib.import_module('g.h')\n"
    assert list(imported_packages(source)) == ["a", "c", "g"]


def test_no_module_unpickles() -> None:
    """No part of the product imports pickle or lets NumPy unpickle."""
    found = [
        str(path.relative_to(ROOT))
        for package in MAY_IMPORT
        for path in (ROOT / package).rglob("*.py")
        if {"pickle", "cloudpickle", "dill", "joblib"} & set(imported_packages(path.read_text(encoding="utf-8")))
        or "allow_pickle=True" in path.read_text(encoding="utf-8")
    ]
    assert not found


@pytest.mark.parametrize("module", ["fedretrain.job", "fedretrain.contract", "fedretrain.cli", "strategies.base"])
def test_light_modules_do_not_load_tensorflow(module: str) -> None:
    """What the command line and an executor need starts without TensorFlow's seconds and memory."""
    code = f"import sys, {module}; sys.exit('tensorflow' in sys.modules or 'keras' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_looking_at_things_is_quick(tmp_path: Path) -> None:
    """What an operator asks again and again waits neither for NumPy nor for Flower, let alone TensorFlow."""
    server, home, request, kit = (str(tmp_path / name) for name in ("fed", "home", "a.request", "a.kit"))
    make = [
        ["server", "init", server, "--address", "127.0.0.1:8443"],
        ["client", "request", "--name", "a", "--out", request, "--home", home],
        ["server", "admit", request, kit, "--folder", server],
        ["client", "join", kit, "--home", home],
    ]
    look = [["server", name, "--folder", server] for name in ("sites", "runs", "status", "logs")]
    look += [["client", *name.split(), "--home", home] for name in ("log", "approve", "release list")]
    code = (
        "import json, sys; from fedretrain.cli import run\n"
        "codes = [run(command) for command in json.loads(sys.argv[1])]\n"
        "sys.exit(str(codes) if any(codes) else ' '.join({'numpy', 'flwr', 'tensorflow'} & set(sys.modules)) or 0)"
    )
    assert [run(command) for command in make] == [0] * len(make)
    command = [sys.executable, "-c", code, json.dumps(look)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
