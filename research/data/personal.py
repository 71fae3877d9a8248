"""Personal data in text, found by its form and its checksum, and masked by placeholders: `<EMAIL>`, `<IBAN>`, `<ID>`, `<CARD>`, `<IP>`, `<PHONE>`.

| kind  | what is found                                                                                                       |
| ----- | ------------------------------------------------------------------------------------------------------------------- |
| email | ASCII addresses of letters, digits and `._%+-` before the @; not `git@host:path`, nor files such as `logo@2x.png`   |
| iban  | International Bank Account Numbers: the country's length and ISO 7064 mod 97-10                                      |
| id    | Chinese resident identity numbers of 18 characters (GB 11643-1999: province, date, ISO 7064 mod 11-2); US social     |
|       | security numbers with hyphens (area not 000, 666 or 9xx, no group or serial of zeros)                                |
| card  | payment cards: issuer's prefix and length (ISO/IEC 7812), Luhn; digits in one run or in the usual groups             |
| ip    | public IPv4 and IPv6 addresses; local ones if asked for; never multicast, nor what looks like a version             |
| phone | `+` and a country code (E.164); North American with separators; Chinese mobile and landline numbers, also after 0086 |

What is not found: names, postal addresses, passports; national phone formats other than the North American and Chinese ones without a
country code; Chinese identity numbers of 15 digits, which carry no checksum; anything spelt out ("name at host dot com"); digits that are not
ASCII (normalise to NFKC first). A run of 11 digits that begins as a Chinese mobile number cannot be told from an order number and is taken.

Every pattern matches a bounded number of characters from each start, so time is linear in the length of the text.
"""

import ipaddress
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import partial

from research.core.errors import UserError

KINDS = ("email", "iban", "id", "card", "ip", "phone")
"""In order of precedence: where two finds overlap, the kind that comes first is kept; within a kind, the one that begins first."""


@dataclass(frozen=True, order=True)
class Span:
    """Characters `start` to `end` (exclusive) of a text are personal data of `kind`, one of `KINDS`."""

    start: int
    end: int
    kind: str


def find(text: str, kinds: Sequence[str] = KINDS, local_ips: bool = False) -> list[Span]:
    """Returns the personal data of `kinds` in `text`, in order and without overlaps; `local_ips` counts private, loopback and link-local
    addresses too. Raises UserError for a kind that is not in `KINDS`."""
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise UserError(f"{unknown} are no kinds of personal data. Known kinds: {', '.join(KINDS)}.")
    taken = bytearray(len(text))
    spans = []
    for kind in KINDS:
        if kind in kinds:
            for start, end in _finds(text, kind, local_ips):
                # A combining solidus behind a placeholder would merge with its ">" under Unicode normalisation.
                if not any(taken[start:end]) and text[end : end + 1] != "\u0338":
                    taken[start:end] = b"\1" * (end - start)
                    spans.append(Span(start, end, kind))
    return sorted(spans)


def mask(text: str, kinds: Sequence[str] = KINDS, local_ips: bool = False) -> tuple[str, dict[str, int]]:
    """Returns (`text` with a placeholder for every find, how many of each kind, sorted by kind).

    Nothing is left to find: where masking one number makes another one visible, that one is masked too. (This ends: placeholders hold
    no digit, "@" or ":", so each turn leaves fewer of them.)
    """
    counts: Counter[str] = Counter()
    while spans := find(text, kinds, local_ips):
        parts, position = [], 0
        for span in spans:
            parts += [text[position : span.start], f"<{span.kind.upper()}>"]
            position = span.end
        text = "".join([*parts, text[position:]])
        counts.update(span.kind for span in spans)
    return text, dict(sorted(counts.items()))


def _finds(text: str, kind: str, local_ips: bool) -> Iterator[tuple[int, int]]:
    if kind == "email":
        return _verified(text, _EMAIL, _email_end) if "@" in text else iter(())
    if not _DIGIT.search(text):
        return iter(())
    if kind == "ip":
        return _verified(text, _IP, partial(_ip_end, local=local_ips))
    return _verified(text, *_NUMBERS[kind])


def _verified(
    text: str, pattern: re.Pattern[str], end_of: Callable[[re.Match[str]], int | None]
) -> Iterator[tuple[int, int]]:
    """(start, end) of the candidates that `end_of` accepts; after one that it rejects, the next may begin one character later."""
    position = 0
    while match := pattern.search(text, position):
        end = end_of(match)
        if end is None:
            position = match.start() + 1
        else:
            yield match.start(), end
            position = end


_DIGIT = re.compile("[0-9]")

# Boundaries of a number: no letter, digit or underscore beside it, and no further group of digits joined to it by a point or hyphen.
_BEFORE = r"(?<![0-9A-Za-z_])(?<![0-9][.\-])"
_AFTER = r"(?![0-9A-Za-z_])(?![.\-][0-9])"

