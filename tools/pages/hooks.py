"""MkDocs hook: the pages that are made of other files. Each op has a page: docstring, backends, cost."""

import ast
import re

from mkdocs.structure.files import File

from harness.places import ROOT
from pages import costs

PARTS = {"proto_loss_loo": "`prototypes` and `proto_loss`", "symmetric_loss": "two calls of `proto_loss`"}
OPS = sorted(p.stem for family in ("distance", "inner") for p in (ROOT / "fastmeta" / family).glob("[a-z]*.py"))
COPIES = {"contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}


def on_config(config):
    """The nav lists `ops/*` once."""
    for entry in config.nav:
        if pages := entry.get("Ops"):
            pages[pages.index("ops/*") :] = [{op: f"ops/{op}.md"} for op in OPS]
    return config


def on_files(files, config):
    for name, source in COPIES.items():
        files.append(File.generated(config, name, content=_moved((ROOT / source).read_text())))
    files.append(File.generated(config, "ops/index.md", content=_overview()))
    for op in OPS:
        files.append(File.generated(config, f"ops/{op}.md", content=_op_page(op)))
    for picture in sorted((ROOT / "bench/results").glob("*.svg")):
        files.append(File.generated(config, f"results/{picture.name}", abs_src_path=str(picture)))
    return files


def on_page_markdown(markdown, page, **_):
    """A link to a source file stays as its text; a picture of the benches is there."""
    markdown = markdown.replace("](../bench/results/", "](results/")
    return re.sub(r"\[([^]]+)\]\((\.\./[^)]+)\)", lambda link: _source(page.file, *link.groups()), markdown)


def _source(file, text, target):
    if file.generated_by:
        return f"[{text}]({target})"
    if not (ROOT / "docs" / target).exists():
        raise FileNotFoundError(f"{file.src_uri}: a link must lead to a file, got {target}")
    return text


def _moved(text):
    """Links of a file in the repository's root, as from docs/."""
    text = re.sub(r"\]\(docs/(\w+\.md)", r"](\1", text)
    for name, source in COPIES.items():
        text = text.replace(f"]({source}", f"]({name}")
    return text


def _functions(path):
    """The names that a module or a stub defines; none if it is not there."""
    tree = ast.parse(path.read_text()) if path.exists() else ast.Module([], [])
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def backends(op):
    """Backend -> which passes it has kernels for, as the sources say."""
    native, triton = _functions(ROOT / "fastmeta/_C.pyi"), _functions(ROOT / f"kernels/{op}.py")
    cuda = native if any((ROOT / "csrc").glob(f"*/cuda/{op}.cu")) else set()
    found = {"Triton (CUDA)": triton, "ext on CPU (C++)": native, "ext on CUDA (CUDA C++)": cuda}
    return {name: _passes(op, functions) for name, functions in found.items()}


def _passes(op, functions):
    passes = [word for word, end in (("forward", "fwd"), ("backward", "bwd")) if f"{op}_{end}" in functions]
    return ", ".join(passes) or "-"


def _overview():
    names = list(backends(OPS[0]))
    rows = [f"| [`{op}`]({op}.md) | " + " | ".join(backends(op).values()) + " |" for op in OPS]
    return "\n".join(
        [
            "# Ops",
            "",
            "Every op takes tasks as leading dimensions and runs on the reference (plain PyTorch) too: on any device, with "
            "derivatives of every order. `python -m fastmeta.info` says what an installation has.",
            "",
            f"| op | {' | '.join(names)} |",
            "| --- " * (len(names) + 1) + "|",
            *rows,
        ]
    )


def _op_page(op):
    lines = [
        f"::: fastmeta.{op}",
        "    options: {heading_level: 1}",
        "",
        "## Backends",
        "",
        "| backend | kernels |",
        "| --- | --- |",
    ]
    lines += [f"| {name} | {passes} |" for name, passes in backends(op).items()]
    how = {"hvp": "torch.func"}.get(op, "any device, any order")
    if op in PARTS:
        lines.append(f"| its parts, {PARTS[op]} | where it has none of its own |")
    lines += [f"| reference | {how} |", "", f"What works under which transform: [table](../transforms.md). `bench/bench_{op}.py` "
              "races it against the alternatives.", "", "## Cost", ""]  # fmt: skip
    if op not in costs.OF_OPS:  # no kernels for a GPU to count
        return "\n".join([*lines, "See above."])
    sizes, launches = costs.OF_OPS[op]
    lines += [f"On a GPU, float32, {sizes}; the bytes are those from and to its memory (`tools/pages/costs.py`).", ""]
    lines += ["| launch | bytes | flops |", "| --- | ---: | ---: |", *map(_row, launches)]
    return "\n".join(lines)


def _row(launch):
    return f"| {launch.name} | {launch.bytes:,.0f} | {launch.flops:,.0f} |"
