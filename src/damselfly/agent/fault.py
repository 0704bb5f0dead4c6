"""What an error is outside of this process: a class by name and a message without secrets."""

from damselfly.agent.warm import MESSAGE_CHARS_MAX, Fault
from damselfly.errors import DamselflyError, class_name, explain
from damselfly.log import redact


def fault_of(error: DamselflyError) -> Fault:
    """Tell an error with its causes."""
    return Fault(class_name(error), redact(explain(error))[:MESSAGE_CHARS_MAX])
