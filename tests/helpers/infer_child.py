"""``lare2-rt`` on the instant engine in a process of its own, to be killed; the seconds of a call are the argument."""

import sys
import time

from lare2_rt import engines
from lare2_rt.cli import main
from tests.fakes.engine import FakeEngine

pause = float(sys.argv.pop(1))
engines.ENGINES = (FakeEngine(lambda call, output: time.sleep(pause)),)
main()
