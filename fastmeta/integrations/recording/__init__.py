"""What programs in the languages of other libraries do, recorded and run as fastmeta's own: see `explain`."""

from . import functions as _functions  # noqa: F401  (which fills the table of what is recorded)
from .clones import Recorder
from .losses import Loss, adapted
from .recorded import Outputs, Recorded
from .report import explain, note
from .trace import Trace, refer

__all__ = ["Loss", "Outputs", "Recorded", "Recorder", "Trace", "adapted", "explain", "note", "refer"]
