"""What programs in the languages of other libraries do, recorded and run as fastmeta's own: see `explain`."""

from . import functions as _functions  # noqa: F401  (which fills the table of what is recorded)
from .clones import Later, RecordedModule, are_parameters, gives_up, refuses, took, trace_of
from .heads import recorded_scores
from .losses import adapted
from .recorded import Outputs
from .report import explain
from .trace import NO_GRAD, Trace
from .unsettled import Unsettled

__all__ = [
    "NO_GRAD",
    "Later",
    "Outputs",
    "RecordedModule",
    "Trace",
    "Unsettled",
    "adapted",
    "are_parameters",
    "explain",
    "gives_up",
    "recorded_scores",
    "refuses",
    "took",
    "trace_of",
]
