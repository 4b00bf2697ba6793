"""The run-time type checker of the tests: shapes and types in the signatures of the project, on every call.

Integers pass for floats, as they do in the static type checker.
"""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
