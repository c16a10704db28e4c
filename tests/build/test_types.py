"""The types that ship: the stub of fastmeta._C tells of the module what it is, and wheel and sdist have it."""

import ast
import os
import re
import subprocess
import sys
import tarfile

import pytest

from harness.places import ROOT

TYPES = {"fastmeta/py.typed", "fastmeta/_C.pyi"}
BODY = ast.parse((ROOT / "fastmeta/_C.pyi").read_text()).body
FUNCTIONS = {node.name: node for node in BODY if isinstance(node, ast.FunctionDef)}


def test_stub_names():
    from fastmeta import _C

    constants = {node.target.id for node in BODY if isinstance(node, ast.AnnAssign)}
    assert FUNCTIONS.keys() | constants == {name for name in dir(_C) if not name.startswith("__")}
    assert {name for name in constants if type(getattr(_C, name)) is int} == constants


@pytest.mark.parametrize("name", FUNCTIONS)
def test_stub_signatures(name):
    """pybind11's own line of a function: as many arguments, str, int, bool and the rest where the stub has them, the same kind back."""
    from fastmeta import _C

    arguments, returned = re.match(rf"{name}\((.*)\) -> (.*)\n", getattr(_C, name).__doc__).groups()
    kinds = [kind.replace("object", "Any") for kind in re.findall(r"arg\d+: ([\w.]+)", arguments)]
    kinds = [kind.replace("typing.SupportsInt", "int").replace("typing.SupportsFloat", "float") for kind in kinds]
    stub = FUNCTIONS[name]
    assert not stub.args.args and not stub.args.kwonlyargs  # positional
    wanted = [ast.unparse(argument.annotation) for argument in stub.args.posonlyargs]
    assert ["Any" if kind == "int | None" else kind for kind in wanted] == kinds
    assert returned == "object" or ast.unparse(stub.returns).startswith(returned)


def run_setup(folder, *command):
    """setup.py with egg-info in `folder`."""
    words = [sys.executable, "setup.py", "egg_info", f"--egg-base={folder}", *command]
    env = os.environ | {"FASTMETA_BUILD": "none"}
    done = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_types_are_in_the_wheel(tmp_path):
    run_setup(tmp_path, "build", f"--build-base={tmp_path}", f"--build-lib={tmp_path}/lib")
    assert all((tmp_path / "lib" / name).exists() for name in TYPES)


def test_types_are_in_the_sdist(tmp_path):
    run_setup(tmp_path, "sdist", f"--dist-dir={tmp_path}")
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as members:
        names = {name.split("/", 1)[1] for name in members.getnames() if "/" in name}
    assert names >= TYPES | {"csrc/ops.h", "docs/maml.md"}


def test_a_users_program_has_every_name():
    import fastmeta.data
    import fastmeta.types

    body = ast.parse((ROOT / "tools/harness/typed_program.py").read_text())
    found = {node.attr for node in ast.walk(body) if isinstance(node, ast.Attribute)}
    found |= {node.id for node in ast.walk(body) if isinstance(node, ast.Name)}
    assert found >= {*fastmeta.__all__, *fastmeta.data.__all__, *fastmeta.types.__all__}


@pytest.mark.gate
@pytest.mark.cpu
def test_a_users_program_is_typed():
    """With no configuration of ours; `warn_unused_ignores` sees that a wrong word is an error."""
    options = ["--config-file=", "--strict", "--follow-imports=silent", "tools/harness/typed_program.py"]
    done = subprocess.run([sys.executable, "-m", "mypy", *options], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
