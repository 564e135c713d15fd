"""What the SDK logs, by the standard library's logging, to the logger "agentwrit".

Warnings: a broker that is lost and one that is back, once each; renewals that fail. Infos: what is done in another way
than usual, and requests that are made again. No token, secret or proof is in any of it: what those are held in has no
text of its own (`agentwrit.client.secrecy`), and errors say nothing of what was sent.
"""

import logging
from typing import Final

logger: Final = logging.getLogger("agentwrit")
