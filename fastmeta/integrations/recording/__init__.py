"""What programs in the languages of other libraries do, recorded and run as fastmeta's own: see `explain`."""

from . import functions as _functions  # noqa: F401  (which fills the table of what is recorded)
from .clones import Later, RecordedModule, gives_up, refuses, took, trace_of
from .heads import recorded_scores
from .losses import adapted
from .method import Method, Stepper, method_of
from .recorded import Outputs
from .report import explain
from .trace import NO_GRAD, Trace

__all__ = [
    "NO_GRAD",
    "Later",
    "Method",
    "Outputs",
    "RecordedModule",
    "Stepper",
    "Trace",
    "adapted",
    "explain",
    "gives_up",
    "method_of",
    "recorded_scores",
    "refuses",
    "took",
    "trace_of",
]
