"""Triton's interpreter without what it repeats."""

import importlib.util
import inspect


def replace_once() -> None:
    """A launch replaces what triton.language has by what runs on numpy. Every function that a kernel calls looks through all of it
    again, for most of the time of a small launch; now only where something is left to replace."""
    if importlib.util.find_spec("triton") is None:
        return
    import triton.language as tl
    from triton.runtime import interpreter

    replace = interpreter._patch_lang

    def replace_what_is_left(fn):
        languages = [x for x in fn.__globals__.values() if inspect.ismodule(x) and x in (tl, tl.core)]
        if languages and not any(tl.core.is_builtin(x.load) for x in languages):
            return interpreter._LangPatchScope()  # of nothing
        return replace(fn)

    interpreter._patch_lang = replace_what_is_left
