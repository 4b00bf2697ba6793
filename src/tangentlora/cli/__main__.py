"""`python -m tangentlora.cli`, where the command is not on the path."""

from __future__ import annotations

import sys

from tangentlora.cli import main

sys.exit(main())
