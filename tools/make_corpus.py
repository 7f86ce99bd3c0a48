#!/usr/bin/env python3
"""Extract the example corpora; called by tools/make_corpus.sh.

    make_corpus.py HTML_FOLDER KJV_TEXT OUT    writes {postgresql,kjv}.{train,eval}.jsonl to OUT
    make_corpus.py --license LEGALNOTICE_HTML  prints the licence text of examples/corpus/

One document is {"text": ...}: a page of the PostgreSQL manual (titles, paragraphs and list items;
no programs, tables, menus), or a chapter of the Bible without verse numbers. Every 20th document of
a corpus, in bytewise order of page names or in the order of the book, is held out (eval).
"""
import html.parser
import json
import os
import re
import sys

# Reference tables, lists of names and changes: no prose.
SKIPPED_PAGES = re.compile(r"^(bookindex|index|release|errcodes|features|unsupported-features|"
                           r"biblio|sql-keywords|acronyms|contrib-spi|catalog-|infoschema-|view-pg|"
                           r"docguide|legalnotice)")
KJV_BOOKS = ["Genesis", "Ruth", "1 Samuel", "Jonah", "Matthew"]
BLOCKS = {"p", "h1", "h2", "h3", "h4", "dt"}
SKIPPED_TAGS = {"pre", "table", "head", "script"}
SKIPPED_CLASSES = {"toc", "navheader", "navfooter", "synopsis", "programlisting", "screen",
                   "footnotes", "refsynopsisdiv", "literallayout"}


class Page(html.parser.HTMLParser):
    """Collect the blocks of a page in order."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.blocks, self.words, self.open, self.skip_from = [], None, [], None

    def flush(self):
        text = " ".join("".join(self.words or []).split())
        if text:
            self.blocks.append(text)
        self.words = None

    def handle_starttag(self, tag, attrs):
        if tag in ("br", "hr", "img", "link", "meta", "col"):
            if tag == "br" and self.words is not None:
                self.words.append(" ")
            return
        self.open.append(tag)
        classes = set((dict(attrs).get("class") or "").split())
        if self.skip_from is None and (tag in SKIPPED_TAGS or classes & SKIPPED_CLASSES):
            self.skip_from = len(self.open)
        elif self.skip_from is None and tag in BLOCKS:
            self.flush()
            self.words = []

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        if tag not in self.open:
            return
        while self.open.pop() != tag:
            pass
        if self.skip_from is not None and len(self.open) < self.skip_from:
            self.skip_from = None
        elif self.skip_from is None and tag in BLOCKS:
            self.flush()

    def handle_data(self, data):
        if self.skip_from is None and self.words is not None:
            self.words.append(data)


def page_blocks(path):
    page = Page()
    with open(path, encoding="utf-8") as f:
        page.feed(f.read())
    return page.blocks


def postgresql(folder):
    for name in sorted(os.listdir(folder)):
        if not name.endswith(".html") or SKIPPED_PAGES.match(name):
            continue
        blocks = [b.replace("\u00a0", " ").replace("\u200b", "")
                  for b in page_blocks(os.path.join(folder, name))]
        # A page of titles and stubs is no reading matter.
        if sum(len(b) for b in blocks if len(b) >= 80) >= 400:
            yield "\n\n".join(blocks) + "\n"


def kjv(path):
    title, verses = None, []
    with open(path, encoding="utf-8") as f:
        for line in list(f) + ["Genesis 0\n"]:
            verse = re.match(r"^ +\d+ (.*)$", line)
            head = re.match(r"^((?:[123] )?[A-Z][A-Za-z ]*) (\d+)$", line)
            if verse:
                verses.append(" ".join(verse.group(1).split()))
            elif head:
                if title in KJV_BOOKS and verses:
                    yield "\n".join(verses) + "\n"
                title, verses = head.group(1), []


def write(out, name, documents):
    for split in ("train", "eval"):
        path = os.path.join(out, f"{name}.{split}.jsonl")
        with open(path, "w", encoding="utf-8", newline="\n") as f:
            for i, text in enumerate(documents):
                if (i % 20 == 19) == (split == "eval"):
                    f.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")


def print_license(path):
    print("postgresql.*.jsonl.xz: prose of the PostgreSQL 15 manual, PostgreSQL License:\n")
    print("\n\n".join(page_blocks(path)))
    print("\nkjv.*.jsonl.xz: books of the King James Version of the Bible (1611), as shipped in the\n"
          "Debian package bible-kjv-text. The copyright of the text is expired; it is in the public\n"
          "domain outside the United Kingdom.")


def main():
    if sys.argv[1] == "--license":
        print_license(sys.argv[2])
        return
    write(sys.argv[3], "postgresql", list(postgresql(sys.argv[1])))
    write(sys.argv[3], "kjv", list(kjv(sys.argv[2])))


if __name__ == "__main__":
    main()
