from harness.engine import at_once  # noqa: F401
