"""Delivery of the audit log to a SIEM: as OCSF or CEF, over HTTPS or syslog or into files, at least once, in order."""

from typing import Final

# Sizes of a syslog message, in bytes. They are here so that the command line need not import the sinks.
MESSAGE_BYTES: Final = 8000
"""The default. RFC 5425 §4.3.1 wants receivers to accept 8,192; rsyslog accepts 8,096 by default."""
LEAST_MESSAGE_BYTES: Final = 4096
"""A shortened event fits into this size in any format."""
MOST_MESSAGE_BYTES: Final = 65_000
"""RFC 5426 §3.2: somewhat less than fits into a UDP datagram over IPv4."""
