"""The audit log on its way to a SIEM: as OCSF or CEF, over HTTPS, syslog or into files, at least once and in order."""

from typing import Final

# Of a syslog message, in bytes: here, where the command line finds them without loading what delivers.
MESSAGE_BYTES: Final = 8000
"""Unless somebody says otherwise. RFC 5425 §4.3.1 wants receivers to take 8,192; rsyslog as it comes takes 8,096."""
LEAST_MESSAGE_BYTES: Final = 4096
"""An event in few words has room in it, in any form."""
MOST_MESSAGE_BYTES: Final = 65_000
"""RFC 5426 §3.2: what fits into a UDP datagram over IPv4, with room."""
