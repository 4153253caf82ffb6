"""Media types: what a client may send and what it wants to be sent (RFC 9110, sections 8.3 and 12.5.1)."""

from collections.abc import Sequence

JSON = "application/json"
RESPONSE_JSON = "application/graphql-response+json"


def negotiate(accept_headers: Sequence[str]) -> str | None:
    """The media type to answer in; None where it accepts neither. JSON unless the other is asked for."""
    ranges: dict[str, float] = {}
    for text in ",".join(accept_headers).split(","):
        if text.strip():
            media_range, parameters = parse_media_type(text)
            if parameters.get("charset", "utf-8") == "utf-8":
                ranges[media_range] = max(_quality(parameters), ranges.get(media_range, 0.0))
    if not any(text.strip() for text in accept_headers):
        return JSON
    anything = ranges.get("application/*", ranges.get("*/*", 0.0))
    json, response_json = ranges.get(JSON, anything), ranges.get(RESPONSE_JSON, 0.0)
    if response_json > 0 and response_json >= json:
        return RESPONSE_JSON
    return JSON if json > 0 else None


def accepts_html(accept_headers: Sequence[str]) -> bool:
    """Whether it is a browser that wants a page: only those name text/html."""
    return any(parse_media_type(text)[0] == "text/html" for text in ",".join(accept_headers).split(","))


def parse_media_type(text: str) -> tuple[str, dict[str, str]]:
    """Type and parameters, all in lower case."""
    media_type, *rest = (part.strip().lower() for part in text.split(";"))
    pairs = (part.partition("=") for part in rest)
    return media_type, {name.strip(): value.strip().strip('"') for name, _, value in pairs}


def _quality(parameters: dict[str, str]) -> float:
    try:
        quality = float(parameters.get("q", "1"))
    except ValueError:
        return 0.0
    return quality if 0.0 <= quality <= 1.0 else 0.0