_EMAIL = re.compile(
    r"(?<![A-Za-z0-9_%+-])(?=[A-Za-z0-9._%+-]{1,64}@)[A-Za-z0-9_%+-]++(?:\.[A-Za-z0-9_%+-]++)*+"
    r"@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.){1,8}(xn--[A-Za-z0-9-]{2,59}|[A-Za-z]{2,24})"
    r"(?![A-Za-z0-9_])(?!-[A-Za-z0-9])(?!:[A-Za-z0-9._~-]{1,64}/)"
)
_FILES = {"png", "jpg", "jpeg", "gif", "webp", "svg", "bmp", "ico", "avif", "css", "js", "html", "pdf"}


def _email_end(match: re.Match[str]) -> int | None:
    return None if match[1].lower() in _FILES else match.end()


_IBAN = re.compile(r"(?<![0-9A-Za-z_])[A-Z]{2}[0-9]{2}(?: ?[0-9A-Z]){11,30}+")
# Lengths by country: IBAN Registry (SWIFT, ISO 13616).
_IBAN_LENGTHS: Mapping[str, int] = {
    country: int(length)
    for country, length in re.findall(
        "([A-Z]{2})([0-9]{2})",
        "AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DK18 DO28 EE20 EG29 ES24 FI18 FO18 FR27 GB22 "
        "GE22 GI23 GL18 GR27 GT28 HR21 HU28 IE22 IL23 IQ23 IS26 IT27 JO30 KW30 KZ20 LB28 LC32 LI21 LT20 LU20 LV21 LY25 MC27 MD24 ME22 "
        "MK19 MR27 MT31 MU30 NL18 NO15 PK24 PL28 PS29 PT25 QA29 RO24 RS22 SA24 SC31 SE24 SI19 SK24 SM27 ST25 SV28 TL23 TN24 TR26 UA29 "
        "VA22 VG24 XK20",
    )
}


_JOINED = re.compile("[0-9A-Za-z_]")


def _iban_end(match: re.Match[str]) -> int | None:
    """The candidate may run on into the next word in capitals: it is cut at its country's length."""
    length = _IBAN_LENGTHS.get(match[0][:2], 0)
    places = [place for place, character in enumerate(match[0]) if character != " "][:length]
    if not places or len(places) < length:
        return None
    end = match.start() + places[-1] + 1
    characters = match.string[match.start() : end].replace(" ", "")
    valid = int("".join(str(int(c, 36)) for c in characters[4:] + characters[:4])) % 97 == 1
    return end if valid and not _JOINED.match(match.string, end) else None


_ID = re.compile(
    rf"{_BEFORE}(?:(?P<chinese>[1-9][0-9]{{5}}(?:19|20)[0-9]{{9}}[0-9Xx])"
    rf"|(?!000|666|9)[0-9]{{3}}-(?!00)[0-9]{{2}}-(?!0000)[0-9]{{4}}){_AFTER}"
)
# GB/T 2260, first two digits; 83 and 91 are residents from Taiwan and foreigners with permanent residence.
_PROVINCES = {
    *range(11, 16),
    *range(21, 24),
    *range(31, 38),
    *range(41, 47),
    *range(50, 55),
    *range(61, 66),
    71,
    81,
    82,
    83,
    91,
}


def _id_end(match: re.Match[str]) -> int | None:
    number = match["chinese"]
    return match.end() if number is None or _is_chinese_id(number) else None


def _is_chinese_id(number: str) -> bool:
    try:
        date(int(number[6:10]), int(number[10:12]), int(number[12:14]))
    except ValueError:
        return False
    check = 0
    for digit in number[:17]:
        check = (check + int(digit)) * 2 % 11
    last = 10 if number[17] in "Xx" else int(number[17])
    return int(number[:2]) in _PROVINCES and (check + last) % 11 == 1


_CARD = re.compile(
    rf"{_BEFORE}(?:[0-9]{{13,19}}|[0-9]{{6}} [0-9]{{13}}|3[0-9]{{3}}([ \-])[0-9]{{6}}\1[0-9]{{4,5}}"
    rf"|[0-9]{{4}}([ \-])[0-9]{{4}}\2[0-9]{{4}}\2[0-9]{{4}}(?P<tail>\2[0-9]{{1,3}})?){_AFTER}"
)
_ISSUERS = (  # first digits from, to, and lengths: ISO/IEC 7812 ranges as the networks publish them
    ("4", "4", (13, 16, 19)),  # Visa
    ("51", "55", (16,)),  # Mastercard
    ("2221", "2720", (16,)),
    ("34", "34", (15,)),  # American Express
    ("37", "37", (15,)),
    ("6011", "6011", range(16, 20)),  # Discover
    ("644", "659", range(16, 20)),
    ("300", "305", range(14, 20)),  # Diners Club
    ("36", "36", range(14, 20)),
    ("38", "39", range(14, 20)),
    ("3528", "3589", range(16, 20)),  # JCB
    ("62", "62", range(16, 20)),  # UnionPay
    ("81", "81", range(16, 20)),
    ("2200", "2204", range(16, 20)),  # Mir
    ("50", "50", range(13, 20)),  # Maestro
    ("56", "58", range(13, 20)),
    ("63", "63", range(13, 20)),
    ("67", "67", range(13, 20)),
)


