"""What programs in the languages of other libraries do, recorded and run as fastmeta's own: see `explain`."""

from . import functions as _functions  # noqa: F401  (which fills the table of what is recorded)
from .clones import Later, RecordedModule, are_parameters, computes, gives_up, refuses, took, trace_of
from .heads import recorded_scores
from .losses import adapted
from .method import Method, Stepper, method_of
from .parameters import thetas_now, updated
from .recorded import Outputs, realised
from .report import explain
from .trace import NO_GRAD, Trace
from .unsettled import Unsettled

__all__ = [
    "NO_GRAD",
    "Later",
    "Method",
    "Outputs",
    "RecordedModule",
    "Stepper",
    "Trace",
    "Unsettled",
    "adapted",
    "are_parameters",
    "computes",
    "explain",
    "gives_up",
    "method_of",
    "realised",
    "recorded_scores",
    "refuses",
    "thetas_now",
    "took",
    "trace_of",
    "updated",
]
