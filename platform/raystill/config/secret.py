"""Literal secrets: found in configurations so that they can be refused, and masked wherever text is shown."""

from __future__ import annotations

import re

# Prefixes that the issuers themselves document; a hit needs the prefix and the length of a real secret.
_SECRETS = re.compile(
    r"""(?<![A-Za-z0-9_./-])(?:
        sk-[A-Za-z0-9_-]{12,}                     # OpenAI and compatible APIs
      | hf_[A-Za-z0-9]{12,}                       # Hugging Face
      | A(?:KIA|SIA)[0-9A-Z]{16}                  # AWS access key id
      | gh[pousr]_[A-Za-z0-9]{20,} | github_pat_[A-Za-z0-9_]{20,}
      | AIza[0-9A-Za-z_-]{30,}                    # Google
      | xox[abprs]-[A-Za-z0-9-]{10,}              # Slack
      | -----BEGIN\ [A-Z ]*PRIVATE\ KEY-----
    )
    | (?<=://)[^/\s:@]+:[^/\s@]+(?=@)             # user:password in an address
    """,
    re.VERBOSE,
)


def has_secret(text: str) -> bool:
    """Whether `text` contains something that looks like a key, a token or a password."""
    return _SECRETS.search(text) is not None


def masked(text: str) -> str:
    """`text` with every secret cut to its first characters."""
    return _SECRETS.sub(lambda found: found.group()[:3] + "***", text)