def _card_end(match: re.Match[str]) -> int | None:
    """A group of one to three digits behind four groups of four may be the card's own or, as a security code, not."""
    ends = [match.end()] if match["tail"] is None else [match.end(), match.start("tail")]
    for end in ends:
        digits = re.sub("[^0-9]", "", match.string[match.start() : end])
        known = any(low <= digits[: len(low)] <= high and len(digits) in lengths for low, high, lengths in _ISSUERS)
        if known and _passes_luhn(digits):
            return end
    return None


def _passes_luhn(digits: str) -> bool:
    doubled = (sum(divmod(2 * int(digit), 10)) for digit in digits[-2::-2])
    return (sum(map(int, digits[-1::-2])) + sum(doubled)) % 10 == 0


_IP = re.compile(
    r"(?<![0-9A-Za-z_.])(?<![0-9A-Za-z]/)(?<![A-Za-z]-)(?:[0-9]{1,3}\.){3}[0-9]{1,3}(?![0-9A-Za-z_]|\.[0-9]|-[A-Za-z])"
    r"|(?<![0-9A-Za-z_:.])[0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f]{0,4}){2,7}(?![0-9A-Za-z_:]|\.[0-9])"
)
_VERSION = re.compile(r"(?:\b(?:version|ver\.?|v|release|build|firmware)|版本号?)[\s:：=]*$", re.IGNORECASE)
_NO_HOSTS = tuple(
    map(ipaddress.ip_network, ("0.0.0.0/8", "224.0.0.0/3"))
)  # "this network"; multicast, reserved, netmasks
# Listed here, since what `ipaddress` calls private has changed between versions of Python.
_LOCAL_IPV4 = ("10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16")
_LOCAL = tuple(map(ipaddress.ip_network, (*_LOCAL_IPV4, "::1/128", "fc00::/7", "fe80::/10")))
_GLOBAL_IPV6 = ipaddress.ip_network("2000::/3")


def _ip_end(match: re.Match[str], local: bool) -> int | None:
    text = match[0][:-1] if match[0].endswith(":") and not match[0].endswith("::") else match[0]
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    if any(address in network for network in _LOCAL):
        return match.start() + len(text) if local else None
    if address.version == 6:
        found = address in _GLOBAL_IPV6
    else:
        found = not any(address in network for network in _NO_HOSTS) and not _looks_like_version(match)
    return match.start() + len(text) if found else None


def _looks_like_version(match: re.Match[str]) -> bool:
    """Four single digits, or a word for a version just before."""
    before = match.string[max(match.start() - 16, 0) : match.start()]
    return len(match[0]) == len("1.2.3.4") or _VERSION.search(before) is not None


_PHONE = re.compile(
    _BEFORE
    + "(?:"
    + "|".join(
        (
            r"(?:\(?(?:\+|00)?86\)?[ \-]?)?1[3-9][0-9]([ \-]?)[0-9]{4}\1[0-9]{4}",  # Chinese mobile
            # Chinese landline, area code 010, 02x or 0xxx, with an extension
            r"(?:\(?(?:\+|00)86\)?[ \-]?)?(?:[(（]0(?:10|2[0-9]|[3-9][0-9]{2})[)）][ \-]?|0(?:10|2[0-9]|[3-9][0-9]{2})-)"
            r"[2-9][0-9]{6,7}(?:-[0-9]{1,6})?",
            # North American Numbering Plan: neither area code nor exchange begins with 0 or 1
            r"(?:\+|00)1[ .\-]?\(?[2-9][0-8][0-9]\)?[ .\-]?[2-9][0-9]{2}[ .\-]?[0-9]{4}",
            r"(?:1[ .\-])?(?:\([2-9][0-8][0-9]\) ?|[2-9][0-8][0-9][ .\-])[2-9][0-9]{2}[ .\-][0-9]{4}",
            r"\+[2-9](?:[ .()\-]{0,2}[0-9]){7,14}",  # E.164: at most 15 digits
        )
    )
    + ")"
    + _AFTER
)
_NUMBERS = {
    "iban": (_IBAN, _iban_end),
    "id": (_ID, _id_end),
    "card": (_CARD, _card_end),
    "phone": (_PHONE, re.Match.end),
}
