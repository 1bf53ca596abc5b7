"""The grammars of names, labels and addresses in Kubernetes objects, as checks.

What lives here: functions that take a string and return what is wrong with it, in the words that
Kubernetes uses, or None. No paths, no objects: `schema` puts those around.
Source: k8s.io/apimachinery/pkg/util/validation.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import re
from collections.abc import Callable
from datetime import datetime

TextCheck = Callable[[str], str | None]

_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_QUALIFIED = re.compile(r"([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]")
_CONFIG_KEY = re.compile(r"[-._a-zA-Z0-9]+")
_ENV_NAME = re.compile(r"[ -<>-~]+")
_QUANTITY = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([KMGTPE]i|[numkMGTPE]|[eE][+-]?[0-9]+)?")
_PORT_NAME = re.compile(r"(?=.*[a-z])[a-z0-9]+(-[a-z0-9]+)*")


def dns_label(value: str) -> str | None:
    """RFC 1123 label, at most 63 characters."""
    if len(value) > 63:
        return "must be no more than 63 characters"
    if not _LABEL.fullmatch(value):
        return (
            "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', "
            "and must start and end with an alphanumeric character (e.g. 'my-name', or '123-abc')"
        )
    return None


def dns_subdomain(value: str) -> str | None:
    """RFC 1123 subdomain, at most 253 characters."""
    if len(value) > 253:
        return "must be no more than 253 characters"
    if not _SUBDOMAIN.fullmatch(value):
        return (
            "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, "
            "'-' or '.', and must start and end with an alphanumeric character "
            "(e.g. 'example.com')"
        )
    return None


def qualified_name(value: str) -> str | None:
    """Key of a label, annotation or condition: `[prefix/]name`."""
    prefix, slash, name = value.rpartition("/")
    if slash:
        if not prefix:
            return "prefix part must be non-empty"
        if wrong := dns_subdomain(prefix):
            return f"prefix part {wrong}"
    if not name:
        return "name part must be non-empty"
    if len(name) > 63:
        return "name part must be no more than 63 characters"
    if not _QUALIFIED.fullmatch(name):
        return (
            "name part must consist of alphanumeric characters, '-', '_' or '.', and must start "
            "and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc')"
        )
    return None


def label_value(value: str) -> str | None:
    """Value of a label: empty, or up to 63 characters."""
    if len(value) > 63:
        return "must be no more than 63 characters"
    if value and not _QUALIFIED.fullmatch(value):
        return (
            "a valid label must be an empty string or consist of alphanumeric characters, '-', "
            "'_' or '.', and must start and end with an alphanumeric character "
            "(e.g. 'MyValue',  or 'my_value',  or '12345')"
        )
    return None


def config_key(value: str) -> str | None:
    """Key in a ConfigMap's `data`: it becomes a file name."""
    if len(value) > 253:
        return "must be no more than 253 characters"
    if not _CONFIG_KEY.fullmatch(value) or value in (".", "..") or value.startswith(".."):
        return (
            "a valid config key must consist of alphanumeric characters, '-', '_' or '.' "
            "(e.g. 'key.name',  or 'KEY_NAME',  or 'key-name')"
        )
    return None


def env_name(value: str) -> str | None:
    """Name of an environment variable: printable ASCII without `=`."""
    if not _ENV_NAME.fullmatch(value):
        return "a valid environment variable name must be printable ASCII without '='"
    return None


def port_name(value: str) -> str | None:
    """IANA service name (RFC 6335): at most 15 characters, at least one letter."""
    if len(value) > 15:
        return "must be no more than 15 characters"
    if not _PORT_NAME.fullmatch(value):
        return (
            "must contain only alphanumeric characters (a-z, 0-9), and hyphens (-), with a letter"
        )
    return None


def quantity(value: str) -> str | None:
    """Resource quantity such as `100m`, `1.5Gi`, `2e3`."""
    if not _QUANTITY.fullmatch(value):
        return (
            "quantities must match the regular expression "
            "'^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
        )
    return None


def ip_address(value: str) -> str | None:
    """IPv4 or IPv6 address, without prefix length or zone."""
    try:
        parsed = ipaddress.ip_address(value)
    except ValueError:
        parsed = None
    if parsed is None or "%" in value:
        return "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"
    return None


def cidr(value: str) -> str | None:
    """Network in CIDR notation, its host bits zero."""
    try:
        ipaddress.ip_network(value)
    except ValueError:
        network = False
    else:
        network = "/" in value
    if not network:
        return (
            "must be a valid CIDR value with all host bits zero, "
            "(e.g. 10.9.8.0/24 or 2001:db8::/64)"
        )
    return None


def timestamp(value: str) -> str | None:
    """RFC 3339 time, with or without fractional seconds."""
    try:
        parsed = datetime.fromisoformat(value)
    except ValueError:
        parsed = None
    if parsed is None or parsed.tzinfo is None or "T" not in value.upper():
        return "must be an RFC 3339 time (e.g. 2006-01-02T15:04:05Z)"
    return None


def base64_text(value: str) -> str | None:
    """Standard base64, as `binaryData` holds it."""
    try:
        base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        return "must be valid base64"
    return None
