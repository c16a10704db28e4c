from harness.conv_learners import calls  # noqa: F401
from harness.engine import at_once  # noqa: F401
