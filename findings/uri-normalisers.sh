#!/usr/bin/env bash
# Five Python libraries that normalise URIs, against RFC 3986 §6.2.2, which a DPoP proof's `htu` is compared by (RFC 9449 §4.3).
#
# Guess: they agree on what the section names: case of the percent-encoding, unreserved characters, dot segments.
# Seen:
# - rfc3986 2.0.0, named after the standard, leaves %7E and %2E as they are, though §6.2.2.2 decodes unreserved characters.
# - furl 2.1.4 and yarl 1.25.1 (what aiohttp sends requests with) decode %3A and %40, which are reserved: §2.2 says that
#   such URIs are not equivalent. A signature over the URI that the caller wrote is then over another one than is sent.
# - hyperlink 21.0.0 decodes the dots of a segment after it has removed the dot segments; furl leaves dot segments.
# - url-normalize 3.1.0 makes one slash of two, which no rule of §6.2.2 does.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" --disable-pip-version-check install --quiet \
  rfc3986==2.0.0 url-normalize==3.1.0 hyperlink==21.0.0 furl==2.1.4 yarl==1.25.1
cat >"$dir/run.py" <<'PY'
import furl, hyperlink, rfc3986, url_normalize, yarl

LIBRARIES = {
    "rfc3986": rfc3986.normalize_uri,
    "url-normalize": url_normalize.url_normalize,
    "hyperlink": lambda uri: hyperlink.URL.from_text(uri).normalize().to_uri().to_text(),
    "furl": lambda uri: furl.furl(uri).url,
    "yarl": lambda uri: str(yarl.URL(uri)),
}
PATHS = {  # a path, and what §6.2.2 makes of it
    "/%7Euser": "/~user",
    "/a%2fb": "/a%2Fb",
    "/a/./b/../c": "/a/c",
    "/%2e%2e/a": "/a",
    "/a%3Ab": "/a%3Ab",
    "/a%40b": "/a%40b",
    "/a//b": "/a//b",
    "/a:b@c": "/a:b@c",
    "/%c3%a9": "/%C3%A9",
}
for path, wanted in PATHS.items():
    other = {}
    for name, normalise in LIBRARIES.items():
        seen = normalise("http://example.com" + path).removeprefix("http://example.com")
        if seen != wanted:
            other[name] = seen
    print(f"{path} is {wanted}", "for all" if not other else "but " + ", ".join(f"{seen} for {name}" for name, seen in other.items()))
PY
"$dir/venv/bin/python" "$dir/run.py" | tee "$dir/seen"
diff -u - "$dir/seen" <<'EXPECTED'
/%7Euser is /~user but /%7Euser for rfc3986
/a%2fb is /a%2Fb for all
/a/./b/../c is /a/c but /a/./b/../c for furl
/%2e%2e/a is /a but /%2E%2E/a for rfc3986, /../a for hyperlink, /../a for furl
/a%3Ab is /a%3Ab but /a:b for furl, /a:b for yarl
/a%40b is /a%40b but /a@b for furl, /a@b for yarl
/a//b is /a//b but /a/b for url-normalize
/a:b@c is /a:b@c for all
/%c3%a9 is /%C3%A9 for all
EXPECTED
