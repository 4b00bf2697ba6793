"""Settings → the examples that they name."""

from __future__ import annotations

from functools import cache

from tangentlora.data import Splits, load_splits
from tangentlora.models.load import load_sampling_rate
from tangentlora.studies.settings import Settings


def load_task(settings: Settings, sampling_rate: int | None = None) -> Splits:
    """Return the data that the settings name, recordings at the rate at which the network hears.

    That is `sampling_rate` in hertz, or what the files of the settings' model say. Raises InputError for
    anything in the data that cannot be used.
    """

    @cache
    def rate() -> int:
        return sampling_rate or load_sampling_rate(settings.model, revision=settings.revision)

    return load_splits(
        settings.data,
        settings.task,
        text_column=settings.text_column,
        label_column=settings.label_column,
        label_pattern=settings.label_pattern,
        seed=settings.data_seed,
        shots=settings.shots,
        test_limit=settings.test_limit,
        test_fraction=settings.test_fraction,
        test_data=settings.test_data,
        dev_data=settings.dev_data,
        sampling_rate=rate,
    )
