"""What each failure code means, and who can do something about it, in a sentence for the coordinator."""

from __future__ import annotations

from collections.abc import Mapping

from ifedicl.federation.messages import FailureCode

_OWNERS_LOG = "the owner's own log says which"
FAILURE_WORDS: Mapping[FailureCode, str] = {
    FailureCode.NO_EXAMPLES: "it has no example with a label of this task",
    FailureCode.NO_CONTEXT: "it does not have the job or the global vectors, for instance after a restart",
    FailureCode.WRONG_MODEL: "its model has another fingerprint: use the job's model there",
    FailureCode.BAD_TASK: "its model cannot score this task; its log says why",
    FailureCode.BAD_REQUEST: "the request does not fit the job: server and site may have different versions of ifedicl",
    FailureCode.NOT_FINITE: 'its numbers are not finite: try model.dtype = "float32" there, or a lower learning rate',
    FailureCode.INTERNAL: "its client cannot start or failed; its log says why",
    FailureCode.REFUSED: f"its owner's rules do not allow this, or the job is not approved; {_OWNERS_LOG} rule",
    FailureCode.TOO_FEW: f"it has fewer examples than its owner's rules ask for; {_OWNERS_LOG} rule",
    FailureCode.SPENT: f"a limit of its owner is reached; {_OWNERS_LOG} limit",
    FailureCode.LEDGER: "its ledger cannot be written, or is not the one that the server knows: restore the newest there",
    FailureCode.CHANGED: "its examples have changed since an earlier sum",
    FailureCode.LIGHT: "it has so few of all examples that its change would round to nothing",
    FailureCode.OTHER_MODE: "its [sums] section and the job's privacy.mode differ",
    FailureCode.PROTOCOL: "a step of the secure sum did not verify or came out of order",
    FailureCode.LATE: "no reply before coordination.deadline_seconds",
    FailureCode.LOST: "it is not connected",
    FailureCode.BAD_REPLY: "its reply cannot be read: server and site may have different versions of ifedicl",
}
"""By code. None of them quotes anything of a site: there is nothing to quote."""
