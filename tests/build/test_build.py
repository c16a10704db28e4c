"""setup.py: FASTMETA_BUILD chooses what is built, in any folder, and says so where that cannot be."""

import hashlib
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys

import pybind11
import pytest
import toolchain

from harness.places import ROOT

pytestmark = pytest.mark.cpu
NO_NVCC = {"CUDA_HOME": "/nowhere", "NVCC": "", "PATH": "/nowhere"}
ODD = "a b$c:d'e\"f#g&h;(i)*ü\\j %k"  # of each what ninja, make, the shell or a compiler takes for its own
MODULE = """
#include <Python.h>
#include "build.h"
#include "header.h"
static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr};
PyMODINIT_FUNC PyInit__C() {
  PyObject* module = PyModule_Create(&definition);
  PyModule_AddStringConstant(module, "words", WORDS " " FASTMETA_BUILD_ORIGIN);
  return module;
}
"""
NVCC = """#!/bin/sh
case "$1" in
  --dryrun) ;;
  --list-gpu-code) echo sm_80 sm_86 sm_90 sm_100 ;;
  *) echo "kernel.cu(7): error: no such thing" >&2; exit 2 ;;
esac
"""


def build(folder, *options, source=ROOT, **env):
    """build_ext in the folder `source` with these environment variables; nothing there changes without an option."""
    options = options or (f"--build-lib={folder}", f"--build-temp={folder / 'work'}")
    command = [sys.executable, "setup.py", "build_ext", *options]
    env = {k: v for k, v in os.environ.items() if not k.startswith("FASTMETA_")} | env
    return subprocess.run(command, cwd=source, env=env, capture_output=True, text=True, timeout=600)


@pytest.fixture
def tiny(tmp_path):
    """A source tree of one small module, in a folder with an odd name."""
    root = tmp_path / ODD
    for folder in ("csrc", "fastmeta", "kernels"):
        (root / folder).mkdir(parents=True)
    for name in ("setup.py", "csrc/toolchain.py"):
        shutil.copy(ROOT / name, root / name)
    (root / "csrc/bindings.cpp").write_text(MODULE)
    (root / "csrc/header.h").write_text('#define WORDS "first"\n')
    return root


@pytest.fixture
def fake_cuda(tmp_path):
    """What CUDA_HOME must hold: an nvcc that compiles nothing."""
    home = tmp_path / "cuda $HOME"
    executable(home / "bin/nvcc", NVCC)
    (home / "lib64").mkdir()
    (home / "lib64/libcudart_static.a").touch()
    return home


