"""Appends to a ledger and tells of each line once it is on the disk, until it is killed; started by ``test_owner.py``."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from ifedicl.ledger.ledger import REPLY, Ledger

ledger = Ledger(Path(sys.argv[1]), "clinic")
while True:
    head = ledger.append(REPLY, {"kind": "update_reply", "filler": "x" * 3000, "held": ledger.head.entries})
    os.write(1, f"{head.entries} {head.digest}\n".encode())
