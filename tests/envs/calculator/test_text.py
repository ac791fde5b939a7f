"""Episodes as pictures: text for a terminal, and a page in a real browser."""

import html
import re
import shutil
import subprocess

import pytest

from tests.envs.calculator.scripted import EVIL, scripted
from toolagent_pl.envs.calculator.text import draw, moments, page

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
BROWSER_FLAGS = [
    *["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"],
    *["--disable-background-networking", "--disable-component-update", "--disable-sync"],
]


@pytest.mark.parametrize("width", [20, 24, 36])
def test_narrow_terminals_get_lines_that_fit(width):
    solver = scripted()
    text = "(123-4)*(5-6*7)+88*9-(1-2)"
    (episode,) = solver.attempt([text])
    lines = draw(text, episode, solver.env.vocabulary, width=width).splitlines()
    body = lines[1:-2]
    assert all(len(line) <= width for line in body)
    assert sum("SUB" in line for line in body) == episode.plan.count("SUB")
    wide = draw(text, episode, solver.env.vocabulary, width=200).splitlines()
    marks = [line for line in body if re.fullmatch("[ NAML]+", line)]
    assert len(wide) == 3 + len(episode.plan)
    assert letters(marks) == letters(line[: len(text)] for line in wide[1:-2])


def letters(lines):
    return "".join("".join(lines).split())


def test_colour_can_be_asked_for_and_is_not_there_without():
    solver = scripted()
    (episode,) = solver.attempt(["2*3"])
    plain, coloured = (draw("2*3", episode, solver.env.vocabulary, colour=colour) for colour in (False, True))
    assert "\x1b[32;1mright\x1b[0m" in coloured
    assert re.sub(r"\x1b\[[\d;]*m", "", coloured) == plain


def test_what_there_is_before_each_call_is_what_the_environment_holds():
    solver = scripted()
    for text in ("1-(2-(3-4)*56)", "(1+2)*(3+4)", "9*8-7"):
        (episode,) = solver.attempt([text])
        states = moments(solver.env, episode)
        assert states[0] == (0, None, [], None, True)
        assert [state.accumulator and int(state.accumulator) for state in states[1:]] == episode.values
        assert states[-1].read == len(episode.operands)
        assert states[-1].memory == []
    (episode,) = solver.attempt(["1-(2-(3-4)*56)"])
    before = dict(zip(episode.plan[:6], moments(solver.env, episode), strict=False))
    assert before["MUL"].memory == ["1", "2"]
    assert (before["SUB"].left, before["SUB"].accumulator, before["SUB"].memory) == ("2", "-56", ["1"])


# The page, in a browser.


@pytest.fixture
def seen(tmp_path):
    """What a person sees of a page at a hash, by id, after what they do."""
    if BROWSER is None:
        pytest.skip("there is no chromium here; apt-get install -y chromium")

    def look(text, at="", doing=""):
        file = tmp_path / "page.html"
        file.write_text(text.replace("</body>", f"<script>{doing}</script></body>"), encoding="utf-8")
        profile = tmp_path / "profile"
        command = [BROWSER, *BROWSER_FLAGS, f"--user-data-dir={profile}", "--virtual-time-budget=2000", "--dump-dom"]
        done = subprocess.run(
            [*command, f"{file.as_uri()}{at}"], capture_output=True, text=True, timeout=60, check=True
        )
        shutil.rmtree(profile, ignore_errors=True)
        return done.stdout

    return look


def text_at(dom, name):
    """Words of an element that has none of its own kind in it."""
    (tag, inner) = re.search(rf'<(\w+)[^>]* id="{name}"[^>]*>(.*?)</\1>', dom, re.DOTALL).groups()
    return html.unescape(re.sub(r"<[^>]+>", " ", inner)).split() if tag != "select" else inner


def memory_at(dom):
    return re.findall(r"<div>([^<]*)</div>", re.search(r'id="memory">((?:<div>[^<]*</div>)*)', dom)[1])


def marks_at(dom):
    """Letters of the marks, by the position of the token that they are under."""
    tokens = re.findall(r"<span[^>]*>[^<]*<i>(.*?)</i></span>", dom)
    return {i: "".join(re.findall(r">(\w)</b>", marks)) for i, marks in enumerate(tokens) if marks}


