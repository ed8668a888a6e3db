"""Secrets must not reach a log, a tag or an artifact: the one rule of what looks like a secret."""

import re

HIDDEN = "***"
SECRET_FILES = (".env*", "*.pem", "*.key", "*.p12", "id_rsa*", "id_ed25519*", ".netrc", "credentials*", "*kubeconfig*")
"""Patterns of the names of files that are secrets as a whole."""
_PASSWORD = re.compile(r"(?P<scheme>[A-Za-z][\w+.-]*://)(?P<user>[^\s/@:]*):[^\s/\"']+@|(?P<bare>://)[^\s/@:]+@")
_ARGUMENT = re.compile(
    r"(?P<name>[\w-]*(?:password|passwd|secret|token|access_key|api_key|signature|credential)[\w-]*=)[^&\s\"']+", re.I
)
_ASSIGNMENT = re.compile(
    r"(?P<name>[\w-]*(?:password|passwd|passphrase|secret|token|(?:secret|access|api|private)[_-]?key(?:[_-]?id)?)"
    r"[\"']?\s*[:=]\s*)(?:(?P<quote>[\"'])[^\n]*?(?P=quote)|[^\s\"'&,;(){}\[\]]+)",
    re.I,
)
_AUTHORIZATION = re.compile(r"(?P<name>\b(?:bearer|basic)\s+)[\w.~+/=-]{8,}", re.I)
_TOKEN = re.compile(
    r"\b(?:(?:AKIA|ASIA)[0-9A-Z]{16}|gh[pousr]_\w{20,}|github_pat_\w{20,}|glpat-[\w-]{20,}|hf_[A-Za-z0-9]{20,}"
    r"|sk-[\w-]{20,}|xox[abprs]-[\w-]{10,}|AIza[\w-]{35}|eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*)"
)
_PRIVATE_KEY = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.S)


def mask_secrets(text: str) -> str:
    """Return the text with `***` in place of everything that looks like a secret.

    These are passwords in URIs (`scheme://user:password@host`), values of names such as `token` or `api_key`,
    authorization headers, the tokens of well-known services, and private keys.
    """

    def password(match: re.Match[str]) -> str:
        return f"{match['scheme']}{match['user']}:{HIDDEN}@" if match["scheme"] else f"{match['bare']}{HIDDEN}@"

    def assignment(match: re.Match[str]) -> str:
        quote = match["quote"] or ""
        return f"{match['name']}{quote}{HIDDEN}{quote}"

    text = _TOKEN.sub(HIDDEN, _PRIVATE_KEY.sub(HIDDEN, text))
    text = _ARGUMENT.sub(rf"\g<name>{HIDDEN}", _PASSWORD.sub(password, text))
    return _AUTHORIZATION.sub(rf"\g<name>{HIDDEN}", _ASSIGNMENT.sub(assignment, text))
