"""A fake job for a separate process: overrides are key=value, its folder is hydra.run.dir."""

import json
import os
import signal
import sys
import time
from pathlib import Path

from postrain.jobs.parent_watchdog import watch_parent

OVERRIDES = dict(word.split("=", 1) for word in sys.argv[1:])
STATUS = Path(OVERRIDES["hydra.run.dir"]) / "status.json"

match OVERRIDES["do"]:
    case "finish":
        STATUS.write_text(json.dumps({"status": "done"}))
    case "watch":
        watch_parent()
        STATUS.write_text(json.dumps({"status": "done"}))
    case "hang":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(600)
    case "save":

        def save(*_):
            STATUS.write_text(json.dumps({"status": "interrupted"}))
            sys.exit(143)

        signal.signal(signal.SIGTERM, save)
        time.sleep(600)
    case "mistake":
        print("error: method.kl_coef: expected a number")
        sys.exit(2)
    case "die":
        os.kill(os.getpid(), 9)
