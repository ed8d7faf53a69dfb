"""The report as one HTML page: no script, nothing fetched; for phones, for the dark, for paper.

Whatever comes from outside (names, notes, numbers) is text and is escaped here; only the figures,
drawn by `trainer.figures`, are markup.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from html import escape

_PROSE = 40  # characters; a longer cell is broken into lines


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """columns: heads; rows: cells as text, the first of a row names it. texts: columns that hold
    words, so that they are set to the left as the first is."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    texts: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A figure. narrow, wide: its `<svg>`, for a phone and for a wide screen (None: one for both).

    says, says_not: what it shows, and what must not be read into it.
    """

    title: str
    says: str
    says_not: str
    narrow: str
    wide: str | None = None
    is_broad: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """missing: why there is nothing to show and which command gives it; one line for each part."""

    id: str
    title: str
    intro: str
    parts: Sequence[Table | Picture | str] = ()
    missing: Sequence[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """facts: what stands beside the title. warnings: what a reader must know first."""

    title: str
    subtitle: str
    facts: Sequence[tuple[str, str]]
    warnings: Sequence[str]
    sections: Sequence[Section] = field(default=())


def render(page: Page) -> str:
    """The whole document."""
    return "\n".join(_document(page)) + "\n"


def _document(page: Page) -> Iterator[str]:
    yield "<!DOCTYPE html>"
    yield '<html lang="en">'
    yield "<head>"
    yield '<meta charset="utf-8">'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield '<meta name="color-scheme" content="light dark">'
    # the page cannot load anything, even if something slipped into it
    yield (
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\">"
    )
    yield f"<title>{escape(page.title)}</title>"
    yield f"<style>{_STYLE}</style>"
    yield "</head>"
    yield "<body>"
    yield '<a class="skip" href="#main">Skip to the content</a>'
    yield "<header>"
    yield f"<h1>{escape(page.title)}</h1>"
    yield f'<p class="subtitle">{escape(page.subtitle)}</p>'
    yield '<dl class="facts">'
    for name, value in page.facts:
        yield f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>"
    yield "</dl>"
    yield '<nav aria-label="Sections"><ul>'
    for section in page.sections:
        yield f'<li><a href="#{section.id}">{escape(section.title)}</a></li>'
    yield "</ul></nav>"
    yield "</header>"
    yield '<main id="main">'
    yield from _warnings(page.warnings)
    for section in page.sections:
        yield from _section(section)
    yield "</main>"
    yield "</body>"
    yield "</html>"


def _warnings(warnings: Sequence[str]) -> Iterator[str]:
    count = len(warnings)
    if not count:
        yield '<section class="fine" aria-labelledby="warnings"><h2 id="warnings">No warnings</h2>'
        yield (
            "<p>None of the checks of this report found anything. That is not proof of skill: "
            "read what each figure does not say.</p></section>"
        )
        return
    title = "1 warning" if count == 1 else f"{count} warnings"
    yield f'<section class="warnings" aria-labelledby="warnings"><h2 id="warnings">{title}</h2><ul>'
    for warning in warnings:
        yield f"<li>{escape(warning)}</li>"
    yield "</ul></section>"


def _section(section: Section) -> Iterator[str]:
    yield f'<section id="{section.id}" aria-labelledby="{section.id}-title">'
    yield f'<h2 id="{section.id}-title">{escape(section.title)}</h2>'
    yield f"<p>{escape(section.intro)}</p>"
    for line in section.missing:
        yield f'<p class="missing">{escape(line)}</p>'
    held: list[Picture] = []
    for part in section.parts:
        if isinstance(part, Picture) and not part.is_broad:
            held.append(part)
            continue
        yield from _pictures(held)
        held = []
        if isinstance(part, Picture):
            yield from _picture(part)
        elif isinstance(part, Table):
            yield from _table(part)
        else:
            yield f"<p>{escape(part)}</p>"
    yield from _pictures(held)
    yield "</section>"


def _pictures(pictures: Sequence[Picture]) -> Iterator[str]:
    if pictures:
        yield '<div class="pictures">'
        for picture in pictures:
            yield from _picture(picture)
        yield "</div>"


def _picture(picture: Picture) -> Iterator[str]:
    yield f'<figure class="{"broad" if picture.is_broad else "one"}">'
    yield f"<h3>{escape(picture.title)}</h3>"
    if picture.wide is None:
        yield picture.narrow
    else:
        yield f'<div class="narrow">{picture.narrow}</div>'
        yield f'<div class="wide">{picture.wide}</div>'
    yield f"<figcaption><p>{escape(picture.says)}</p>"
    yield f'<p class="not"><b>It does not say:</b> {escape(picture.says_not)}</p></figcaption>'
    yield "</figure>"


def _table(table: Table) -> Iterator[str]:
    caption = escape(table.caption)
    yield f'<div class="scroll" role="region" aria-label="{caption}" tabindex="0"><table>'
    yield f"<caption><span>{caption}</span></caption>"
    yield "<thead><tr>"
    for at, name in enumerate(table.columns):
        yield f'<th scope="col"{_left(table, at)}>{escape(name)}</th>'
    yield "</tr></thead><tbody>"
    for row in table.rows:
        cells = [f'<th scope="row">{escape(row[0])}</th>']
        cells += [f"<td{_left(table, at)}>{escape(cell)}</td>" for at, cell in enumerate(row) if at]
        yield f"<tr>{''.join(cells)}</tr>"
    yield "</tbody></table></div>"


def _left(table: Table, column: int) -> str:
    if column != 0 and column not in table.texts:
        return ""
    is_prose = any(len(row[column]) > _PROSE for row in table.rows)
    return ' class="text prose"' if is_prose else ' class="text"'


_STYLE = """
:root { --ink: #1b1f24; --paper: #ffffff; --card: #f6f7f9; --rule: #d5dae0; --faint: #737b84;
  --link: #005a8f; --warn: #8f3d00; --warn-card: #fff4e8; --fine: #00694c; --fine-card: #ebf8f2;
  --blue: #0072b2; --orange: #d55e00; --green: #009e73; --pink: #b8578e; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e8ec; --paper: #14171b; --card: #1c2026; --rule: #363d46; --faint: #98a1ab;
    --link: #7cc4f0; --warn: #ffb87a; --warn-card: #33220f; --fine: #6fdcb4; --fine-card: #10291f;
    --blue: #56b4e9; --orange: #f0883e; --green: #2fc79a; --pink: #e08cbf; }
}
@media print { :root { --ink: #000; --paper: #fff; --card: #fff; --rule: #bbb; --faint: #666;
  --link: #000; --warn: #8f3d00; --warn-card: #fff; --fine: #00694c; --fine-card: #fff;
  --blue: #0072b2; --orange: #d55e00; --green: #009e73; --pink: #b8578e; }
  nav, .skip { display: none; } figure, tr, .warnings { break-inside: avoid; }
  h2, h3, caption { break-after: avoid; } .scroll { overflow: visible; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body { margin: 0 auto; max-width: 72rem; padding: 1.2rem clamp(0.9rem, 3vw, 2.2rem) 3rem;
  background: var(--paper); color: var(--ink); font: 1rem/1.5 system-ui, "Segoe UI", Roboto,
  "Helvetica Neue", "DejaVu Sans", sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.55rem; line-height: 1.2; margin: 0.3rem 0; overflow-wrap: anywhere; }
h2 { font-size: 1.3rem; line-height: 1.25; margin: 0 0 0.5rem; }
h3 { font-size: 1rem; margin: 0 0 0.5rem; }
p { margin: 0.4rem 0 0.8rem; max-width: 46rem; }
a { color: var(--link); }
a:focus-visible, .scroll:focus-visible { outline: 3px solid var(--blue); outline-offset: 2px; }
.skip { position: absolute; left: -99rem; }
.skip:focus { left: 1rem; top: 0.5rem; background: var(--paper); padding: 0.4rem 0.8rem; }
.subtitle { color: var(--faint); margin-top: 0; }
.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 13rem), 1fr));
  gap: 0.7rem 1.4rem; margin: 1rem 0; }
