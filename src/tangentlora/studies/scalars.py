"""TensorBoard scalars while a study trains."""

from __future__ import annotations

from pathlib import Path

from tangentlora.errors import InputError
from tangentlora.studies.cells import Scalars
from tangentlora.studies.study import Case, Cell


class ScalarWriter:
    """Write each cell's objective, gap, accuracies and losses below `folder`, in a run `case/cell`.

    Raises InputError where the package tensorboard is absent.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise InputError(
                "got --tensorboard, but the package tensorboard is absent, expected it installed: run pip "
                "install 'tangentlora[studies]' or leave the option out"
            ) from error
        self._open = SummaryWriter
        self._folder = folder

    def of(self, case: Case, cell: Cell) -> Scalars:
        """Return the function that writes one cell's scalars; each call reaches the disk at once."""

        def write(epoch: int, values: dict[str, float]) -> None:
            with self._open(str(self._folder / case.name / cell.slug)) as writer:
                for name, value in values.items():
                    writer.add_scalar(name, value, epoch)

        return write
