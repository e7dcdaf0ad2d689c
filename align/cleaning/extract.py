"""Main text of web pages (trafilatura), of crawls (warcio) and of PDF text layers (pypdf)."""

from __future__ import annotations

import html as entities
import re
from collections.abc import Iterator
from typing import Any

from align.cleaning.decoding import declared, decode
from align.cleaning.optional import package

# More than this is no page: what would unpack to gigabytes is not held.
PAGE_BYTES = 64 << 20
_HIDDEN = re.compile(
    r"<(script|style|noscript|template|svg)\b.*?</\1\s*>|<!--.*?-->", re.DOTALL | re.IGNORECASE
)
_BREAKS = re.compile(
    r"<(?:br|/?p|/?div|/?li|/?tr|/?h[1-6]|/?section|/?article|/?ul|/?ol|/?table)\b[^>]*>",
    re.IGNORECASE,
)
_TAGS = re.compile(r"<[^>]*>")
_HAN_END = re.compile(r"(?<=[\u2e80-\u9fff\uff00-\uffef])\n(?=[\u2e80-\u9fff\uff00-\uffef])")
_HYPHEN = re.compile(r"(?<=[a-z])-\n(?=[a-z])")
_SOFT_BREAK = re.compile(r"(?<![.!?:;。！？：；\n])\n(?=[^\s\d•·\-*])")


def decode_page(raw: bytes, encoding: str, hint: str | None = None) -> str | None:
    """A page as text: UTF-8, else what its head or the server (hint) says, else as it looks."""
    return decode(raw, encoding, declared(raw) or hint)


def main_text(page: str, extract: bool = True) -> str | None:
    """The main text of a page without navigation, comments and advertisements; None: there is none.

    extract: false takes all visible text.
    """
    if not extract:
        return visible_text(page) or None
    trafilatura = package("trafilatura", "input", "HTML")
    try:
        text = trafilatura.extract(
            page, include_comments=False, include_tables=True, favor_precision=False,
            deduplicate=False, fast=False,
        )  # fmt: skip
    except Exception:  # lxml and the extractor raise many kinds on broken pages
        return None
    return text.strip() or None if text else None


def visible_text(page: str) -> str:
    """All text of a page, blocks as lines."""
    body = _BREAKS.sub("\n", _HIDDEN.sub(" ", page))
    text = entities.unescape(_TAGS.sub(" ", body))
    lines = (" ".join(line.split()) for line in text.split("\n"))
    return "\n".join(line for line in lines if line)


def warc_pages(path: str) -> Iterator[tuple[int, str, str | None, bytes]]:
    """(number, "html", "text" or a reason, charset, bytes) of a crawl's answers.

    Records that are no answers (requests, metadata) are passed over. Raises OSError where the file
    is damaged.
    """
    iterator = package("warcio.archiveiterator", "input", path)
    errors = package("warcio.exceptions", "input", path)
    number = -1
    with open(path, "rb") as stream:
        try:
            for record in iterator.ArchiveIterator(stream):
                if record.rec_type not in ("response", "resource", "conversion"):
                    continue
                number += 1
                yield number, *_page(record)
        except errors.ArchiveLoadFailed as error:
            raise OSError(str(error)) from None


def _page(record: Any) -> tuple[str, str | None, bytes]:
    headers = record.http_headers
    if headers is not None and not str(headers.get_statuscode()).startswith("2"):
        return "not_found", None, b""
    kind = (headers or record.rec_headers).get_header("Content-Type") or ""
    match = re.search(r"charset=[\"']?([\w.:-]+)", kind, re.IGNORECASE)
    charset = match[1] if match else None
    if "html" in kind.lower():
        return _content("html", charset, record)
    if kind.lower().startswith("text/plain"):
        return _content("text", charset, record)
    return "not_a_page", None, b""


def _content(kind: str, charset: str | None, record: Any) -> tuple[str, str | None, bytes]:
    """The answer, unpacked as its headers say, or "page_too_large" without it."""
    stream, parts, size = record.content_stream(), [], 0
    while part := stream.read(1 << 20):
        parts.append(part)
        size += len(part)
        if size > PAGE_BYTES:
            return "page_too_large", None, b""
    return kind, charset, b"".join(parts)


def pdf_text(raw: bytes) -> str | None:
    """The text layer of a PDF, lines joined to paragraphs; None where there is none.

    Raises ValueError for a file that is broken or needs a password.
    """
    import io
    import logging

    pypdf = package("pypdf", "input", "PDF", extra="pdf")
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # a remark for every odd font
    try:
        document = pypdf.PdfReader(io.BytesIO(raw))
        if document.is_encrypted and not document.decrypt(""):
            raise ValueError("needs a password")
        pages = [page.extract_text() for page in document.pages]
    except ValueError:
        raise
    except Exception as error:  # the parser raises many kinds on broken files
        raise ValueError(f"{type(error).__name__}: {error}") from None
    text = "\n".join(unwrap(page) for page in pages if page and page.strip())
    return text or None


def unwrap(text: str) -> str:
    """Text whose lines end where a page's did, joined where a sentence goes on."""
    text = "\n".join(line.strip() for line in text.split("\n"))
    text = _HAN_END.sub("", text)
    return _SOFT_BREAK.sub(" ", _HYPHEN.sub("", text))
