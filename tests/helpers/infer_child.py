"""``lare2-rt`` on the instant engine in a process of its own, to be killed; the seconds of a call are the argument."""

import sys
import time

from lare2_rt.cli import main
from lare2_rt.engines import registry
from tests.fakes.engine import FakeEngine, entry

pause = float(sys.argv.pop(1))
registry.ENGINES = (entry(FakeEngine(lambda call, output: time.sleep(pause))),)
main()
