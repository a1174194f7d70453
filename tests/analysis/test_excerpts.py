"""Episodes to read: excerpts in notebooks, and the pages of examples that notebook 05 links to."""

import re

import pytest
import scripted

from knapsack.analysis import conduct, excerpts, metrics
from knapsack.analysis.causes import CAUSES
from knapsack.runs import Run, write_text
from knapsack.tasks import sample_split, write_tasks
from knapsack.traces import read_trace, trace_path

LINK = re.compile(r"\]\((?!https?:|#|data:)([^)\s]+)\)")


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    """A small scripted run, its episodes, and why those below the teacher failed."""
    run = Run(scripted.write_run(tmp_path_factory.mktemp("run"), n=4, splits=("easy",)))
    write_tasks(run.tasks("easy"), sample_split("easy", 4, 0, scripted.CONFIG))
    episodes, _ = metrics.read_cells(run.folder / "evaluations")
    return run, episodes, conduct.read_conduct(run.folder / "evaluations", episodes).failures


def first_trace(run, cell="persistent_stateless_easy"):
    return read_trace(next(iter(sorted((run.folder / "evaluations" / cell / "knapsack").glob("*.trace.json")))))


def told(text):
    """Markdown cut into what stands in fences and what does not; every fence has to be closed."""
    inside, outside, fence = [], [], ""
    for line in text.splitlines():
        ticks = re.match(r"`{3,}", line)
        if fence:
            if line == fence:
                fence = ""
            else:
                inside.append(line)
        elif ticks:
            fence = ticks[0]
        else:
            outside.append(line)
    assert not fence
    return "\n".join(inside), "\n".join(outside)


def test_an_excerpt_holds_the_turns_asked_for_and_says_what_it_cuts(played):
    trace = first_trace(played[0])
    text = excerpts.excerpt(trace, [0, 2])
    assert re.findall(r"\*\*Turn (\d)\*\*", text) == ["1", "3"]
    assert trace.turns[0].text in text and trace.turns[2].observation.error.strip() in text and "(cut)" not in text
    short = excerpts.excerpt(trace, [0], reply_most=60)
    inside, _ = told(short)
    assert trace.turns[0].text[:60] in short and trace.turns[0].text[:70] not in short and "(cut)" in inside


OPEN = ["```python\nx = 1", "no ``` pair", "````\n```\n````", "```\n`````\n# title", "x\n```", "~~~\nx", "<!-- x"]


@pytest.mark.parametrize("reply", OPEN)
def test_a_reply_cannot_swallow_what_follows(played, reply):
    trace = first_trace(played[0])
    trace.turns[0] = type(trace.turns[0])(**vars(trace.turns[0]) | {"text": reply})
    inside, outside = told(excerpts.page(trace, "Title", "Head.", 0))
    assert all(line in inside for line in reply.splitlines())
    assert "## Turn 2" in outside and trace.turns[1].observation.error.strip() in inside


def test_a_page_is_the_whole_episode_with_the_turn_marked(played):
    trace = first_trace(played[0])
    text = excerpts.page(trace, "Title", "Head.", 1)
    assert re.findall(r"^## Turn .*", text, re.MULTILINE) == [
        f"## Turn {k + 1}{' ←' if k == 1 else ''}" for k in range(len(trace.turns))
    ]
    position = 0
    for message in trace.messages[:2]:
        position = text.index(message["content"], position)
    for turn in trace.turns:
        position = text.index(turn.text.strip(), position)
        shown = turn.protocol_error or turn.observation.error or turn.observation.output
        position = text.index(shown.strip() or "*(no output)*", position)


def test_every_cause_that_occurs_has_a_page_that_its_link_leads_to(played):
    run, _, failures = played
    cells = run.folder / "evaluations"
    write_text(run.results / "examples" / "of-an-earlier-analysis.md", "")
    lines = excerpts.write_examples(run, failures, cells).splitlines()
    assert [line.split("**")[1] for line in lines] == [cause for cause in CAUSES if cause in set(failures["cause"])]
    pages = set()
    for line in lines:
        page = (run.folder / "notebooks" / LINK.search(line)[1]).resolve()
        cause, turn = line.split("**")[1], int(re.search(r"turn (\d+);", line)[1])
        text = page.read_text(encoding="utf-8")
        assert text.startswith(f"# {cause.capitalize()}: ") and f"\n## Turn {turn} ←\n" in text
        named = re.search(r"The trace is `([^`]+)`", text)[1]
        trace = read_trace(run.folder / named)
        cell = named.split("/")[1]
        assert f"](../episodes.html#{cell}/{trace.task_id}?turn={turn})" in line  # the same episode, beside another
        assert f"[all {(failures['cause'] == cause).sum()}](../episodes.html#/?cause={cause.replace(' ', '+')})" in line
        assert all(turn.text.strip() in text for turn in trace.turns)
        pages.add(page.name)
    assert {path.name for path in (run.results / "examples").iterdir()} == pages
    assert excerpts.write_examples(run, failures.head(0), cells) == ""


def test_the_episode_shown_is_the_shortest_that_misses_a_name(played):
    run, episodes, _ = played
    cells = run.folder / "evaluations"
    missed = episodes[episodes["missing_bindings"] > 0]
    shortest = missed[missed["turns"] == missed["turns"].min()].iloc[0]
    text = excerpts.one_episode(cells, episodes)
    assert f"Model **{shortest['model']}**, **{shortest['runtime']}** runtime" in text and shortest["task_id"] in text
    assert "**Turn 1**" in text and "NameError" in text
    kept = episodes[episodes["missing_bindings"] == 0]
    longest = kept[kept["turns"] == kept["turns"].max()].iloc[-1]
    assert f"task `{longest['task_id']}`: {longest['turns']} turns" in excerpts.one_episode(cells, kept)
    assert excerpts.one_episode(cells, episodes.assign(status="timeout")) == "No episode is completed."


def test_an_episode_of_one_turn_is_shown(tmp_path):
    run = Run(scripted.write_run(tmp_path, 1, ("easy",), [("base", "persistent")]))
    episodes, _ = metrics.read_cells(run.folder / "evaluations")
    path = trace_path(run.evaluations / "base_persistent_easy", episodes["task_id"][0])
    assert read_trace(path).turns and "**Turn 1**" in excerpts.one_episode(run.folder / "evaluations", episodes)


def test_a_folder_holds_exactly_what_was_written(tmp_path):
    excerpts.write_folder(tmp_path / "x", {"a.md": "1", "b.md": "2"})
    excerpts.write_folder(tmp_path / "x", {"b.md": "3"})
    assert {path.name: path.read_text() for path in (tmp_path / "x").iterdir()} == {"b.md": "3"}
