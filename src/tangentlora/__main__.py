"""`python -m tangentlora`, where the command is not on the path, and `torchrun … -m tangentlora`."""

from __future__ import annotations

import sys

from tangentlora.cli import main

sys.exit(main())