.facts dt { font-size: 0.8rem; color: var(--faint); }
.facts dd { margin: 0; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
nav ul { display: flex; flex-wrap: wrap; gap: 0.35rem 1.1rem; list-style: none; padding: 0.7rem 0;
  margin: 0; border-top: 1px solid var(--rule); }
nav a { display: inline-block; padding: 0.2rem 0; }
main > section { border-top: 1px solid var(--rule); padding: 1.5rem 0 0.6rem; margin-top: 0.8rem; }
main > .warnings, main > .fine { border: 1px solid var(--rule);
  border-left: 0.4rem solid var(--warn);
  background: var(--warn-card); padding: 0.9rem 1.1rem; border-radius: 0.3rem; }
main > .fine { border-left-color: var(--fine); background: var(--fine-card); }
.warnings h2 { color: var(--warn); } .fine h2 { color: var(--fine); }
.warnings ul { margin: 0; padding-left: 1.2rem; max-width: 52rem; }
.warnings li { margin: 0.3rem 0; }
.missing { border-left: 0.3rem solid var(--rule); padding: 0.2rem 0 0.2rem 0.8rem;
  color: var(--faint); }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr));
  gap: 1.2rem; align-items: start; }
.pictures > figure:only-child { max-width: 34rem; }
@media (min-width: 60rem) { .pictures > figure:only-child { max-width: none; display: grid;
  grid-template-columns: minmax(0, 34rem) minmax(0, 1fr); gap: 0 1.6rem; }
  .pictures > figure:only-child h3 { grid-column: 1 / -1; } }
@media (max-width: 40rem) { figure { padding: 0.7rem 0.5rem; } }
figure { margin: 0.8rem 0; padding: 0.9rem; background: var(--card); border-radius: 0.4rem;
  border: 1px solid var(--rule); min-width: 0; }
figure svg { display: block; width: 100%; height: auto; color: var(--ink); }
figure svg text { font-family: inherit; }
figure svg * { stroke-linejoin: round; stroke-linecap: butt; }
figcaption p { font-size: 0.92rem; margin: 0.6rem 0 0; } figcaption .not { color: var(--faint); }
.wide { display: none; }
@media (min-width: 50rem) { .wide { display: block; } .narrow { display: none; } }
.scroll { overflow-x: auto; margin: 0.8rem 0 1.2rem; }
table { border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding: 0 0 0.4rem; }
th, td { padding: 0.3rem 0.7rem; text-align: right; border-bottom: 1px solid var(--rule);
  white-space: nowrap; vertical-align: top; }
th.text, td.text, th[scope=row] { text-align: left; }
td.prose { white-space: normal; min-width: 14rem; max-width: 44rem; }
thead th { border-bottom: 2px solid var(--faint); font-weight: 600; white-space: normal;
  min-width: 4.6rem; vertical-align: bottom; }
caption span { display: block; max-width: min(46rem, calc(100vw - 2.5rem)); }
th[scope=row] { font-weight: 500; }
th:first-child, td:first-child { padding-left: 0.1rem; }
"""
