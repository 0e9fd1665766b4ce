"""A job in a process of its own that starts in no time: words are key=value, its folder is hydra.run.dir."""

import json
import os
import sys
from pathlib import Path

from postrain.sweep.orphan import stop_with_the_sweep

SAID = dict(word.split("=", 1) for word in sys.argv[1:])
STATUS = Path(SAID["hydra.run.dir"]) / "status.json"

match SAID["do"]:
    case "finish":
        STATUS.write_text(json.dumps({"status": "done"}))
    case "watch":
        stop_with_the_sweep()
        STATUS.write_text(json.dumps({"status": "done"}))
    case "mistake":
        print("error: method.kl_coef: expected a number")
        sys.exit(2)
    case "die":
        os.kill(os.getpid(), 9)
