"""Step 5. What is known, durably, before anything else happens: one run's write-ahead record."""

from embedctl.journal.commands import Spool as Spool
from embedctl.journal.journal import Journal as Journal
from embedctl.journal.recovery import Recovered as Recovered
from embedctl.journal.recovery import RecoveredAnswer as RecoveredAnswer
from embedctl.journal.recovery import RecoveredSegment as RecoveredSegment
from embedctl.journal.recovery import recover as recover
from embedctl.journal.trust import Trust as Trust
from embedctl.journal.trust import home_secret as home_secret