def executable(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def loaded(path):
    spec = importlib.util.spec_from_file_location("_C", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def words_of(root):
    """What the extension in the tree says; of a new copy, because Python keeps what it has loaded."""
    (built,) = (root / "fastmeta").glob("_C*.so")
    return loaded(shutil.copy(built, root / f"copy{len(list(root.glob('copy*')))}.so")).words


def test_builds_in_any_folder_and_again_what_changed(tiny):
    process = build(tiny, "--inplace", source=tiny)
    assert process.returncode == 0, process.stderr
    assert "compiling bindings.o" in process.stdout and words_of(tiny) == "first source"
    assert "no work to do" in build(tiny, "--inplace", source=tiny).stdout
    (tiny / "csrc/header.h").write_text('#define WORDS "second"\n')
    assert build(tiny, "--inplace", source=tiny, FASTMETA_ORIGIN="wheel").returncode == 0
    assert words_of(tiny) == "second wheel"


@pytest.mark.parametrize("form", ["{launcher} g++", "g++ -DSOME='a b'", "{launcher} g++ -Wextra", "path"])
def test_the_compiler_may_have_options_and_a_launcher(tiny, form):
    launcher = executable(tiny / "my launcher", '#!/bin/sh\necho "$*" >> "$LOG"\nexec "$@"\n')
    compiler = executable(tiny / "my g++", '#!/bin/sh\necho "$*" >> "$LOG"\nexec g++ "$@"\n')
    cxx = str(compiler) if form == "path" else form.format(launcher=shlex.quote(str(launcher)))
    process = build(tiny, "--inplace", source=tiny, CXX=cxx, LOG=str(tiny / "log"))
    assert process.returncode == 0, process.stderr
    assert words_of(tiny) == "first source"
    assert (tiny / "log").exists() == (form not in ("g++ -DSOME='a b'",))


@pytest.mark.parametrize("wanted", ["auto", "cpu"])
def test_what_does_not_compile(tiny, wanted):
    """auto installs the pure-Python package, without what an earlier build left; cpu raises; both say the first error."""
    assert build(tiny, "--inplace", source=tiny).returncode == 0
    (tiny / "csrc/header.h").write_text("#error no such thing\n")
    process = build(tiny, "--inplace", source=tiny, FASTMETA_BUILD=wanted)
    assert "csrc/header.h:1:2: error: #error no such thing" in process.stderr
    if wanted == "cpu":
        assert process.returncode != 0 and "error: FASTMETA_BUILD=cpu cannot be met" in process.stderr
        return
    assert process.returncode == 0, process.stderr
    assert "fastmeta: installing the pure-Python package, without native kernels: " in process.stderr
    assert not list(tiny.rglob("fastmeta/*.so"))
    assert "no such thing" in (tiny / "fastmeta/_C_missing.txt").read_text()
    (tiny / "csrc/header.h").write_text('#define WORDS "third"\n')
    assert build(tiny, "--inplace", source=tiny).returncode == 0
    assert words_of(tiny) == "third source" and not (tiny / "fastmeta/_C_missing.txt").exists()


@pytest.mark.parametrize("wanted", ["auto", "cuda"])
def test_cuda_that_does_not_compile(tiny, fake_cuda, wanted):
    """auto leaves CUDA out and keeps the rest; cuda raises."""
    (tiny / "csrc/inner/cuda").mkdir(parents=True)
    for name in ("kernel.cu", "header.cuh"):
        (tiny / "csrc/inner/cuda" / name).touch()
    env = {"CUDA_HOME": str(fake_cuda), "NVCC": "", "FASTMETA_CUDA_ARCHS": "80,86", "FASTMETA_BUILD": wanted}
    process = build(tiny, "--inplace", source=tiny, **env)
    assert "kernel.cu(7): error: no such thing" in process.stderr
    if wanted == "auto":
        assert process.returncode == 0 and "leaving CUDA out" in process.stderr and words_of(tiny) == "first source"
    else:
        assert process.returncode != 0 and "error: FASTMETA_BUILD=cuda cannot be met" in process.stderr


@pytest.mark.parametrize(
    ("wanted", "asked", "seen", "found"),
    [
        ("auto", "", (), "no GPU was seen"),
        ("cpu", "", ("90a",), "FASTMETA_BUILD=cpu"),
        ("auto", "", ("86", "90a"), ["86", "90a"]),
        ("cuda", "", (), ["80", "90a", "100"]),  # all that this nvcc knows
        ("cuda", "", ("90a",), ["90a"]),
        ("auto", "all", (), ["80", "90a", "100"]),
        ("auto", "80, 90a", ("100",), ["80", "90a"]),
        ("auto", "120", (), "FASTMETA_CUDA_ARCHS must be architectures that nvcc knows, or all, got '120'"),
        ("auto", "", ("75",), "need sm_80 or later"),
        ("auto", "", ("130",), "an nvcc that knows the GPU"),
    ],
)
def test_which_architectures(monkeypatch, fake_cuda, wanted, asked, seen, found):
    monkeypatch.setenv("CUDA_HOME", str(fake_cuda))
    monkeypatch.setenv("NVCC", "")
    monkeypatch.setenv("FASTMETA_CUDA_ARCHS", asked)
    monkeypatch.setattr(toolchain, "gpus", lambda: seen)
    if isinstance(found, list):
        assert toolchain.find_cuda(wanted).architectures == found
        return
    with pytest.raises(toolchain.BuildError, match=found):
        toolchain.find_cuda(wanted)


@pytest.mark.parametrize(
    ("machine", "isas"),
    [("x86_64", {"avx512", "avx2", "baseline"}), ("aarch64", {"baseline"}), ("arm64", {"baseline"}), ("riscv64", {"baseline"})],
)  # fmt: skip
def test_which_instruction_sets(monkeypatch, machine, isas):
    monkeypatch.setattr(toolchain.platform, "machine", lambda: machine)
    text = toolchain.ninja_file("g++", None)
    assert set(re.findall(r"-DFASTMETA_ISA=(\w+)", text)) == isas
    assert ("-DFASTMETA_X86" in text) == ("-mavx2" in text) == (machine == "x86_64")
    assert ("-fno-schedule-insns" in text) == (machine in ("aarch64", "arm64"))


@pytest.mark.gate
def test_the_real_sources_in_an_odd_folder(tmp_path):
    """All of csrc but for one instruction set and without optimisation; the build folder is odd too. Objects are kept."""
    root = tmp_path / ODD
    for name in ("csrc", "fastmeta"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("*.so"))
    for name in ("setup.py", "pyproject.toml"):
        shutil.copy(ROOT / name, root / name)
    tools = root / "csrc/toolchain.py"
    tools.write_text(tools.read_text().replace('"x86_64": X86', '"another": X86'))
    version = subprocess.check_output(["g++", "--version"], text=True)
    read = b"".join(path.read_bytes() for path in sorted((root / "csrc").rglob("*.*")) if path.is_file())
    state = hashlib.sha256(repr((version, sys.version, pybind11.__version__, read)).encode()).hexdigest()
    compiler = shlex.join([sys.executable, str(ROOT / "tools/harness/keeping_compiler.py"), state])
    cxx = executable(root / "my g++", f'#!/bin/sh\nexec {compiler} "$@" -O0\n')
    process = build(root / "out", source=root, CXX=str(cxx), FASTMETA_BUILD="cpu")
    assert process.returncode == 0, process.stderr
    (built,) = (root / "out").glob("fastmeta/_C*.so")
    assert loaded(built).isas() == ["baseline"]


@pytest.mark.parametrize(
    ("env", "words"),
    [
        ({"FASTMETA_BUILD": "gpu"}, "FASTMETA_BUILD must be auto, cuda, cpu or none, got 'gpu'"),
        (
            {"FASTMETA_BUILD": "cpu", "CXX": "/nowhere/g++"},
            "FASTMETA_BUILD=cpu cannot be met: no C++ compiler was found",
        ),
        ({"FASTMETA_BUILD": "cuda", "CXX": sys.executable} | NO_NVCC, "FASTMETA_BUILD=cuda cannot be met: no nvcc"),
        (
            {"FASTMETA_BUILD": "cpu", "CXX": "false"},
            "FASTMETA_BUILD=cpu cannot be met: the native kernels must compile",
        ),
    ],
)
def test_what_cannot_be_built_is_one_line(tmp_path, env, words):
    process = build(tmp_path, **env)
    assert process.returncode != 0
    assert [line for line in process.stderr.splitlines() if line.startswith("error: ") and words in line], (
        process.stderr
    )
    assert "Traceback" not in process.stderr


@pytest.mark.parametrize(
    "env", [{"FASTMETA_BUILD": "auto", "CXX": "/nowhere/g++"}, {"FASTMETA_BUILD": "none"}, {"CXX": "false"}]
)
def test_without_native_kernels(tmp_path, env):
    process = build(tmp_path, **env)
    assert process.returncode == 0, process.stderr
    assert "installing the pure-Python package, without native kernels: " in process.stderr
    assert not list(tmp_path.rglob("*.so"))
    assert list(tmp_path.rglob("_C_missing.txt"))


def tagged(folder, changelog):
    (folder / ".ci").mkdir()
    (folder / "fastmeta").mkdir()
    shutil.copy(ROOT / ".ci" / "tag", folder / ".ci")
    (folder / "fastmeta" / "__init__.py").write_text('__version__ = "1.2.0"\n')
    (folder / "CHANGELOG.md").write_text(changelog)
    git = ["git", "-C", folder, "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *command], check=True)
    names = {"GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@b"}
    ran = subprocess.run(
        ["bash", folder / ".ci" / "tag"], env=os.environ | names, stderr=subprocess.PIPE, text=True, check=False
    )
    said = subprocess.run(
        [*git, "tag", "-l", "--format=%(refname:short) %(contents)"], stdout=subprocess.PIPE, text=True
    )
    return ran, said.stdout


def test_a_tag_says_what_the_changelog_says_of_its_version(tmp_path):
    ran, tag = tagged(tmp_path, "# Changelog\n\n## 1.2.0 (2026-01-01)\n\n- New.\n\n## 1.2.0rc1\n\n- Old.\n")
    assert ran.returncode == 0, ran.stderr
    assert tag.strip() == "v1.2.0 ## 1.2.0 (2026-01-01)\n\n- New."


def test_no_tag_without_a_section_of_the_changelog(tmp_path):
    ran, tag = tagged(tmp_path, "# Changelog\n\n## Unreleased\n")
    assert (ran.returncode, ran.stderr, tag) == (
        1, 'tag: CHANGELOG.md must have a section "## 1.2.0", got none\n', ""
    )  # fmt: skip
