"""Examples and the tasks they pose: the only door to `datasets`. Heavy imports wait until data is read."""

from tangentlora.data.check import DataCheck
from tangentlora.data.checking import check_data
from tangentlora.data.classification import COMPLETION, Task, infer_task
from tangentlora.data.examples import Examples, Splits
from tangentlora.data.sampling import cap, hold_out, sample_shots
from tangentlora.data.sources import load_splits
from tangentlora.data.tasks import TASKS, task

__all__ = [
    "COMPLETION",
    "TASKS",
    "DataCheck",
    "Examples",
    "Splits",
    "Task",
    "cap",
    "check_data",
    "hold_out",
    "infer_task",
    "load_splits",
    "sample_shots",
    "task",
]
