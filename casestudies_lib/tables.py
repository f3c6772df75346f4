"""A table as a notebook shows it."""

import html
from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """A table that shows itself as text and as accessible HTML; `records`, by MIME type, ride along for the runner."""

    caption: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]
    records: dict[str, list[dict]] | None = None

    def __repr__(self) -> str:
        """Return the table as aligned text."""
        lines = [self.columns, *self.rows]
        widths = [max(len(line[column]) for line in lines) for column in range(len(self.columns))]
        return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths)).rstrip() for line in lines)

    def _repr_html_(self) -> str:
        head = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in self.columns)
        body = "".join(
            f'<tr><th scope="row">{html.escape(first)}</th>{"".join(f"<td>{html.escape(c)}</td>" for c in rest)}</tr>'
            for first, *rest in self.rows
        )
        return (
            f'<div class="casebook-table" tabindex="0" role="region" aria-label="{html.escape(self.caption)}"><table>'
            f"<caption>{html.escape(self.caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
        )

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict[str, object]:
        bundle = {"text/plain": repr(self), "text/html": self._repr_html_()}
        return bundle | (self.records or {})
