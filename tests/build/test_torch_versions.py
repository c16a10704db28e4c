"""fastmeta._torch: the private API of PyTorch is looked for at import."""

import re

from fastmeta import _torch
from harness import forks
from harness.places import ROOT


def test_every_private_name_in_the_sources_is_looked_for():
    used = set()
    for path in [*ROOT.glob("fastmeta/**/*.py"), *ROOT.glob("kernels/*.py")]:
        if path.name != "_torch.py":
            code = path.read_text()
            used |= set(re.findall(r"\btorch\.(_[A-Za-z]\w*(?:\.\w+)*)", code))
            used |= {f"_C.{name}" for name in re.findall(r"(?<![.\w])_functorch\._\w+", code)}
            used |= {f"autograd.{name}" for name in re.findall(r"\bforward_ad\._\w+", code)}
    looked_for = {name for name in used if any(known == name or known.startswith(f"{name}.") for known in _torch.NAMES)}
    assert used - looked_for == set()


def test_a_torch_without_one_is_refused_by_its_version():
    code = "import torch; torch.__version__ = '2.99'; del torch._C._any_requires_grad; import fastmeta"
    done = forks.run("-c", code)
    assert done.returncode == 1
    words = "ImportError: fastmeta: torch must have torch._C._any_requires_grad, which fastmeta uses, got torch 2.99 without it"
    assert words in done.stderr
