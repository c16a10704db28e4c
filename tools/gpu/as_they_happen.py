"""A plugin of pytest: writes each traceback as soon as there is one, and ends the run where the device is lost, since every later test
of the process would fail for it."""

import pytest

LOST = ("illegal memory access", "misaligned address", "unspecified launch failure", "device-side assert")
LOST_STATUS = 70


class AsTheyHappen:
    def __init__(self, terminal):
        self.terminal = terminal

    def pytest_runtest_logreport(self, report):
        if not report.failed:
            return
        self.terminal.ensure_newline()
        self.terminal.write_line(f"traceback of {report.nodeid}, {report.when}:\n{report.longreprtext}", flush=True)
        if any(words in report.longreprtext for words in LOST):
            pytest.exit(f"the device is lost since {report.nodeid}", LOST_STATUS)


@pytest.hookimpl(trylast=True)
def pytest_configure(config):
    config.pluginmanager.register(AsTheyHappen(config.pluginmanager.get_plugin("terminalreporter")))
