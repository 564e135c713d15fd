"""`python -m tests.history.without_lineage`: a broker with a bug, that the checker is there to find.

It goes on with whatever history the database has, and takes none for another one.
"""

import sys
from collections.abc import Sequence
from typing import Any

from agentwrit.broker.__main__ import main
from agentwrit.broker.storage import postgres_lineage
from agentwrit.broker.storage.postgres_lineage import Survey
from agentwrit.broker.storage.sealing import Sealer

_true_survey = Survey.of


def _survey(row: Sequence[Any] | None, sealer: Sealer) -> Survey:
    """What the server says, and that the store knows its timeline."""
    survey = _true_survey(row, sealer)
    return survey._replace(history=survey.history._replace(timeline=survey.timeline))


Survey.of = _survey  # type: ignore[method-assign]
postgres_lineage._check_continues = lambda survey, seen: None
postgres_lineage._check_follows = lambda state, before: None

sys.exit(main())
