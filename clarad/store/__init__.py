"""Everything that is written down. The only room that knows SQL."""

from clarad.store.engine import StoreError, open_engine
from clarad.store.messages import MessageKey, Messages, Stored, Unfinished
from clarad.store.writer import Writer

__all__ = ["MessageKey", "Messages", "StoreError", "Stored", "Unfinished", "Writer", "open_engine"]
