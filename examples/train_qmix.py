"""Prune a network with QMIX: load, search, distil, report.

    python examples/train_qmix.py                                            # digits: about 80 seconds on 2 cores
    python examples/train_qmix.py --network vgg16 --data cifar10 --target-macs 0.4
    python examples/train_qmix.py --target-macs 0.3 0.5 0.7                  # one search, a network for each budget

All files go to runs/<name>/. After Ctrl-C, or even kill -9, --resume continues from the last checkpoint.
"""

from __future__ import annotations

import tyro

from prune_env.commands.run import INTERRUPTED, RunConfig, prune
from prune_env.common.command import one_line_errors

if __name__ == "__main__":
    with one_line_errors(INTERRUPTED):
        prune(tyro.cli(RunConfig, description=__doc__))
