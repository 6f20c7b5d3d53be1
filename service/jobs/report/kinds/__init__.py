"""What a report shows of each kind of head: one module per kind, named as the kind.

A kind without a module has the general parts of a report only.
"""

from collections.abc import Mapping

from peterrec.model.kinds import kinds_in
from peterrec.service.jobs.report.kinds.descriptor import KindReport

REPORTS: Mapping[str, KindReport] = kinds_in(__name__, __path__)
"""What is shown of a kind, by its name."""
