"""What every test shares: how hypothesis searches.

Relies on hypothesis alone. The house profile tries the same examples in every run, so that a red
build stays red; `pytest --hypothesis-profile=explore` goes and looks for new ones.
"""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("house", derandomize=True, deadline=None, print_blob=True)
settings.register_profile("explore", deadline=None, print_blob=True, max_examples=5_000)
settings.load_profile("house")
