"""The SDK's log, through the standard library's logging, to the logger "agentwrit".

Warnings: a broker is lost, or back, once each; a renewal failed. Infos: fallbacks, and repeated requests. The log
contains no token, secret or proof: these are held in objects without a text form (`agentwrit.client.secrecy`), and
errors do not quote what was sent.
"""

import logging
from typing import Final

logger: Final = logging.getLogger("agentwrit")
