"""What programs in the languages of other libraries do, recorded and run as fastmeta's own: see `explain`."""

from .clones import Recorder
from .recorded import Outputs, Recorded
from .report import explain, note
from .scalars import Loss, adapted
from .trace import Trace, refer

__all__ = ["Loss", "Outputs", "Recorded", "Recorder", "Trace", "adapted", "explain", "note", "refer"]
