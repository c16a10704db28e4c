"""Griffe extension: how the site sets docstrings. Mathematics in prose gets its signs, arguments and headwords lines of their own, and the
names of ops and learners link to their pages. What is code stays as it is."""

import ast
import re

from griffe import Extension

from harness.places import ROOT

INIT = ast.parse((ROOT / "fastmeta/__init__.py").read_text())
PUBLIC = {name.name for node in INIT.body if isinstance(node, ast.ImportFrom) for name in node.names}
SIGNS = {"theta": "θ", "alpha": "α", "beta": "β", "phi": "φ", "eps": "ε", "->": "→", "<-": "←"}  # noqa: RUF001
BASES = "|".join(["(?:d2?)?[A-Za-z]", "theta", "alpha", "beta", "phi", "mean", "sum", "softmax", "argmin"])
SUBSCRIPT = (
    rf"(?<![A-Za-z0-9])({BASES})_(\{{[^}}]*\}}|[A-Za-z0-9]+)(?![A-Za-z0-9_])",
    lambda m: f"{m[1]}<sub>{m[2].strip('{}')}</sub>",
)
RULES = [  # of prose, in order
    (r"\*\*(-?\w+)", r"<sup>\1</sup>"),
    (r"\*", "·"),
    SUBSCRIPT,
    SUBSCRIPT,  # those in a subscript
    (r"\^(-?\w+)", r"<sup>\1</sup>"),
    (r"(?<![A-Za-ce-z])(d?)(theta|alpha|beta|phi|eps|->|<-)(?![A-Za-z])", lambda m: m[1] + SIGNS[m[2]]),
    (r"\b(Shapes|Errors|Kernels|Sources?|Cost): ", r"**\1:** "),
]


class Docstrings(Extension):
    def on_object(self, *, obj, **_):
        if obj.docstring:
            obj.docstring.value = "\n".join(_lines(obj.docstring.value.split("\n"), obj.name))


def _lines(lines, own):
    fenced = False
    for line in lines:
        fenced ^= line.startswith("```")
        if fenced or line.startswith(("```", "    ")):
            yield line
            continue
        if re.match(r"(`\w+`(, | and )?)+:|`\w+`[^.:]{,40}: |(Errors|Kernels|Sources?): ", line):
            yield ""
        yield "".join(
            _code(part, own) if part.startswith("`") else _prose(part) for part in re.split(r"(`[^`]*`)", line)
        )


def _code(text, own):
    name = text.strip("`").removeprefix("fastmeta.")
    return f"[{text}][fastmeta.{name}]" if name in PUBLIC - {own} else text


def _prose(text):
    for pattern, replacement in RULES:
        text = re.sub(pattern, replacement, text)
    return text
