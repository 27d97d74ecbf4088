"""Bar charts as plain SVG: a panel per row, a bar per program."""

from html import escape

from report import View, cell, family_of, names_in

COLOURS = {"pailfs": "#1b6ca8", "raw": "#9aa5b1", "local": "#c5ccd3", "s3fs": "#d98e04", "rclone": "#7a9e3d",
           "mount-s3": "#b5495b"}
PLOTS = {"throughput": "Reading", "random": "Random reads per second", "names": "Names and small files, seconds",
         "writing": "Writing and changing, seconds"}
# Pixels: of a bar with its gap, of a panel's title, of the labels left of the bars, of the longest bar, of the whole.
BAR, TITLE, LABELS, LONGEST, WIDTH = 16, 26, 90, 430, 640


def plot(results, rows, name):
    """The SVG of one plot, or None where there is nothing to show."""
    panels = [panel for panel in (bars_of(results, row, name) for row in rows if row.plot == name) if panel[1]]
    if not panels:
        return None
    parts, y = [], 34
    for title, bars in panels:
        longest = max(value for _, value, _ in bars) or 1
        parts.append(text(8, y + 16, title, "bold"))
        y += TITLE
        for family, value, label in bars:
            width = max(1, value / longest * LONGEST)
            parts.append(text(LABELS - 6, y + 11, family, anchor="end"))
            parts.append(f'<rect x="{LABELS}" y="{y + 1}" width="{width:.1f}" height="{BAR - 4}" '
                         f'fill="{COLOURS.get(family, "#888")}"/>')
            parts.append(text(LABELS + width + 5, y + 11, label))
            y += BAR
        y += 8
    heading = text(8, 20, f"{PLOTS[name]}, {results['meta']['server_title']}", "bold", size=14)
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{y + 6}" '
            f'viewBox="0 0 {WIDTH} {y + 6}" font-family="sans-serif">\n'
            f'<rect width="100%" height="100%" fill="white"/>\n' + "\n".join([heading, *parts]) + "\n</svg>\n")


def text(x, y, words, weight="normal", anchor="start", size=11):
    return (f'<text x="{x:.1f}" y="{y}" font-size="{size}" font-weight="{weight}" text-anchor="{anchor}" '
            f'fill="#222">{escape(words)}</text>')


def bars_of(results, row, plot):
    """A panel: MB/s where bytes are read in streams, else what the table says."""
    view, bars = View(results, row.name), []
    for family in names_in(results, [row]):
        names = [name for name in view.runs if family_of(name) == family and view.good(name)]
        if not names:
            continue
        best = view.best(family)
        if plot == "throughput":
            speed = view.bytes_per_second(best) / 1e6
            bars.append((family, speed, f"{speed:.0f} MB/s"))
        else:
            value = view.median(best, "rate") if plot == "random" else view.seconds(best)
            bars.append((family, value, cell(view, family)))
    return row.title.replace("`", ""), bars
