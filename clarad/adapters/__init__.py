"""The client side of the protocol: a class for adapters, the terminal adapter, the operator."""

from clarad.adapters.adapter import Adapter, open_adapter
from clarad.adapters.errors import AuthError, GatewayError, UnansweredError
from clarad.adapters.session import Answer, AnswerFrame, Outcome

__all__ = [
    "Adapter",
    "Answer",
    "AnswerFrame",
    "AuthError",
    "GatewayError",
    "Outcome",
    "UnansweredError",
    "open_adapter",
]
