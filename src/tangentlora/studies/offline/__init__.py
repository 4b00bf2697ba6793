"""Networks that the project makes itself, so that vision and speech run where there is no hub."""

from tangentlora.studies.offline.digits import make_digits
from tangentlora.studies.offline.made import Made, Size
from tangentlora.studies.offline.sounds import make_sounds

__all__ = ["Made", "Size", "make_digits", "make_sounds"]