@pytest.fixture(scope="module")
def two():
    solver = scripted()
    texts = ["2*(3+4)", "1-(2-(3-4)*56)"]
    return page(texts, solver.attempt(texts), solver.env)


def test_the_page_shows_a_step(two, seen):
    dom = seen(two, "#1")
    assert text_at(dom, "name") == ["ADD"]
    assert " ".join(text_at(dom, "said")) == "The next two operands: 3 + 4 = 7."
    assert " ".join(text_at(dom, "count")) == "step 1 of 5"
    assert marks_at(dom) == {0: "M", 3: "N"}
    assert memory_at(dom) == ["2"]
    assert (text_at(dom, "accumulator"), text_at(dom, "left")) == ([], [])
    assert " ".join(text_at(dom, "result")) == "Answer 14, right . Calls: 5, the reference plan: 5."
    assert re.search(r'<span class="used">2</span><span class="next">3</span><span>4</span>', dom)


def test_the_page_has_several_expressions(two, seen):
    dom = seen(two, "#2.5")
    assert text_at(dom, "name") == ["SUB"]
    assert " ".join(text_at(dom, "said")) == "Left operand and accumulator: 2 - (-56) = 58."
    assert marks_at(dom) == {0: "M", 3: "L", 12: "A"}
    assert (memory_at(dom), text_at(dom, "left"), text_at(dom, "accumulator")) == (["1"], ["2"], ["-56"])
    assert "2. 1-(2-(3-4)*56) = -57" in text_at(dom, "expression")


# With functions of the page itself: what was done, and what it then told.
DOING = """
const told = made("p"), tell = () => told.textContent += at("count").textContent + ": " + at("name").textContent + "; ";
function press(...keys) { keys.forEach(key => document.dispatchEvent(new KeyboardEvent("keydown", {key}))); tell(); }
function change(id, to, event) { at(id).value = to; at(id).dispatchEvent(new Event(event)); tell(); }
function click(...ids) { ids.forEach(id => at(id).click()); tell(); }
press("ArrowRight", "ArrowRight"); press("ArrowLeft"); press("Home", "ArrowLeft"); press("End", "ArrowRight");
change("step", 3, "input"); click("on"); click("last", "back"); click("first");
at("plan").querySelectorAll("button")[3].click(); tell(); change("expression", 1, "change");
told.id = "told"; document.body.append(told);
"""
TOLD = "2 of 5: RCL; 1 of 5: ADD; 0 of 5: STO; 5 of 5: 14; 3 of 5: MUL; 4 of 5: ANS; 4 of 5: ANS; 0 of 5: STO; "
TOLD += "3 of 5: MUL; 0 of 9: STO;"


def test_keys_slider_buttons_and_links_step_through_the_page(two, seen):
    dom = seen(two, doing=DOING)
    assert " ".join(text_at(dom, "told")).replace("step ", "") == TOLD
    assert "Step 0 of 9." in " ".join(text_at(dom, "live"))
    dom = seen(two, doing="location.hash = '#2.99'")
    assert (" ".join(text_at(dom, "count")), text_at(dom, "name")) == ("step 9 of 9", ["-57"])


def test_the_page_says_what_went_wrong(seen):
    solver = scripted(hurried=True)
    dom = seen(page(["2*(3+4)"], solver.attempt(["2*(3+4)"]), solver.env), "#4")
    assert " ".join(text_at(dom, "result")).startswith("Answer 7, wrong : it is 14.")
    assert " ".join(text_at(dom, "said")) == "That is wrong."
    assert 'id="choice" hidden' in dom


def test_data_cannot_leave_their_place_and_large_numbers_are_exact(seen):
    solver = scripted(tools=["ADD", EVIL])
    text = "2305843009213693950+1</script><i>3"
    written = page([text], solver.attempt([text]), solver.env)
    assert written.count("</script>") == 2
    dom = seen(written, "#1")
    assert text_at(dom, "name") == ["EVIL"]
    said = "Accumulator and next operand: 2305843009213693951 </script><i> 3 = 2305843009213693954."
    assert " ".join(text_at(dom, "said")) == said
    assert text_at(dom, "accumulator") == ["2305843009213693951"]


def test_the_page_asks_nothing_of_the_network(two):
    assert "default-src 'none'" in two
    assert not re.search(r"https?:|src=|href=|url\(|@import|fetch\(|XMLHttp", two.replace("default-src", ""))
