"""A task's result as one HTML page that needs nothing else: the curves, the table, and right and wrong answers with
their shots."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape

from flamingo_rt.errors import DataError
from flamingo_rt.evaluation.task import Item, Task
from flamingo_rt.evaluation.task_run import Answered
from flamingo_rt.evaluation.task_scores import Score, item_scores
from flamingo_rt.evaluation.task_table import COLUMNS, shown_control, table_lines
from flamingo_rt.processing.pictures import open_picture

THUMBNAIL = 96  # pixels
SHOWN = 8  # right answers, and as many wrong ones
MOST_SHOTS = 6  # whose pictures are shown beside an answer
WIDTH, HEIGHT, MARGIN = 560, 300, 46  # of the chart, in pixels
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00")
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1080px; margin: 2rem auto; padding: 0 1rem;
  overflow-wrap: anywhere }
h1 { font-size: 1.5rem; margin-bottom: .2rem } h2 { font-size: 1.1rem; margin-top: 2rem } .quiet { color: #555 }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem }
th, td { padding: .2rem 1.1rem .2rem 0; text-align: right; border-bottom: 1px solid #e3e3e3; white-space: nowrap }
th:nth-child(-n+2), td:nth-child(-n+2) { text-align: left } svg text { font: 12px system-ui, sans-serif }
.answer { display: flex; gap: .8rem; align-items: flex-start; margin: .8rem 0; flex-wrap: wrap }
figure { margin: 0; width: 96px; font-size: .75rem; line-height: 1.3 } img { width: 96px; height: 96px;
  object-fit: contain; background: #f3f3f3 } .query img { outline: 2px solid #555 }
.query { width: auto; min-width: 150px; font-size: .85rem; margin-left: .8rem }
.right { border-left: 3px solid #009e73; padding-left: .6rem } .wrong { border-left: 3px solid #d55e00;
  padding-left: .6rem }
"""


def html_page(
    task: Task, title: str, facts: Sequence[str], scores: Sequence[Score], answers: Sequence[Answered]
) -> str:
    """The whole page; ``facts`` are lines below the title."""
    header = "".join(f"<th>{escape(column)}</th>" for column in COLUMNS)
    rows = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in line) + "</tr>"
                   for line in table_lines(task.metric, scores))
    return "\n".join([
        "<!doctype html>", '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>", f"<h1>{escape(title)}</h1>",
        *(f'<p class="quiet">{escape(fact)}</p>' for fact in facts), curves(task, scores),
        f"<table><tr>{header}</tr>{rows}</table>", *_gallery(task, answers), "</body></html>", "",
    ])


def curves(task: Task, scores: Sequence[Score]) -> str:
    """The scores by number of shots as SVG, a line for each control, with intervals as bands."""
    counts = sorted({score.shots for score in scores})
    top = max([1.0 if task.metric != "cider" else 0.0, *(score.mean.high for score in scores)]) or 1.0
    step = (WIDTH - 2 * MARGIN) / max(1, len(counts) - 1)
    place = {count: MARGIN + number * step for number, count in enumerate(counts)}

    def height(value: float) -> float:
        return HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * value / top

    parts = [f'<svg viewBox="0 0 {WIDTH + 170} {HEIGHT}" width="{WIDTH + 170}" role="img">']
    for tick in range(5):
        value = top * tick / 4
        parts.append(f'<line x1="{MARGIN}" x2="{WIDTH - MARGIN}" y1="{height(value):.1f}" y2="{height(value):.1f}" '
                     f'stroke="#e3e3e3"/><text x="{MARGIN - 8}" y="{height(value) + 4:.1f}" text-anchor="end">'
                     f"{_shown(task, value)}</text>")
    parts += [f'<text x="{x:.1f}" y="{HEIGHT - MARGIN + 18}" text-anchor="middle">{count}</text>'
              for count, x in place.items()]
    parts.append(f'<text x="{WIDTH / 2}" y="{HEIGHT - 8}" text-anchor="middle">shots</text>')
    for number, control in enumerate(dict.fromkeys(score.control for score in scores)):
        own = sorted((score for score in scores if score.control == control), key=lambda score: score.shots)
        color = COLORS[number % len(COLORS)]
        line = " ".join(f"{place[score.shots]:.1f},{height(score.mean.mean):.1f}" for score in own)
        band = " ".join([*(f"{place[score.shots]:.1f},{height(score.mean.high):.1f}" for score in own),
                         *(f"{place[score.shots]:.1f},{height(score.mean.low):.1f}" for score in reversed(own))])
        parts.append(f'<polygon points="{band}" fill="{color}" opacity="0.12"/>'
                     f'<polyline points="{line}" fill="none" stroke="{color}" stroke-width="2"/>')
        parts += [f'<circle cx="{place[score.shots]:.1f}" cy="{height(score.mean.mean):.1f}" r="3" fill="{color}"/>'
                  for score in own]
        parts.append(f'<text x="{WIDTH - MARGIN + 14}" y="{MARGIN + 18 * number}" fill="{color}">'
                     f"{escape(shown_control(control))}</text>")
    return "".join([*parts, "</svg>"])


