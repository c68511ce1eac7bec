"""What is written and shown: safe, stable, and without torch."""

import csv
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
from report_study import ARMS, SCENARIOS, RunFolder, study
from rich.console import Console

from monoeval.report import summarise, write
from monoeval.report.terminal import render

EVIL = "<script>alert('$x_1$ | `y`')</script>"


@pytest.fixture
def evil(run_folder: Callable[..., RunFolder]) -> RunFolder:
    """A study whose arm, note and error try to become markup."""
    arms = [ARMS[0], ARMS[1], {**ARMS[2], "name": EVIL}]
    run = run_folder(arms, ["clean"], seeds=1)
    run.test("t", [str(i) for i in range(50)], np.arange(50) % 10)
    run.score("raw", np.arange(50) < 30)
    run.score("random", None, adapter_seed=0, error=EVIL)
    run.score(EVIL, np.arange(50) < 40, adapter_seed=0)
    run.note(EVIL)
    return run


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(str(value))
            elif name in {"src", "href", "xlink:href"}:
                self.links.append(str(value))


def tags(text: str) -> _Tags:
    parser = _Tags()
    parser.feed(text)
    return parser


def test_nothing_a_user_named_becomes_markup(evil: RunFolder) -> None:
    write(evil.folder)
    page = (evil.folder / "report.html").read_text()
    assert "script" not in tags(page).seen
    assert "&lt;script&gt;" in page
    assert "<script" not in (evil.folder / "report.md").read_text().split("## Recipe")[0]
    for svg in (evil.folder / "figures").glob("*.svg"):
        assert not any(node.tag.endswith("script") for node in ElementTree.parse(svg).iter())


def test_the_page_stands_alone_and_its_links_lead_somewhere(full_study: RunFolder) -> None:
    write(full_study.folder)
    found = tags((full_study.folder / "report.html").read_text())
    assert len(set(found.ids)) == len(found.ids)
    assert all(link.startswith("#") and link[1:] in found.ids for link in found.links)
    assert found.seen.count("svg") == 1 + len(SCENARIOS)
    assert found.seen.count("h1") == 1


def test_the_same_run_gives_the_same_bytes(full_study: RunFolder) -> None:
    first = {path: path.read_bytes() for path in write(full_study.folder)}
    stale = full_study.folder / "figures" / "gone.svg"
    stale.write_text("<svg/>")
    assert {path: path.read_bytes() for path in write(full_study.folder)} == first
    assert not stale.exists()


def test_csv_has_a_line_a_score(full_study: RunFolder) -> None:
    write(full_study.folder)
    with (full_study.folder / "report.csv").open(newline="", encoding="utf-8") as stream:
        lines = list(csv.DictReader(stream))
    assert len(lines) == full_study.count
    assert {line["arm"] for line in lines} == {"raw", "random", "sae"}
    assert 0 < float(lines[0]["accuracy"]) < 1
    with (full_study.folder / "summary.csv").open(newline="", encoding="utf-8") as stream:
        measures = list(csv.DictReader(stream))
    (gap,) = (line for line in measures if (line["arm"], line["measure"]) == ("sae", "gap"))
    assert float(gap["low"]) < float(gap["value"]) < float(gap["high"])


def test_terminal_fits_in_100_columns(run_folder: Callable[..., RunFolder]) -> None:
    corruptions = ["gaussian_noise", "motion_blur", "elastic_transform", "jpeg_compression", "brightness", "fog"]
    long = {**ARMS[2], "name": "vit_base_patch16_clip_224.openai + sae-batchtopk"}
    run = study(run_folder([*ARMS, long], SCENARIOS), rows=60, corruptions=corruptions)
    run.score("sae", None, scenario="clean", adapter_seed=9)
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    console.print(*render(summarise(run.folder)), sep="\n")
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 100
    assert "…" not in text.replace("… of its", "")
    assert text.count("▸ sae:") == len(SCENARIOS)
    assert "more are in report.md" in text
    assert "1 of" in text


def test_failures_have_their_reason_in_every_format(evil: RunFolder) -> None:
    summary = summarise(evil.folder)
    console = Console(width=200, record=True, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    console.print(*render(summary), sep="\n")
    assert "n/a¹" in console.export_text()
    write(evil.folder)
    for name in ("report.md", "report.html"):
        text = (evil.folder / name).read_text()
        assert "n/a¹" in text
        assert "failed: &lt;script" in text


def test_a_report_needs_no_torch(full_study: RunFolder) -> None:
    code = (
        "import sys; from pathlib import Path; from monoeval.report import write, summarise;"
        "from monoeval.report.terminal import render; folder = Path(sys.argv[1]);"
        "write(folder); render(summarise(folder)); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(full_study.folder)], check=False).returncode == 0


def test_a_verdict_and_its_sentence_are_apart_in_markdown(run_folder: Callable[..., RunFolder]) -> None:
    run = run_folder([ARMS[0], {**ARMS[2], "name": "arm", "controls": []}], ["clean"], seeds=1)
    run.test("t", [str(i) for i in range(50)], np.arange(50) % 10)
    run.score("raw", np.arange(50) < 30)
    run.score("arm", np.arange(50) % 2 == 0, adapter_seed=0)
    write(run.folder)
    assert "**undetermined** against its baseline" in (run.folder / "report.md").read_text()
