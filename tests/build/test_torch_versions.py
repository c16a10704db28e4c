"""fastmeta._torch: the private API of PyTorch is looked for at import."""

import re

from fastmeta import _torch
from harness import forks
from harness.places import ROOT

OF_TORCH = re.compile(
    r"\b(torch|nn|Tensor|forward_ad|_pytree|_python_dispatch|_functorch)((?:\.\w+)*?\._[A-Za-z]\w*(?:\.\w+)*)"
)
PREFIX = {
    "torch": "",
    "nn": "nn",
    "Tensor": "Tensor",
    "forward_ad": "autograd.forward_ad",
    "_pytree": "utils._pytree",
    "_python_dispatch": "utils._python_dispatch",
}
OF_MODULES = re.compile(r"[.\"\']_(?:modules|parameters|buffers|(?:forward|backward)(?:_pre)?_hooks)\b")


def private_names(code):
    """Those of torch that the code uses."""
    found = {(PREFIX.get(root, f"_C.{root}") + rest).removeprefix(".") for root, rest in OF_TORCH.findall(code)}
    imported = re.findall(
        r"^from torch[\w.]* import .*\b_\w+|^from torch[\w.]*\._\w.*|^import torch\.\w*\._\w+", code, re.MULTILINE
    )
    return found | {*imported, *OF_MODULES.findall(code)}


def test_no_other_file_uses_a_private_name_of_torch():
    files = {*ROOT.glob("fastmeta/**/*.py"), *ROOT.glob("kernels/*.py")} - {ROOT / "fastmeta" / "_torch.py"}
    assert {path.name: names for path in files if (names := private_names(path.read_text()))} == {}


def test_every_private_name_is_looked_for():
    code = (ROOT / "fastmeta" / "_torch.py").read_text()
    code = code[code.index("check()\n\n") :]
    used = {name for name in private_names(code) if re.match(r"[\w.]+$", name) and not OF_MODULES.fullmatch(name)}
    looked_for = {name for name in used if any(known == name or known.startswith(f"{name}.") for known in _torch.NAMES)}
    assert len(used) > 20 and used - looked_for == set()


def test_a_torch_without_one_is_refused_by_its_version():
    code = "import torch; torch.__version__ = '2.99'; del torch._C._any_requires_grad; import fastmeta"
    done = forks.run("-c", code)
    assert done.returncode == 1
    words = "ImportError: fastmeta: torch must have torch._C._any_requires_grad, which fastmeta uses, got torch 2.99 without it"
    assert words in done.stderr
