"""The verb that asks a trained adapter what it needs: audit."""

from __future__ import annotations

import argparse

from tangentlora.cli.result import Result
from tangentlora.options import given_for


def audit(options: argparse.Namespace) -> Result:
    """Audit an adapter; no with --strict where it makes the network worse, needs more, or nobody knows."""
    from tangentlora.studies.settings import Settings

    given = given_for(Settings, options)
    given.pop("lam", None)  # here it is the audit's and no problem's: 0 is allowed
    from tangentlora.studies.early import require_adapter
    from tangentlora.studies.limits import require_lam

    require_lam(options.lam, options.weight_decay)
    require_adapter(options.adapter, given)
    from tangentlora.studies.audit import audit_opened
    from tangentlora.studies.opened import open_adapter

    with open_adapter(options.adapter, given) as opened:
        found = audit_opened(
            opened,
            lam=options.lam,
            weight_decay=options.weight_decay,
            local=options.local,
            batch_size=options.batch_size or Settings.batch_size,
            progress=not options.quiet,
        )
    return Result(found.describe(), found.text(), options.strict and not found.satisfied)
