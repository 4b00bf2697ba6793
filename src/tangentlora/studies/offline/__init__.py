"""Networks that the project makes itself, so that vision and speech run where there is no hub."""

from tangentlora.studies.offline.digits import make_digits
from tangentlora.studies.offline.made import Made, Size
from tangentlora.studies.offline.sounds import make_sounds
from tangentlora.studies.offline.speakers import by_speaker

__all__ = ["Made", "Size", "by_speaker", "make_digits", "make_sounds"]