def _shown(task: Task, value: float) -> str:
    return f"{100 * value:.0f}" if task.metric == "cider" else f"{value:.0%}"


def _gallery(task: Task, answers: Sequence[Answered]) -> list[str]:
    """Right and wrong answers, of captions the best and the worst, under the most shots as they are, with the first
    seed."""
    plain = [answered for answered in answers if answered.setting.control == "none"]
    if not plain:
        return []
    most, first = max(a.setting.shots for a in plain), min(a.setting.seed for a in plain)
    by_name = {a.item: a for a in plain if (a.setting.shots, a.setting.seed) == (most, first)}
    items = [item for item in task.items if item.name in by_name]
    scores = item_scores(task.metric, items, [by_name[item.name].answer for item in items])
    order = sorted(range(len(items)), key=lambda place: -scores[place])
    support, thumbnails = {item.name: item for item in task.support}, _Thumbnails()
    parts = []
    graded = task.metric == "cider"  # no caption is right or wrong
    limit = float(scores.mean()) if graded else 0.5
    good, bad = ("Best", "Worst") if graded else ("Right", "Wrong")
    for title, style, places in (
        (good, "right", [place for place in order if scores[place] >= limit][:SHOWN]),
        (bad, "wrong", [place for place in reversed(order) if scores[place] < limit][:SHOWN]),
    ):
        parts.append(f"<h2>{title}, with {most} shots</h2>" if places else "")
        parts += [_answer(items[place], by_name[items[place].name], support, thumbnails, style,
                          _shown(task, scores[place])) for place in places]
    return parts


def _answer(
    item: Item, answered: Answered, support: Mapping[str, Item], thumbnails: _Thumbnails, style: str, score: str
) -> str:
    shots = [support[name] for name in answered.shots if name in support] if answered.setting.shots else []
    hidden = len(shots) - MOST_SHOTS
    figures = [
        f"<figure>{thumbnails.of(shot)}<figcaption>{escape(_said(shot.question, shot.answer))}</figcaption></figure>"
        for shot in shots[-MOST_SHOTS:]
    ]
    before = f"<span class='quiet'>{hidden} more</span>" if hidden > 0 else ""
    said = f"{escape(_said(item.question, answered.answer.strip()))}<br><span class='quiet'>right: " \
           f"{escape(item.answer)} (score {score})</span>"
    return f'<div class="answer {style}">{before}{"".join(figures)}<div class="query">{thumbnails.of(item)}<br>{said}' \
           "</div></div>"


def _said(question: str | None, answer: str) -> str:
    return answer if question is None else f"{question} {answer}"


class _Thumbnails:
    """Small pictures as data URIs, each made once."""

    def __init__(self) -> None:
        self._made: dict[Item, str] = {}

    def of(self, item: Item) -> str:
        """An ``img`` element; a clip, and a picture that cannot be read, is named instead."""
        if item not in self._made:
            self._made[item] = self._make(item)
        return self._made[item]

    def _make(self, item: Item) -> str:
        if item.file is None:
            return ""
        try:
            if item.clip:
                raise DataError("a clip")
            picture = open_picture(item.file)
        except DataError:
            return f"<div>{escape(item.file.name)}</div>"
        picture.thumbnail((THUMBNAIL, THUMBNAIL))
        buffer = io.BytesIO()
        picture.convert("RGB").save(buffer, "PNG")
        return f'<img alt="" src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">'
